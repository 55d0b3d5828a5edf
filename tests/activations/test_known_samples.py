"""Predictions and evaluations are answered from stored rows for samples that these are of."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from finetune.activations.batch_shapes import SAMPLE, Shape, digests_of, labels_of
from finetune.store.directory import cache_root, claim_as_it_is, entries
from finetune.store.store import Store
from finetune.train.after import sample_index

pytestmark = pytest.mark.usefixtures("always")

NUM, WIDTH = 400, 8
LAYERS = [
    {"name": "body", "type": "Linear", "out_features": 16},
    {"name": "act", "type": "Tanh"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


def train(command_line, layers, data, *, freeze):
    """Train on `t.csv` of the current folder, by a config beside it, as `run`."""
    config = {
        "model": {"layers": layers},
        "data": {"source": {"type": "csv", "path": "t.csv"}, **data},
        "task": {"type": "classification"},
        "freeze": [freeze],
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"epochs": 2, "batch_size": 8},
        "tracking": {"to": [], "report": False},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    shown = command_line("train", "c.yaml", "--run", "run")
    assert shown.code == 0, shown.err


@pytest.fixture(params=[0.24])
def folder(request, tmp_path, monkeypatch, command_line):
    """Train on a table with stored rows, and return the folder of table, config and run."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    draw, test = np.random.default_rng(0), request.param
    lines = [f"{'abc'[n % 3]}," + ",".join(f"{x:.4f}" for x in draw.normal(n % 3, 1, WIDTH))
             for n in range(NUM)]  # fmt: skip
    names = [f"x{n}" for n in range(WIDTH)]
    (tmp_path / "t.csv").write_text("\n".join([f"label,{','.join(names)}", *lines]) + "\n")
    data = {
        "inputs": names,
        "target": "label",
        "split": {"test": test},
        "transforms": [{"type": "stack"}],
    }
    train(command_line, LAYERS, data, freeze="body")
    assert any("prefix" in one.meta.facts for one in entries(cache_root()))
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """A list of how many samples each forward pass of the frozen layer has."""
    sizes, forward = [], torch.nn.Linear.forward

    def counted(self, inputs):
        if self.in_features == WIDTH:
            sizes.append(len(inputs))
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", counted)
    return sizes


def predicted(command_line, *more, source="t.csv"):
    shown = command_line("predict", "run", source, *more)
    assert shown.code == 0, shown.err
    return shown.out, shown.err


PROBED = 2 + 3 * 3 + 2 + 2
"""Samples that run at every start: one shape, three trials of the prefix, a pass that follows its
values, a few of its outputs."""


def answered(told):
    """Return how many samples were answered by the line that tells it."""
    [line] = [line for line in told.splitlines() if "samples were answered" in line]
    count, of = map(int, re.findall(r"\d+", line))
    assert of == NUM
    return count


@pytest.mark.slow
def test_predictions_of_known_samples_have_the_same_bits_and_run_no_frozen_layer(
    folder, ran, command_line
):
    whole, told = predicted(command_line, "-o", "cache.use=off")
    assert "activation cache" not in told
    assert sum(ran) >= NUM
    ran.clear()
    known, told = predicted(command_line)
    assert known == whole
    # A batch or two run twice to compare their rows with those that were stored.
    compared = NUM - answered(told)
    assert compared in (8, 16)
    assert sum(ran) == PROBED + 2 * compared


@pytest.mark.slow
@pytest.mark.parametrize("folder", [0.25, 0.31], indirect=True)
def test_rows_of_a_last_smaller_batch_change_no_bit(folder, command_line):
    """Kernels may round them otherwise than in a full batch."""
    whole, _ = predicted(command_line, "-o", "cache.use=off")
    known, told = predicted(command_line)
    assert known == whole
    assert answered(told) > NUM / 2


@pytest.mark.slow
def test_a_sample_that_has_changed_is_not_known(folder, ran, command_line):
    first, *lines = (folder / "t.csv").read_text().splitlines()
    label, _, rest = lines[200].split(",", 2)
    lines[200] = f"{label},0.1234,{rest}"
    (folder / "new.csv").write_text("\n".join([first, *lines]) + "\n")
    whole, _ = predicted(command_line, "-o", "cache.use=off", source="new.csv")
    ran.clear()
    known, told = predicted(command_line, source="new.csv")
    assert known == whole
    compared = NUM - 8 - answered(told)
    assert compared in (8, 16)
    assert sum(ran) == PROBED + 2 * compared + 8


