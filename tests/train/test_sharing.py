"""Several processes train the run of one: the same bits, one stop for all, and a word on faults."""

import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from torch.distributed import TCPStore

from finetune.runs.kept import Checkpoints
from finetune.tracking.json_lines import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TORTURE = Path(__file__).parents[1] / "torture"
BASE = {
    "seed": 0,
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "act", "type": "Tanh"},
            {"name": "drop", "type": "Dropout", "p": 0.25},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 44, "features": 4, "targets": 3},
        "split": {"validation": 0.25},
    },
    "task": {"type": "regression"},
    "optimizer": {"type": "AdamW", "lr": 0.05},
    "train": {"steps": 40, "batch_size": 8, "micro_batch": 4, "log_every": 1},
    "tracking": {"to": [], "report": False},
}
SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9}
PHASES = {
    "phases": [
        {"name": "head", "freeze": ["body*", "norm*"], "until": {"steps": 12}},
        {"name": "rows", "freeze": ["norm*", {"rows": "body.weight[:2]"}]},
    ]
}


def ended(processes):
    told = [process.communicate(timeout=400)[1] for process in processes]
    return [process.returncode for process in processes], told


def written(tmp_path, **changes):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(BASE | changes))
    return config


def checkpoints(run):
    """Return the bytes of all tensors of all checkpoints of a run."""
    return {
        (path.parent.name, path.name, name): (tensor.dtype, tensor.numpy().tobytes())
        for path in sorted((run / "checkpoints").glob("step-*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def figures(run):
    # Several processes have no metrics of training samples: each sees a part of them.
    hidden = ("time/", "memory/", "train/mae")
    return [
        {key: value for key, value in line.items() if not key.startswith(hidden)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def wait_for(path, processes):
    until = time.monotonic() + 300
    while not path.exists():
        assert all(process.poll() is None for process in processes), "ended too early"
        assert time.monotonic() < until
        time.sleep(0.02)


def slowly(tmp_path, freeze=None):
    slow = {"name": "slow", "type": "import", "path": "slow_steps:Slowly",
            "args": {"seconds": 0.02, "started": str(tmp_path / "began")}}  # fmt: skip
    train = BASE["train"] | {"checkpoint": {"every": {"steps": 2}}}
    model = {"layers": [slow, *BASE["model"]["layers"]]}
    frozen = {"phases": [{"name": "all", "freeze": ["norm*"]}]}
    return written(tmp_path, model=model, train=train, freeze=frozen, cache="off")


def losses(run):
    return [line["train/loss"] for line in figures(run) if "train/loss" in line]


def assert_close(found, expected):
    """Compare checkpoints; rounding moves gradients, and so the optimizer's state, more."""
    assert found.keys() == expected.keys()
    for key, (dtype, content) in found.items():
        kind = str(dtype).removeprefix("torch.")
        now, then = (np.frombuffer(one, kind) for one in (content, expected[key][1]))
        limit = 1e-6 if key[1] == "weights.safetensors" else 1e-5
        np.testing.assert_allclose(now, then, rtol=0, atol=limit, err_msg=str(key))


def test_batch_norms_over_two_ranks_are_those_of_one_process(tmp_path, ranks):
    # 24 samples in steps of 10: the last passes have two samples, one for each process. SGD: where
    # a gradient is zero but for rounding, AdamW would make a step of it.
    data = {"source": BASE["data"]["source"] | {"samples": 32}, "split": {"validation": 0.25}}
    layers = [one for one in BASE["model"]["layers"] if one["name"] != "drop"]
    changes = {
        "data": data,
        "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
        "model": {"layers": layers},
    }
    train = {"steps": 20, "batch_size": 10, "log_every": 1, "sync_norm": True}
    one, two = tmp_path / "one", tmp_path / "two"
    config = written(tmp_path, train=train | {"micro_batch": 8}, **changes)
    codes, told = ranks(1, config, "--run", one)
    assert codes == [0], told
    config = written(tmp_path, train=train | {"micro_batch": 4}, **changes)
    codes, told = ranks(2, config, "--run", two)
    assert codes == [0, 0], told
    assert "batch norms over the samples of all 2 processes in a pass: 'norm'" in told[0]
    assert "those of the first process" not in told[0]
    found = checkpoints(two)
    assert_close(found, checkpoints(one))
    assert any("running_var" in name for _, _, name in found)
    losses = [
        [line["train/loss"] for line in figures(run) if "train/loss" in line] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_three_and_four_ranks_end_as_one_process_but_for_rounding(tmp_path, ranks):
    """Four micro-batches of two samples: of three ranks, two wait for the last one."""
    train = BASE["train"] | {"micro_batch": 2}
    config = written(tmp_path, freeze=PHASES, optimizer=SGD, train=train)
    for world in (1, 3, 4):
        codes, told = ranks(world, config, "--run", tmp_path / str(world))
        assert codes == [0] * world, told
    for world in ("3", "4"):
        assert_close(checkpoints(tmp_path / world), checkpoints(tmp_path / "1"))
        assert losses(tmp_path / world) == pytest.approx(losses(tmp_path / "1"), abs=1e-6)


def test_memory_out_on_one_rank_cuts_the_step_on_all(tmp_path, ranks):
    def net(rank):
        arguments = {"limit": 2, "rank": rank}
        return {"layers": [{"type": "import", "path": "fault_nets:HungryRank", "args": arguments}]}

    train, trust = BASE["train"] | {"steps": 6}, ("--trust", "fault_nets")
    config = written(tmp_path, model=net("1"), train=train, cache="off")
    codes, told = ranks(2, config, *trust, "--run", tmp_path / "two")
    assert codes == [0, 0], told
    assert "out of memory with 4 samples in a pass: 2 from now on" in told[0]
    config = written(tmp_path, model=net(None), train=train, cache="off")
    codes, told = ranks(1, config, *trust, "--run", tmp_path / "one")
    assert codes == [0], told
    assert_close(checkpoints(tmp_path / "two"), checkpoints(tmp_path / "one"))


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(
    tmp_path, two_ranks, command_line, monkeypatch
):
    monkeypatch.syspath_prepend(str(TORTURE))
    config = slowly(tmp_path)
    trust = ("--trust", "slow_steps")
    assert command_line("train", config, *trust, "--run", tmp_path / "whole").code == 0
    processes = two_ranks(config, *trust, "--run", tmp_path / "cut")
    wait_for(tmp_path / "cut" / "checkpoints" / "step-00000006", processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, told = ended(processes)
    assert codes == [75, 75], told
    assert "stopped by SIGTERM after step" in told[0]
    assert command_line("train", config, *trust, "--run", tmp_path / "cut").code == 0
    last = "step-00000040"
    whole, cut = (checkpoints(tmp_path / run) for run in ("whole", "cut"))
    assert {k: v for k, v in cut.items() if k[0] == last} == {
        k: v for k, v in whole.items() if k[0] == last
    }
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def test_a_killed_rank_ends_the_others_and_two_go_on(tmp_path, two_ranks):
    config = slowly(tmp_path)
    command = (config, "--trust", "slow_steps", "--run", tmp_path / "run")
    processes = two_ranks(*command)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000006", processes)
    processes[1].kill()
    codes, told = ended(processes)
    assert codes[0] == 2, told
    assert "another process of the run has ended or does not answer" in told[0]
    shutil.copytree(tmp_path / "run", tmp_path / "as-it-was")
    codes, told = ended(two_ranks(*command))
    assert codes == [0, 0], told
    assert "goes on after step" in told[0]


def test_a_rank_that_is_stopped_ends_the_others_within_the_limit(tmp_path, ranks):
    stopped = {"rank": "1", "step": 7, "stopped": str(tmp_path / "stopped")}
    net = {"layers": [{"type": "import", "path": "fault_nets:StoppedRank", "args": stopped}]}
    # Longer than a step may take on a machine that is busy.
    train = BASE["train"] | {"hang_timeout_s": 40, "checkpoint": {"every": {"steps": 2}}}
    config = written(tmp_path, model=net, train=train, cache="off")
    command = (config, "--trust", "fault_nets", "--run")
    codes, told = ranks(2, *command, tmp_path / "cut")
    assert codes[0] in (1, 2), told
    assert codes[1] == -signal.SIGKILL, told
    assert "does not answer" in told[0] or "no progress for 40 s" in told[0]
    codes, told = ranks(2, *command, tmp_path / "cut")
    assert codes == [0, 0], told
    assert "goes on after step 6" in told[0]
    codes, told = ranks(1, *command, tmp_path / "whole")
    assert codes == [0], told
    assert last(tmp_path / "cut") == last(tmp_path / "whole")


def test_a_full_disk_of_the_first_rank_ends_both_and_they_go_on_later(tmp_path, ranks):
    """AdamW's state grows in the second phase, so the save of step 16 is the first too large."""
    phases = [
        {"name": "head", "train": ["head"], "until": {"steps": 14}},
        {"name": "all", "freeze": ["norm*"]},
    ]
    source = BASE["data"]["source"] | {"features": 64}
    wide = [BASE["model"]["layers"][0] | {"out_features": 256}, *BASE["model"]["layers"][1:]]
    train = BASE["train"] | {"checkpoint": {"every": {"steps": 4}, "keep_last": 99}}
    config = written(
        tmp_path,
        data=BASE["data"] | {"source": source},
        model={"layers": wide},
        freeze={"phases": phases},
        train=train | {"log_every": 40},
        cache="off",
    )
    run = tmp_path / "full"
    codes, told = ranks(2, config, "--run", run, most_bytes=100_000)
    assert codes == [2, 2], told
    assert "step-00000016: cannot save: " in told[0]
    assert "File too large" in told[0]
    assert "Traceback" not in told[0] + told[1]
    kept = Checkpoints(run / "checkpoints", keep_last=99)
    assert [path.name for path in kept.all()][-1] == "step-00000014"
    assert all(kept.fault(path) is None for path in kept.all())
    assert kept.orphans() == []
    codes, told = ranks(2, config, "--run", run)
    assert codes == [0, 0], told
    codes, told = ranks(1, config, "--run", tmp_path / "whole")
    assert codes == [0], told
    assert last(run) == last(tmp_path / "whole")


def last(run):
    """Return the tensors of the last checkpoint."""
    return {key: one for key, one in checkpoints(run).items() if key[0] == "step-00000040"}


def test_a_restart_does_not_take_the_addresses_of_the_dead(tmp_path, ranks):
    """`torchrun --max-restarts` keeps one store of addresses for all starts of its ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    of_torchrun = {
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "LOCAL_WORLD_SIZE": "2",
    }
    config = written(tmp_path, train=BASE["train"] | {"steps": 2})
    for start in ("0", "1"):
        run = tmp_path / start
        codes, told = ranks(
            2, config, "--run", run, TORCHELASTIC_RESTART_COUNT=start, **of_torchrun
        )
        assert codes == [0, 0], told
        # Whether the ranks of this start would meet an old address depends on which is faster.
        assert {key.rpartition("finetune/")[2].partition("/")[0] for key in store.list_keys()} == {
            str(number) for number in range(int(start) + 1)
        }


def test_nan_on_one_rank_ends_all_at_the_same_step(tmp_path, ranks):
    poisoned = {"type": "import", "path": "fault_nets:Poisoned", "args": {"limit": 1.5}}
    config = written(tmp_path, model={"layers": [poisoned]}, cache="off")
    codes, told = ranks(2, config, "--trust", "fault_nets", "--run", tmp_path / "run")
    assert codes == [3, 3], told
    assert "the loss is nan in step" in told[0]
    assert "rank 1: " in told[1]


UNDER_WAY = """
import sys
from contextlib import nullcontext
import torch
from finetune.distributed import Link
from finetune.process import for_one_task
with {context}:
    Link.connect()
    for _ in range(200):
        torch.distributed.all_reduce(torch.ones(1000), async_op=True)
    sys.exit({code})
"""


@pytest.mark.parametrize(
    ("context", "code"), [("for_one_task()", 0), ("for_one_task()", 3), ("nullcontext()", 0)]
)
def test_a_process_whose_messages_are_under_way_at_its_end_keeps_its_exit_code(
    two_ranks, context, code
):
    """Threads of gloo abort a process if they let go of a tensor while Python takes itself down."""
    codes, told = ended(two_ranks(program=("-c", UNDER_WAY.format(context=context, code=code))))
    assert (codes, "terminate called" in "".join(told)) == ([code, code], False), told


def cut_back(run, copy, step):
    """Copy a run as it was after a step."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def test_a_run_with_lisa_goes_on_with_two_processes_and_then_with_one(
    tmp_path, ranks, command_line
):
    layers = [{"name": f"layer{n}", "type": "Linear", "out_features": 6} for n in range(4)]
    train = BASE["train"] | {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}
    model = {"layers": [*layers, BASE["model"]["layers"][-1]]}
    lisa = {"method": "lisa", "period": 4, "blocks": 1}
    config = written(tmp_path, freeze=lisa, model=model, train=train)
    one, cut, two = (tmp_path / name for name in ("one", "cut", "two"))
    assert command_line("train", config, "--run", one).code == 0
    cut_back(one, cut, 10)
    codes, told = ranks(2, config, "--run", cut)
    assert codes == [0, 0], told
    assert "goes on after step 10" in told[0]
    cut_back(cut, two, 30)
    assert command_line("train", config, "--run", two).code == 0
    whole = checkpoints(one)
    assert len({name for step, _, name in whole}) > 4
    assert checkpoints(cut) == whole
    assert checkpoints(two) == whole
    assert figures(two) == figures(cut) == figures(one)


def test_two_processes_fill_one_store_and_read_what_the_other_stored(
    tmp_path, ranks, command_line, monkeypatch
):
    # Wide enough that caching saves time on a busy machine too.
    wide = [{"name": f"wide{n}", "type": "Linear", "out_features": 1024} for n in range(3)]
    changes = {
        "model": {"layers": [*wide, BASE["model"]["layers"][-1]]},
        "freeze": {"phases": [{"name": "head", "train": ["head"]}]},
    }
    plain, two, warm = (tmp_path / name for name in ("plain", "two", "warm"))
    config = written(tmp_path, cache="off", **changes)
    assert command_line("train", config, "--run", plain).code == 0
    config = written(tmp_path, **changes)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "store"))
    codes, told = ranks(2, config, "--run", two, FINETUNE_CACHE=str(tmp_path / "store"))
    assert codes == [0, 0], told
    done = command_line("train", config, "--run", warm)
    assert done.code == 0, done.err
    # 40 steps of 8 samples. Two processes: the first of them counts its own half.
    assert answered(two) > 100
    assert answered(warm) > 300
    assert checkpoints(two) == checkpoints(warm) == checkpoints(plain)
    assert figures(two) == figures(warm) == figures(plain)


def answered(run):
    lines = read_metrics(run / "metrics.jsonl")
    return max(line.get("time/cache_answered", 0) for line in lines)


def test_what_one_rank_alone_has_to_say_is_told_with_its_number(tmp_path, ranks, drawn_images):
    for number, path in enumerate(drawn_images):
        if number % 4 < 2:
            path.write_bytes(path.read_bytes()[:60])
    config = written(
        tmp_path,
        data={"source": {"type": "imagefolder", "path": "images"}, "on_error": "skip"},
        model={
            "layers": [
                {"name": "flat", "type": "Flatten"},
                {"name": "norm", "type": "BatchNorm1d"},
                {"name": "head", "type": "Linear", "out_features": "classes"},
            ]
        },
        task={"type": "classification"},
        train=BASE["train"] | {"steps": 4},
    )
    codes, told = ranks(2, config, "--run", tmp_path / "run")
    assert codes == [0, 0], told
    assert "\na train sample is skipped (data.on_error: skip): " in told[0]
    # Each process counts what it has met itself.
    assert re.search(r"\nrank 1: \d+ of 32 train samples were skipped", told[0])
    assert "rank 1: processes" not in told[0]
    assert told[0].count("a batch norm that trains normalises over its own micro-batch") == 1
    assert told[1] == ""
