"""Processes that hold a part of the weights each (FSDP2) train the run of processes that do not."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.distributed import Link
from finetune.errors import FinetuneError
from finetune.tracking.json_lines import read_metrics
from finetune.train.build import build_parts
from finetune.train.ranks.shard_settings import refuse_unsharded, wants_shards
from finetune.which_rank import Ranks

LAYERS = [
    {"name": "body", "type": "Linear", "out_features": 7},
    {"name": "middle", "type": "Linear", "out_features": 5},
    {"name": "act", "type": "Tanh"},
    {"name": "drop", "type": "Dropout", "p": 0.25},
    {"name": "head", "type": "Linear", "out_features": 3},
]
NORM = {"name": "norm", "type": "BatchNorm1d"}
TRAIN = {"steps": 24, "batch_size": 8, "micro_batch": 4, "log_every": 1}
SAVED = {"checkpoint": {"every": {"steps": 4}, "keep_last": 100}}
THAW = {
    "phases": [
        {"name": "head", "train": ["head"], "until": {"steps": 7}},
        {"name": "top", "train": ["head", "middle"], "until": {"steps": 8}},
        {"name": "rows", "freeze": [{"kind": "bias"}, {"rows": "middle.weight[:2]"}]},
    ]
}
CASES = {
    "thaw": {"freeze": THAW, "train": TRAIN | SAVED},
    "lisa": {"freeze": {"method": "lisa", "period": 4, "blocks": 1}},
    "norms of all": {
        "model": {"layers": [LAYERS[0], NORM, *LAYERS[1:]]},
        "train": TRAIN | {"sync_norm": True},
    },
    "average, bfloat16, norms of each": {
        "model": {"layers": [LAYERS[0], NORM, *LAYERS[1:]]},
        "train": TRAIN | {"average": {"decay": 0.8}, "precision": "bfloat16"},
        "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
    },
    "a block that is read from outside": {
        "model": {"layers": [{"type": "import", "path": "outside_nets:Outside"}]},
        "train": TRAIN | {"steps": 6},
    },
}
parametrized = pytest.mark.parametrize


def written(tmp_path, name, parallel, changes):
    config = {
        "seed": 0,
        "model": {"layers": LAYERS},
        "data": {
            # 48 for training, and three batches for evaluation: one is left over for all
            "source": {"type": "random", "samples": 68, "features": 4, "targets": 3},
            "split": {"validation": 0.294},
        },
        "task": {"type": "regression"},
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "train": TRAIN,
        "tracking": {"to": [], "report": False},
    } | changes
    config["train"] = config["train"] | {"parallel": parallel}
    place = tmp_path / f"{name}.yaml"
    place.write_text(yaml.safe_dump(config))
    return place


def tensors(run):
    return {
        (path.parent.name, path.name, name): tensor
        for path in sorted((run / "checkpoints").glob("step-*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def furthest(some, others):
    assert some.keys() == others.keys()
    return max(float((t.double() - others[n].double()).abs().max()) for n, t in some.items())


def figures(run):
    # Of blocks nothing is told with shards; a norm is added up in another order.
    hidden = ("time/", "memory/", "freeze/gradient", "freeze/update", "train/grad_norm")
    return [
        {key: value for key, value in line.items() if not key.startswith(hidden)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.distributed
@parametrized("changes", CASES.values(), ids=CASES)
def test_sharded_weights_end_as_whole_ones_with_the_same_proof(tmp_path, ranks, changes):
    for parallel in ("ddp", "fsdp2"):
        config = written(tmp_path, parallel, parallel, changes)
        run = tmp_path / f"run-{parallel}"
        codes, told = ranks(2, config, "--trust", "outside_nets", "--run-dir", run)
        assert codes == [0, 0], told
    assert "each holds a part of" in told[0]
    whole, sharded = tmp_path / "run-ddp", tmp_path / "run-fsdp2"
    proofs = [json.loads((run / "freeze_proof.json").read_text()) for run in (whole, sharded)]
    assert proofs[0] == proofs[1]
    # Two addends: their sum has the same bits, whoever adds them.
    assert furthest(tensors(whole), tensors(sharded)) == 0
    assert figures(whole) == figures(sharded)
    norms = [[line.get("train/grad_norm", 0) for line in read_metrics(run / "metrics.jsonl")]
             for run in (whole, sharded)]  # fmt: skip
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sharded_run_goes_on_with_one_and_four_processes(tmp_path, ranks):
    changes = {"freeze": THAW, "train": TRAIN | SAVED, "model": {"layers": LAYERS[:3] + LAYERS[4:]}}
    config = written(tmp_path, "config", "fsdp2", changes)
    codes, told = ranks(2, config, "--run-dir", tmp_path / "two")
    assert codes == [0, 0], told
    for world in (1, 4):
        other = tmp_path / f"then-{world}"
        shutil.copytree(tmp_path / "two", other)
        for step in (12, 15, 16, 20, 24):
            shutil.rmtree(other / "checkpoints" / f"step-{step:08}", ignore_errors=True)
        codes, told = ranks(world, config, "--run-dir", other)
        assert codes == [0] * world, told
        assert "goes on after step 8" in told[0]
        # The same samples in the same order: only the order of additions differs.
        distance = furthest(tensors(tmp_path / "two"), tensors(other))
        assert distance == 0 if world < 4 else distance < 1e-6


@pytest.mark.slow
@pytest.mark.distributed
def test_nan_in_the_part_of_one_process_ends_all_in_the_same_step(tmp_path, ranks):
    layers = [{"type": "import", "path": "fault_nets:Poisoned",
               "args": {"limit": 1.0, "fault": "row"}}]  # fmt: skip
    found = {}
    for parallel in ("ddp", "fsdp2"):
        config = written(tmp_path, parallel, parallel, {"model": {"layers": layers}})
        run = tmp_path / f"run-{parallel}"
        codes, told = ranks(2, config, "--trust", "fault_nets", "--run-dir", run)
        assert codes == [3, 3], told
        found[parallel] = told[0].splitlines()[-2:]
    assert "in step" in " ".join(found["ddp"])
    assert found["fsdp2"] == [line.replace("ddp", "fsdp2") for line in found["ddp"]]


@pytest.mark.slow
@pytest.mark.distributed
def test_auto_shards_where_memory_is_short_and_then_refuses_what_does_not_go(tmp_path, ranks):
    config = written(tmp_path, "config", "auto", {"optimizer": {"type": "Adafactor", "lr": 0.01}})
    codes, told = ranks(2, config, "--run-dir", tmp_path / "run", LOCAL_WORLD_SIZE="1000000000000")
    assert codes == [2, 2], told
    assert "Adafactor needs whole tensors" in told[0]
    codes, told = ranks(2, config, "--run-dir", tmp_path / "run")
    assert codes == [0, 0], told
    assert "each holds a part of" not in told[0]


ALIVE = """
import json, os, sys, weakref
from pathlib import Path
from torch.distributed.tensor import DTensor
import finetune
import finetune.train.wire
from finetune.config.loader import load_config
from finetune.train.ranks import shards