@pytest.mark.slow
def test_a_damaged_row_is_computed_anew(folder, command_line):
    whole, told = predicted(command_line)
    before = answered(told)
    for one in entries(cache_root()):
        path = one.folder / "rows-0"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    known, told = predicted(command_line)
    assert known == whole
    assert before - 32 <= answered(told) < before


@pytest.mark.slow
def test_a_store_that_cannot_be_opened_leaves_the_others_in_use(folder, command_line):
    whole, told = predicted(command_line)
    before = answered(told)
    smallest = min(entries(cache_root()), key=lambda one: one.num_written)
    (smallest.folder / "rows-0").unlink()
    known, told = predicted(command_line)
    assert known == whole
    assert 0 < answered(told) < before
    assert "activation cache: a store is not used: " in told


@pytest.mark.slow
def test_rows_beyond_the_bound_on_memory_run_all_layers_with_a_line(
    folder, command_line, monkeypatch
):
    whole, told = predicted(command_line)
    before = answered(told)
    monkeypatch.setattr(sample_index, "MOST_ROWS", NUM - 10)
    known, told = predicted(command_line)
    assert known == whole
    assert 0 < answered(told) < before
    assert "has more than 390 rows of this network; the frozen layers run for samples" in told


@pytest.mark.slow
def test_a_stored_row_takes_16_bytes_of_memory(folder):
    stores = [
        Store.of(one.meta, claim_as_it_is(cache_root(), one.meta), limit_bytes=0.0)
        for one in entries(cache_root())
    ]
    index = sample_index.SampleIndex(stores, lambda _: None)
    assert len(index) == NUM
    assert index.num_bytes == 16 * NUM
    for store in stores:
        rows = store.written()
        labels = store.column(SAMPLE, rows)
        found = index.find(labels[:, :2])
        assert torch.equal(torch.from_numpy(found.rows), rows)
        assert torch.equal(torch.from_numpy(found.origins), labels[:, 2])
        # Half the digest alone is not the sample.
        assert index.find(labels[:, :2] ^ torch.tensor([0, 1])) is None
        assert index.find(labels[:, :2] ^ torch.tensor([1, 0])) is None
        store.close()


@pytest.mark.slow
def test_a_predictor_in_python_answers_known_samples_where_it_is_asked_to(folder, ran):
    from finetune import load_predictor

    predictor, said = load_predictor("run"), []
    cells = np.loadtxt("t.csv", delimiter=",", skiprows=1, usecols=range(1, WIDTH + 1))
    columns = {f"x{n}": cells[:, n].tolist() for n in range(WIDTH)}
    whole = predictor(columns)
    ran.clear()
    with predictor.knowing(said.append) as known:
        assert known(columns) == whole
    assert NUM - answered("\n".join(said)) in (8, 16)
    assert sum(ran) < NUM / 2
    assert predictor(columns) == whole


@pytest.mark.slow
def test_an_evaluation_of_known_samples_gives_the_same_figures(folder, ran, command_line):
    whole = command_line("eval", "run", "t.csv", "-o", "cache.use=off", "--json")
    ran.clear()
    known = command_line("eval", "run", "t.csv", "--json")
    assert (known.code, known.out) == (0, whole.out)
    compared = NUM - answered(known.err)
    assert compared in (8, 16)
    assert sum(ran) == PROBED + 2 * compared


@pytest.mark.slow
def test_rows_of_another_network_are_not_used(folder, ran, command_line):
    config = yaml.safe_load((folder / "c.yaml").read_text())
    (folder / "c.yaml").write_text(yaml.safe_dump(config | {"seed": 1, "cache": "off"}))
    assert command_line("train", "c.yaml", "--run", "run", "--fresh").code == 0
    ran.clear()
    _, told = predicted(command_line, "-o", "cache.use=auto")
    assert "activation cache" not in told
    assert sum(ran) >= NUM


