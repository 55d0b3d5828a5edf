"""Kill a run at random moments, and start it again each time, until it is done.

python killed_run.py CONFIG RUN ROUNDS SEED: prints a JSON line with what it saw. Each attempt is a
fork of this process, which has loaded torch, but has never run it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from forking import load_what_is_needed_for

from finetune.activations import estimate
from finetune.config.loader import load_config
from finetune.runs.kept import Checkpoints
from finetune.train.wire import build_trainer

# However little it saves: what is to be met is a kill while rows are written.
estimate._READ_BYTES_PER_S, estimate._READ_S_PER_SAMPLE = 1e18, 0.0
estimate._WORTH_TRYING, estimate._TRYING_PASSES, estimate._LEAST_SHARE = 0, 0, 0.0


def attempt(config: Path, run: Path) -> int:
    """Begin or go on with the run in a process of its own; return its id."""
    if (pid := os.fork()) == 0:
        try:
            build_trainer(load_config(config), run).fit()
        except BaseException as error:  # noqa: BLE001 - the process ends with it
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def num_lines(path: Path) -> int:
    """Count the lines that the run has told."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(pid: int, run: Path, draw: random.Random) -> int | None:
    """Kill after a few more steps, somewhere in one; return the exit status if it ended before."""
    before, more = num_lines(run / "metrics.jsonl"), draw.randrange(-1, 7)
    while num_lines(run / "metrics.jsonl") <= before + more:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def newest(run: Path) -> int:
    """Return the step of the newest whole checkpoint, or -1."""
    path, _ = Checkpoints(run / "checkpoints", keep_last=1).newest_valid()
    return -1 if path is None else int(path.name[5:])


def main(config: Path, run: Path, rounds: int, seed: int) -> None:
    """Go through all rounds, then let the run end."""
    if rounds > 0:
        loaded = run.with_name("loaded")
        load_what_is_needed_for(lambda: build_trainer(load_config(config), loaded).fit())
    draw, kills, steps, status = random.Random(seed), 0, [newest(run)], None
    while kills < rounds and status is None:
        status = kill_after(attempt(config, run), run, draw)
        kills += status is None
        steps.append(newest(run))
    if status is None:
        status = os.waitstatus_to_exitcode(os.waitpid(attempt(config, run), 0)[1])
    print(json.dumps({"kills": kills, "newest": steps, "status": status}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
