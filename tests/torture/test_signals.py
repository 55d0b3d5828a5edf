"""Signals and hangs as a shell or a cluster meets them: real processes, real exit codes."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SLOW = {"name": "slow", "type": "import", "path": "slow_steps:Slowly"}


def slow_model(tmp_path, seconds):
    layer = SLOW | {"args": {"seconds": seconds, "started": str(tmp_path / "started")}}
    head = {"name": "head", "type": "Linear", "out_features": 3}
    return {"layers": [layer, head]}


def wait_for(path, process, timeout_s=120):
    until = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def ended(process, timeout_s=120):
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def last_weights(run):
    return load_file(max((run / "checkpoints").glob("step-*")) / "weights.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_with_75_and_the_same_command_ends_the_run(
    tmp_path, written, started, number
):
    train = ["train", written(model=slow_model(tmp_path, 0.1)), "--trust", "slow_steps"]
    assert ended(started(*train, "--run", "whole"))[0] == 0
    (tmp_path / "started").unlink()
    process = started(*train, "--run", "cut")
    wait_for(tmp_path / "started", process)
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (75, ""), err
    assert f"stopped by {number.name} after step" in err
    assert "Traceback" not in err
    assert ended(started(*train, "--run", "cut"))[0] == 0
    assert_equal(last_weights(tmp_path / "cut"), last_weights(tmp_path / "whole"))
    code, _, err = ended(started(*train, "--run", "cut"))
    assert code == 0
    assert "already done" in err


def test_a_second_signal_ends_the_process_at_once(tmp_path, written, started):
    process = started("train", written(model=slow_model(tmp_path, 60)), "--trust", "slow_steps")
    wait_for(tmp_path / "started", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # at once: the same request, as a launcher passes it on
    time.sleep(1.5)
    assert process.poll() is None
    # Python hears of a signal that comes just before a long call only when the next one interrupts
    # the call: then this one is heard together with the first two, and it takes one more.
    for _ in range(10):
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
            break
    assert ended(process)[0] == -signal.SIGTERM


def test_a_signal_before_training_leaves_nothing_behind(tmp_path, written, started):
    args = {"seconds": 60, "started": str(tmp_path / "started")}
    hanging = {"type": "import", "path": "slow_steps:jitter", "args": args}
    config = written(data={"transforms": [hanging]})
    process = started("train", config, "--trust", "slow_steps", "--run", "run")
    wait_for(tmp_path / "started", process)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 130, err
    assert "interrupted by SIGTERM" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_the_whole_group_spares_the_loaders_processes(
    tmp_path, written, started, workers
):
    noise = {"type": "import", "path": "slow_steps:jitter", "random": True,
             "args": {"seconds": 0.01}}  # fmt: skip
    config = written(data={"transforms": [noise], "workers": workers})
    train = ["train", config, "--trust", "slow_steps"]
    assert ended(started(*train, "--run", "whole"))[0] == 0
    process = started(*train, "--run", "cut")
    wait_for(tmp_path / "cut" / "checkpoints" / "step-00000002", process)
    os.killpg(process.pid, signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75, err
    assert "Traceback" not in err
    assert ended(started(*train, "--run", "cut", "-o", "data.workers=0"))[0] == 0
    assert_equal(last_weights(tmp_path / "cut"), last_weights(tmp_path / "whole"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hung_loader_prints_its_stack_and_ends(written, started, workers):
    hanging = {"type": "import", "path": "slow_steps:hang_now_and_then", "random": True}
    process = started(
        "train", written(data={"transforms": [hanging], "workers": workers}),
        "--trust", "slow_steps", "-o", "train.hang_timeout_s=3",
    )  # fmt: skip
    code, _, err = ended(process)
    assert code == 1, err
    assert "no progress for 3 s, ends with its stacks" in err
    assert "wait_for_what_never_comes" in err
