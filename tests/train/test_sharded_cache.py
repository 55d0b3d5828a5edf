"""The activation cache answers processes that hold a part of the weights each (FSDP2)."""

import json

import pytest
import yaml
from safetensors.torch import load_file

WIDE = [{"name": f"wide{n}", "type": "Linear", "out_features": 512} for n in range(3)]
LAYERS = [
    *WIDE,
    {"name": "drop", "type": "Dropout", "p": 0.25},
    {"name": "head", "type": "Linear", "out_features": 3},
]
THAW = [
    {"name": "head", "train": ["head"], "until": {"steps": 24}},
    {"name": "top", "train": ["head", "wide2"]},
]
HEAD, TOP, BOTTOM = 512 * 3 + 3, 512 * 512 + 512, 4 * 512 + 512
"""Numbers of a block."""

ALWAYS = """
import json, os, runpy, sys
from pathlib import Path
import finetune.activations.estimate as estimate

# As the fixture `always`: whatever the cache saves on a busy machine.
estimate._READ_BYTES_PER_S = 1e18
for name in ("_READ_S_PER_SAMPLE", "_WORTH_TRYING", "_TRYING_PASSES", "_LEAST_SHARE"):
    setattr(estimate, name, 0)
"""

COUNTING = (
    ALWAYS
    + """
import torch.distributed.fsdp._fully_shard._fsdp_param_group as groups
import finetune
from finetune.config.loader import load_config

rank, gather, gathered = os.environ["RANK"], groups.foreach_all_gather, []

def counted(params, *rest):
    gathered.append(sum(one._orig_size.numel() for one in params))
    return gather(params, *rest)

def damage():
    for path in Path(os.environ["FINETUNE_CACHE"]).rglob("rows-*"):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 8]))

groups.foreach_all_gather = counted
told = {}
for name in sys.argv[1].split(","):
    if name == "damaged" and rank == "0":
        damage()
    trainer = finetune.build_trainer(load_config(f"{name}.yaml"), name)
    step, steps = trainer.step, []

    def counting(window):
        before = len(gathered)
        stats = step(window)
        steps.append(gathered[before:])
        return stats

    trainer.step = counting
    trainer.fit(quiet=True)
    told[name] = [steps, trainer.cache.statistics.as_data()]
Path(f"told.{rank}").write_text(json.dumps(told))
os._exit(0)
"""
)


def written(tmp_path, name, parallel="fsdp2", **cache):
    config = {
        "seed": 0,
        "model": {"layers": LAYERS},
        "data": {
            "source": {"type": "random", "samples": 68, "features": 4, "targets": 3},
            "split": {"validation": 0.294},
        },
        "task": {"type": "regression"},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "freeze": {"phases": THAW},
        "cache": cache,
        "train": {
            "steps": 48,
            "batch_size": 8,
            "micro_batch": 4,
            "parallel": parallel,
            "hang_timeout_s": 60,
        }
        | {"checkpoint": {"every": {"steps": 16}, "keep_last": 100}},
        "tracking": {"to": [], "report": False},
    }
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))


def tensors(run):
    return {
        (path.parent.name, path.name, name): (tensor.shape, tensor.numpy().tobytes())
        for path in sorted((run / "checkpoints").glob("step-*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_the_cache_changes_no_bit_and_spares_the_gathering_of_frozen_blocks(
    tmp_path, two_ranks, monkeypatch
):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "store"))
    written(tmp_path, "off", use="off")
    for name in ("cold", "warm", "damaged"):
        written(tmp_path, name)
    for name, parallel in (("rounded", "ddp"), ("rounded-shards", "fsdp2")):
        written(tmp_path, name, parallel, store_dtype="float16")
    names = ["off", "cold", "warm", "damaged", "rounded", "rounded-shards"]
    both = two_ranks(",".join(names), program=("-c", COUNTING))
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    plain = tensors(tmp_path / "off")
    for name in ("cold", "warm", "damaged"):
        assert tensors(tmp_path / name) == plain, name
    assert tensors(tmp_path / "rounded") == tensors(tmp_path / "rounded-shards") != plain
    for rank in range(2):
        runs = json.loads((tmp_path / f"told.{rank}").read_text())
        # What trains, forward and backward; of the blocks that are frozen nothing.
        head, top = runs["warm"][0][:24], runs["warm"][0][24:]
        assert all(set(steps) == {HEAD} for steps in head)
        assert all(set(steps) == {HEAD, TOP} and steps.count(TOP) == 2 for steps in top)
        assert runs["warm"][1]["recorded"] == runs["warm"][1]["whole"] == 0
        # A sample runs once at most in each phase: in its first epoch of six steps.
        cold = [BOTTOM in steps for steps in runs["cold"][0]]
        assert any(cold[:6])
        assert not any(cold[6:24] + cold[30:])
        assert all(BOTTOM in steps for steps in runs["off"][0])
        # Of one row: both processes run the steps in which it comes first.
        assert 0 < sum(BOTTOM in steps for steps in runs["damaged"][0]) < 4
        assert runs["rounded-shards"][1]["answered"]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sample_that_cannot_be_read_for_a_trial_ends_both_and_each_tells_why(
    tmp_path, two_ranks, monkeypatch, drawn_images
):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "store"))
    # In the first micro-batch of rank 1, which it tries the cache with.
    drawn_images[31].write_bytes(drawn_images[31].read_bytes()[:60])
    layers = [{"name": "flat", "type": "Flatten"}, WIDE[0]]
    config = {
        "seed": 1,
        "model": {
            "layers": [*layers, {"name": "head", "type": "Linear", "out_features": "classes"}]
        },
        "data": {"source": {"type": "imagefolder", "path": "images"}},
        "task": {"type": "classification"},
        "freeze": [WIDE[0]["name"]],
        "optimizer": {"type": "SGD", "lr": 0.01},
        "train": {"steps": 20, "batch_size": 16, "micro_batch": 8, "parallel": "fsdp2"},
        "tracking": {"to": [], "report": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = "runpy.run_module('finetune', run_name='__main__', alter_sys=True)"
    both = two_ranks("train", "config.yaml", program=("-c", ALWAYS + command))
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], told
    assert "another process of the run has failed" in told[0]
    assert "rank 1: cannot read the image" in told[1]


NO_MEMORY = (
    ALWAYS
    + """
import finetune.activations.rank_agreement as ranks
import finetune.gathering as gathering

def gather(self):
    raise MemoryError

attempted = ranks.agreed_rows

def agreed_rows(*given, **named):
    if os.environ["RANK"] == "1":
        gathering.GatheredModule.gather = gather
    return attempted(*given, **named)

import finetune.activations.forward as forward
forward.agreed_rows = agreed_rows
runpy.run_module("finetune", run_name="__main__", alter_sys=True)
"""
)


@pytest.mark.slow
@pytest.mark.distributed
def test_memory_that_runs_out_where_all_weights_are_gathered_ends_both_at_once(
    tmp_path, two_ranks, monkeypatch
):
    """Rank 1 must not send a message: rank 0 waits for weights, and would take it for them."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "store"))
    written(tmp_path, "config")
    both = two_ranks("train", "config.yaml", program=("-c", NO_MEMORY))
    # Well below `hang_timeout_s`, which would end a rank that waits.
    told = [process.communicate(timeout=50)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], told
    assert "memory has run out where each process holds all weights" in told[1]
    assert told[1].count("Traceback") == 0
    assert "another process" in told[0]
