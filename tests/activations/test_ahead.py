"""While phases only thaw, one pass over the samples stores what every later phase needs."""

import shutil

import pytest

from finetune.runs.progress import Progress
from finetune.store.directory import cache_root, entries
from finetune.train.wire import build_trainer

pytestmark = pytest.mark.usefixtures("always")

DOWN1, DOWN2, MIDDLE, UP = "net.down1", "net.down2", "net.middle", "net.up*"
THAW = ([DOWN1, DOWN2, MIDDLE, UP], [DOWN1, DOWN2, MIDDLE], [DOWN1, DOWN2], [DOWN1])
NUM_SAMPLES = 330
ON_THE_WAY = "is stored on the way for phase"


def _run_again(split, batch):
    raise AssertionError("a batch runs once more for the sake of a store")


def thawing(*lengths, frozen=THAW):
    untils = [*({"epochs": length} for length in lengths), None]
    return {
        "phases": [
            {"name": f"p{number}", "freeze": names, "until": until}
            for number, (names, until) in enumerate(zip(frozen, untils, strict=True))
        ]
    }


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(2, 2, 2), (1, 1, 1), (1, 3, 1), (3, 1, 1)], ids=str)
def test_a_thaw_runs_the_prefix_once_per_sample_over_all_phases(
    runs, tmp_path, monkeypatch, lengths
):
    """Also where a phase is so short that a store would do nothing for itself."""
    monkeypatch.setattr("finetune.activations.forward.in_full_batch", _run_again)
    epochs = sum(lengths) + 2
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=thawing(*lengths), epochs=epochs)
    runs.assert_same_run(stored, whole)
    statistics = stored.cache.statistics
    assert (statistics.recorded, statistics.whole) == (NUM_SAMPLES, 0)
    passes = epochs * (len(stored.splits.train) + len(stored.splits.validation))
    assert statistics.answered + statistics.recorded == passes + len(stored.splits.test)
    assert sum(ON_THE_WAY in line for line in said) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"precision": "bfloat16"},
        {"micro_batch": 12},
        {"batch_size": 7},
        {"batch_size": 1},
        {"drop_last": True},
    ],
    ids=str,
)
def test_number_formats_and_batches_change_no_bit_of_a_thaw(runs, tmp_path, train):
    settings = {"freeze": thawing(1, 1, 1), "epochs": 5} | train
    stored, whole, _ = runs.pair(tmp_path, "UNet", **settings)
    runs.assert_same_run(stored, whole)


@pytest.mark.slow
def test_what_is_stored_on_the_way_is_what_a_run_that_begins_there_finds(runs, tmp_path):
    # the last weights are tested: the best ones may be those of a phase that freezes more
    settings = {"cache": "auto", "epochs": 3, "checkpoint": {"best": None}}
    thaw = thawing(2, frozen=THAW[:2])
    runs.trained(runs.odd_config("UNet", freeze=thaw, **settings), tmp_path / "thaw")
    begins_there = runs.odd_config("UNet", freeze=THAW[1], **settings)
    trainer, _ = runs.trained(begins_there, tmp_path / "there")
    assert trainer.cache.statistics.recorded == 0
    assert trainer.cache.statistics.answered > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "frozen",
    [THAW[::-1], ([DOWN1, DOWN2], [DOWN2, MIDDLE, UP]), (THAW[0], [])],
    ids=["freezes deeper", "freezes other layers", "ends with nothing frozen"],
)
def test_nothing_is_stored_for_phases_that_do_more_than_thaw(runs, tmp_path, frozen):
    lengths = [2] * (len(frozen) - 1)
    if not frozen[-1]:
        freeze = thawing(*lengths, frozen=[*frozen[:-1], DOWN1])
        freeze["phases"][-1] = {"name": "all", "train": ["net.*"]}
    else:
        freeze = thawing(*lengths, frozen=frozen)
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=freeze, epochs=2 * len(frozen))
    runs.assert_same_run(stored, whole)
    assert not any(ON_THE_WAY in line for line in said)


@pytest.mark.slow
def test_a_phase_that_changes_its_mind_ends_the_view_ahead(runs, tmp_path):
    """The third phase freezes what the second one trains: its rows would not be known yet."""
    frozen = (THAW[0], [DOWN1], [DOWN1, DOWN2])
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=thawing(2, 2, frozen=frozen), epochs=6)
    runs.assert_same_run(stored, whole)
    assert [line for line in said if ON_THE_WAY in line] == [
        line for line in said if "for phase 'p1'" in line
    ]


