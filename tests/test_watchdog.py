"""A watchdog ends what hangs, whatever becomes of its own output, and nothing that only paused."""

import os
import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, sys, time
from finetune.watchdog import Watchdog
"""


def start(code, **keywords):
    keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | keywords
    return subprocess.Popen([sys.executable, "-c", HEAD + code], **keywords)


HANGS = """
def wait_for_nothing():
    time.sleep(60)

{before}
with Watchdog(0.5).watching():
    wait_for_nothing()
"""


def test_what_hangs_ends_with_its_stack():
    out, err = (process := start(HANGS.format(before=""))).communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("no progress for 0.5 s, ends with its stacks:\n")
    assert "wait_for_nothing" in err


UNHEARD = {
    "closed by Python": "sys.stderr.close()",
    "closed below": "os.close(2)",
    "none at all": "sys.stderr = None",
    "no stream": "sys.stderr = object()",
    "full": "sys.stderr = open('/dev/full', 'w')",
    "of text alone": "import io; sys.stderr = io.StringIO()",
}


@pytest.mark.parametrize("before", UNHEARD.values(), ids=UNHEARD)
def test_it_ends_also_where_nobody_can_be_told(before):
    if "/dev/full" in before and not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no such device here")
    process = start(HANGS.format(before=before))
    process.communicate(timeout=120)
    assert process.returncode == 1


def test_it_ends_also_where_a_full_pipe_is_not_read():
    """Python waits for room in the pipe, with a lock that the watchdog wants too."""
    before = "import finetune.watchdog as w; w._LONGEST_TELLING_S = 0.5\n"
    code = HANGS.format(before=before).replace("time.sleep(60)", "sys.stderr.write('x' * 10**7)")
    process = start(code)
    try:
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
        process.communicate()


def test_a_watchdog_that_cannot_watch_ends_the_process():
    before = "Watchdog._comes_to_hang = lambda *a: 1 / 0"
    process = start(HANGS.format(before=before))
    process.communicate(timeout=120)
    assert process.returncode == 1


BEATS = """
watchdog = Watchdog(1.0)
with watchdog.watching():
    print("ready", flush=True)
    for _ in range({times}):
        time.sleep(0.1)
        {beat}
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("beat", ["watchdog.beat()", "pass"])
def test_a_pause_does_not_count(beat):
    process = start(BEATS.format(times=5, beat=beat))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "done\n"), err


@pytest.mark.slow
def test_what_hangs_after_a_pause_still_ends():
    process = start(BEATS.format(times=600, beat="pass"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no progress for 1 s" in err


@pytest.mark.slow
def test_beats_keep_it_quiet_and_patience_may_be_endless():
    process = start(BEATS.format(times=25, beat="watchdog.beat()"))
    assert process.communicate(timeout=120)[0] == "ready\ndone\n"
    endless = start(BEATS.replace("1.0", "1e300").format(times=1, beat="pass"))
    assert endless.communicate(timeout=120)[0] == "ready\ndone\n"
