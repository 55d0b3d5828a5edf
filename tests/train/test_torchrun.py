"""Runs under torchrun itself, whose processes share no memory and no order of their sets."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "torture"
sys.path.insert(0, str(TORTURE))

from torchrun import (  # noqa: E402
    Launch,
    children_of,
    command,
    digests,
    faults_of,
    killed_run,
    wait_until,
    write_config,
)
from two_nodes import trained, two_nodes  # noqa: E402

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture
def whole(tmp_path, command_line, monkeypatch):
    """Train a config in this process; return what is left at the end."""

    def train(config):
        monkeypatch.syspath_prepend(str(TORTURE))
        monkeypatch.chdir(tmp_path)
        done = command_line("train", config, "--trust", "slow_steps", "--run-dir", "whole")
        assert done.code == 0, done.err
        return digests(tmp_path / "whole")

    return train


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_torchrun_trains_the_bits_of_one_process(tmp_path, whole, parallel):
    # A checkpoint of each step: at each, the processes compare their bits.
    config = write_config(
        tmp_path, parallel=parallel, checkpoint={"every": {"steps": 1}, "keep_last": 100}
    )
    launch = Launch.of(tmp_path, command(tmp_path / "two", config))
    try:
        wait_until(lambda: False, launch)
    finally:
        launch.end()
    told = launch.log.read_text()
    assert launch.process.returncode == 0, told
    assert "processes: 2, which share the 2 micro-batches" in told
    assert ("each holds a part of" in told) == (parallel == "fsdp2")
    alone = whole(config)
    assert len(alone) > 80
    assert digests(tmp_path / "two") == alone


def test_ranks_that_are_killed_at_random_end_with_the_bits_of_one_process(tmp_path, whole):
    """`torchrun --max-restarts` starts both again after each kill of one."""
    config, draw = write_config(tmp_path), random.Random(5)
    kills = list(killed_run(tmp_path, tmp_path / "cut", config, draw, kills=3, restarts=3))
    assert kills
    assert digests(tmp_path / "cut") == whole(config)


@pytest.fixture
def cable():
    """Two nodes in network namespaces can be made here."""
    try:
        with two_nodes():
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and `ip`: {error}")


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize("cut_s", [10.0, None], ids=["for ten seconds", "for good"])
def test_two_nodes_whose_network_is_cut_end_with_the_bits_of_one_process(tmp_path, whole, cut_s):
    # Longer than a cut of ten seconds, and than a step on a machine that is busy.
    config, run = write_config(tmp_path, hang_timeout_s=40), tmp_path / "cut"
    codes = trained(tmp_path, run, config, cut_s)
    if cut_s is None:
        assert 0 not in codes
        assert faults_of(run) == []
        codes = trained(tmp_path, run, config, 0.0)
    assert codes == [0, 0]
    assert digests(run) == whole(config)


def test_the_end_of_a_launch_is_the_end_of_ranks_in_sessions_of_their_own(tmp_path):
    script = ["sh", "-c", 'setsid sh -c "echo; exec sleep 900" & wait']
    process = subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True)
    with process.stdout as alive:
        assert alive.read(1) == b"\n"
        ranks = children_of(process.pid)
        try:
            Launch(process, tmp_path / "told").end()
            # Whoever lives holds the other end.
            assert select.select([alive], [], [], 120)[0], "a rank lives on"
            assert alive.read() == b""
        finally:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