@pytest.mark.slow
def test_rows_that_are_others_in_evaluation_are_not_used(folder, command_line, monkeypatch):
    """As those of a layer that works otherwise in training."""
    whole, _ = predicted(command_line, "-o", "cache.use=off")
    read = Store.read

    def other(self, *given):
        return {
            name: rows + 1e-6 if rows.is_floating_point() else rows
            for name, rows in read(self, *given).items()
        }

    monkeypatch.setattr(Store, "read", other)
    known, told = predicted(command_line)
    assert known == whole
    assert answered(told) == 0
    assert "batches of 8 samples run all layers although their samples are known" in told


@pytest.mark.slow
def test_an_error_of_the_stores_is_told_and_all_layers_run(folder, command_line, monkeypatch):
    whole, _ = predicted(command_line, "-o", "cache.use=off")

    def fails(store, name, rows):
        raise ValueError("not what was written")

    monkeypatch.setattr(Store, "column", fails)
    known, told = predicted(command_line)
    assert known == whole
    assert "activation cache: stored rows are not used: not what was written" in told


@pytest.mark.slow
def test_an_error_of_a_store_in_the_midst_is_told_and_all_layers_run(
    folder, command_line, monkeypatch
):
    whole, told = predicted(command_line)
    before, column, calls = answered(told), Store.column, []

    def fails(store, name, rows):
        calls.append(len(rows))
        if len(calls) > 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return column(store, name, rows)

    monkeypatch.setattr(Store, "column", fails)
    known, told = predicted(command_line)
    assert known == whole
    assert told.count("stored rows are not used from here on: Input/output error") == 1
    assert 0 < answered(told) < before
    assert len(calls) == 7


@pytest.mark.slow
def test_texts_of_all_lengths_are_known_with_the_same_bits(tmp_path, monkeypatch, command_line):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = [f"w{n}" for n in range(50)]
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=60, intermediate_size=32, max_position_embeddings=32, **sizes)
    ).save_pretrained("bert")
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, draw.integers(1, 12))) for _ in range(NUM)]
    rows = "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}")
    layers = [
        {"name": "net", "type": "transformers", "path": "bert", "output": "mean"},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    train(command_line, layers, {"split": {"validation": 0.24}}, freeze="net")
    whole, _ = predicted(command_line, "-o", "cache.use=off")
    known, told = predicted(command_line)
    assert known == whole
    assert answered(told) > 0


@pytest.mark.slow
def test_a_few_samples_are_not_looked_for(folder, command_line):
    lines = (folder / "t.csv").read_text().splitlines()
    (folder / "few.csv").write_text("\n".join(lines[:20]) + "\n")
    _, told = predicted(command_line, source="few.csv")
    assert "activation cache" not in told


def test_a_sample_has_the_same_digest_however_it_is_padded():
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    padded = {"input_ids", "attention_mask"}
    long = digests_of({"input_ids": ids, "attention_mask": mask}, padded)
    short = digests_of({"attention_mask": mask[1:, :2], "input_ids": ids[1:, :2]}, padded)
    assert torch.equal(long[1], short[0])
    assert not torch.equal(long[0], long[1])
    other = digests_of({"input_ids": ids.int(), "attention_mask": mask}, padded)
    assert not torch.equal(other, long)
    brain = digests_of({"image": torch.zeros(1, 3, dtype=torch.bfloat16)}, ())
    assert brain.shape == (1, 2)
    assert labels_of({"a": ids}, (), None)[0, 2] != labels_of({"a": ids}, (), Shape(2))[0, 2]


def test_numbers_beside_a_text_count_although_they_are_as_many_as_its_tokens():
    """Those behind the end of the text told two samples apart no longer, and rows were mixed up."""
    text = {
        "input_ids": torch.tensor([[5, 6, 0, 0]] * 2),
        "attention_mask": torch.tensor([[1, 1, 0, 0]] * 2),
    }
    numbers = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]])
    digests = digests_of(text | {"numbers": numbers}, text)
    assert not torch.equal(digests[0], digests[1])
    alike = digests_of(text | {"numbers": numbers[:1].repeat(2, 1)}, text)
    assert torch.equal(alike[0], alike[1])