shard, full_tensor, alive, counts = shards.shard, DTensor.full_tensor, set(), []

def counted(self, **others):
    found = full_tensor(self, **others)
    number = len(counts)
    alive.add(number)
    weakref.finalize(found.untyped_storage(), alive.discard, number)
    counts.append(len(alive))
    return found

def watched(model, *others):
    wholes = [weakref.ref(one.untyped_storage()) for one in model.parameters()]
    found = shard(model, *others)
    left.append(sum(one() is not None for one in wholes))
    return found

left = []
shards.shard = watched
DTensor.full_tensor = counted
finetune.build_trainer(load_config(sys.argv[1]), sys.argv[2]).fit(quiet=True)
told = {"gathered": len(counts), "peak": max(counts), "left": left}
Path(f"alive.{os.environ['RANK']}").write_text(json.dumps(told))
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_whole_tensors_go_once_they_are_sharded_and_a_checkpoint_takes_one_at_a_time(
    tmp_path, two_ranks
):
    train = TRAIN | SAVED | {"steps": 8, "average": {"decay": 0.8}}
    config = written(tmp_path, "config", "fsdp2", {"freeze": ["body"], "train": train})
    both = two_ranks(config, tmp_path / "run", program=("-c", ALIVE))
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    for rank in range(2):
        alive = json.loads((tmp_path / f"alive.{rank}").read_text())
        assert alive["left"] == [0]
        # Two checkpoints of the weights, averages and two states of each of four parameters.
        assert alive["gathered"] >= 2 * 4 * 4
        # Each of gloo's two threads holds the tensor that it gathered until it takes the next.
        assert alive["peak"] <= 1 + 2


@parametrized(
    ("changes", "reason"),
    [
        ({"optimizer": {"type": "Adafactor", "lr": 0.01}}, "Adafactor needs whole tensors"),
        ({"train": {"batch_size": 5}}, "has 1 of 16 samples"),
        ({"train": {"compile": True}}, "a compiled network is not sharded"),
        ({"train": {"precision": "float16"}}, "the loss scale of float16"),
        ({"data": {"source": {"type": "random"}, "on_error": "skip"}}, "leave the other processes"),
    ],
    ids=["optimizer", "last step", "compile", "float16", "skipped samples"],
)
def test_what_sharded_weights_do_not_go_with_is_refused(small_config, changes, reason):
    train = {"steps": 2, "batch_size": 8, "parallel": "fsdp2"} | changes.get("train", {})
    config = small_config(**changes | {"train": train})
    with pytest.raises(FinetuneError, match=reason):
        refuse_unsharded(config, Ranks(0, 2), 16)
    refuse_unsharded(small_config(train={"steps": 2, "parallel": "fsdp2"}), Ranks(0, 2), 64)


def test_a_single_process_shards_nothing(small_config):
    config = small_config(train={"steps": 2, "parallel": "fsdp2"})
    is_wanted, lines = wants_shards(config, build_parts(config), Link(Ranks()))
    assert (is_wanted, len(lines)) == (False, 1)
    assert "one process shares its weights with no other" in lines[0]
    assert torch.distributed.is_initialized() is False