@pytest.mark.slow
def test_without_room_for_more_only_the_present_phase_is_stored(runs, tmp_path):
    own = runs.odd_config("UNet", freeze=THAW[0], cache="auto", epochs=2)
    runs.trained(own, tmp_path / "own")
    needed = sum(entry.meta.layout.size_bytes for entry in entries(cache_root()))
    shutil.rmtree(cache_root())
    config = {"freeze": thawing(2, frozen=THAW[:2]), "epochs": 4}
    small = {"disk_gb": (needed + 4096) / 2**30}
    stored, said = runs.trained(runs.odd_config("UNet", cache=small, **config), tmp_path / "small")
    whole, _ = runs.trained(runs.odd_config("UNet", cache="off", **config), tmp_path / "whole")
    runs.assert_same_run(stored, whole)
    assert sum("nothing is stored for phase 'p1': needs" in line for line in said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("net", ["ThawedOtherwise", "ThawedRarely", "ThawedAtRandom"])
@pytest.mark.parametrize("is_thaw", [True, False], ids=["thaw", "freeze deeper"])
def test_rows_that_another_mode_makes_different_are_never_shared(runs, tmp_path, net, is_thaw):
    """What is around a frozen layer is in training mode while something else in it is thawed."""
    frozen = (["net.body"], ["net.body.one", "net.body.two"])[:: 1 if is_thaw else -1]
    stored, whole, said = runs.pair(
        tmp_path, net, module="sly_nets", freeze=thawing(2, frozen=frozen), epochs=5
    )
    runs.assert_same_run(stored, whole)
    # nor is it left to what is looked over when a store is opened
    assert not any("are wrong" in line for line in said)
    assert not any(ON_THE_WAY in line and "net.body.two" in line for line in said)


def test_only_phases_that_thaw_more_than_all_before_them_count_as_thaws(runs, tmp_path):
    freeze = thawing(1, 1, 1, frozen=(THAW[0], THAW[2], THAW[3], THAW[1]))
    config = runs.odd_config("UNet", freeze=freeze, cache="off", epochs=5)
    timeline = build_trainer(config, tmp_path / "run").timeline
    coming = timeline.thaws_ahead()
    assert [(one.phase.name, one.seen, one.lasts) for one in coming] == [
        ("p1", 1.0, 1.0),
        ("p2", 2.0, 1.0),
    ]
    freeze["phases"][1]["until"] = {"plateau": "validation/loss"}
    config = runs.odd_config("UNet", freeze=freeze, cache="off", epochs=5)
    waiting = build_trainer(config, tmp_path / "waiting").timeline
    assert [one.lasts for one in waiting.thaws_ahead()] == [None, None]
    freeze["phases"][1]["until"]["at_most"] = {"epochs": 2}
    config = runs.odd_config("UNet", freeze=freeze, cache="off", epochs=5)
    bounded = build_trainer(config, tmp_path / "bounded").timeline
    # a plateau may come before its bound: neither phase has a certain length
    assert [one.lasts for one in bounded.thaws_ahead()] == [None, None]
    progress = Progress(phase=2, step=18, phase_began=18)
    assert timeline.at(progress).thaws_ahead() == []


@pytest.mark.slow
def test_a_thaw_after_other_phases_is_looked_ahead_to(runs, tmp_path):
    freeze = thawing(2, 2, frozen=(THAW[3], THAW[1], THAW[2]))
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=freeze, epochs=6)
    runs.assert_same_run(stored, whole)
    assert sum(ON_THE_WAY in line for line in said) == 1


def test_what_modules_keep_to_save_time_is_no_reason_to_store_anew(runs, tmp_path):
    freeze = thawing(2, frozen=(["net.body", "net.last"], ["net.body"]))
    stored, whole, said = runs.pair(tmp_path, "Keeping", module="sly_nets", freeze=freeze, epochs=4)
    runs.assert_same_run(stored, whole)
    assert stored.cache.statistics.recorded == NUM_SAMPLES
    assert sum(ON_THE_WAY in line for line in said) == 1


@pytest.mark.slow
def test_a_phase_that_comes_before_every_sample_was_seen_is_not_stored_for(runs, tmp_path):
    freeze = thawing(1, 1, frozen=THAW[:3])
    freeze["phases"][0]["until"] = {"steps": 5}
    stored, whole, said = runs.pair(tmp_path, "UNet", freeze=freeze, epochs=5)
    runs.assert_same_run(stored, whole)
    assert not any("for phase 'p1'" in line for line in said)
    assert any("for phase 'p2'" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm store", "cold store"])
@pytest.mark.parametrize("stop", [5, 13, 18, 19, 27])
def test_a_resumed_thaw_ends_with_the_bits_of_an_unbroken_one(runs, tmp_path, stop, is_warm):
    """A phase has 18 steps of 9 an epoch, so stops stand within, at and after its end."""
    checkpoint = {"every": {"steps": 1}, "keep_last": 100}
    config = runs.odd_config(
        "UNet", cache="auto", freeze=thawing(2, 2, 2), checkpoint=checkpoint, epochs=8
    )
    unbroken, _ = runs.trained(config, tmp_path / "run")
    expected = {name: tensor.clone() for name, tensor in unbroken.model.state_dict().items()}
    for path in unbroken.saver.checkpoints.all():
        if path.name > f"step-{stop:08d}":
            shutil.rmtree(path)
    (unbroken.folder.path / "summary.json").unlink()
    if not is_warm:
        shutil.rmtree(cache_root())
    resumed = build_trainer(config, tmp_path / "run")
    assert resumed.progress.step == stop
    resumed.fit()
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.equal(expected[name]), name
    assert resumed.progress.metrics == unbroken.progress.metrics
