"""A sweep on BBC News that is killed and shared by processes, and its seconds beside cold runs.

Several processes of `finetune sweep` share one study of `configs/bbc_news_sweep.yaml`. They are all
killed a number of times, every second time together with the trials that they train, and started
again. Counted is how often each trial has ended. Then some of its trials are trained again one by
one, each with an empty activation cache: what the sweep would have cost without it.

Run: `python benchmarks/sweeps.py FOLDER`, and `--help` for choices.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.loader import load_config
from finetune.sweep.claims import NUMBER
from finetune.sweep.outcome import MARK
from finetune.sweep.studies import Storage

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "bbc_news_sweep.yaml"


def main() -> None:
    """Run the sweep, count its trials, run some of them cold; print what was found."""
    args = _arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(args)
    began, spent = time.perf_counter(), _cpu_seconds()
    for number in range(args.kills):
        sweep.kill_after((number + 1) * sweep.wanted // (args.kills + 1), trials_too=number % 2)
    sweep.finish()
    seconds, cpu = time.perf_counter() - began, _cpu_seconds() - spent
    sweep.print_ended()
    # Of trials whose sweep was killed the system does not tell this process.
    told = f", {cpu:.0f} CPU seconds" if not args.kills else ""
    print(f"the sweep: {seconds:.0f} seconds{told}", flush=True)
    if args.cold:
        sweep.print_cold(args.cold)


class Sweep:
    """The processes of one sweep.

    Args:
        args: Choices of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.home, self.cold = args.folder / "sweep", args.folder / "cold"
        self.overrides: list[str] = args.override
        self.config = load_config(CONFIG, self.overrides)
        assert self.config.sweep is not None
        self.wanted = self.config.sweep.trials or 0
        self.url = args.storage or f"sqlite:///{self.home / 'study.db'}"
        self.processes = args.processes
        self.threads = max(1, (os.cpu_count() or 1) // self.processes)
        """Of each trial; a cold one takes as many."""
        self.store = args.store or args.folder / "store"
        self.draw = random.Random(args.seed)

    def start(self) -> list[subprocess.Popen[bytes]]:
        """Start all processes that share the sweep."""
        command = [sys.executable, "-m", "finetune", "sweep", str(CONFIG), "--dir", str(self.home)]
        command += ["--storage", self.url, *_options(self.overrides)]
        return [
            _process(command, self.home.with_name(f"said-{number}.txt"), self.store, self.threads)
            for number in range(self.processes)
        ]

    def kill_after(self, count: int, *, trials_too: int) -> None:
        """Let the sweep run until so many trials have ended; then kill its processes."""
        processes = self.start()
        while sum(self.ended().values()) < count:
            assert all(one.poll() is None for one in processes), "it ended before it was killed"
            time.sleep(0.5)
        time.sleep(self.draw.uniform(0, 8))
        training = [pid for one in processes for pid in _children_of(one.pid)]
        for pid in [*(one.pid for one in processes), *(training if trials_too else ())]:
            # A trial may have ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for one in processes:
            one.wait()
        with_what = "with" if trials_too else "without"
        print(
            f"killed {len(processes)} processes {with_what} the {len(training)} trials that they "
            f"trained, after {sum(self.ended().values())} trials",
            flush=True,
        )

    def finish(self) -> None:
        """Let the sweep run to its end."""
        codes = [one.wait() for one in self.start()]
        assert codes == [0] * self.processes, codes

    def ended(self) -> Counter[str]:
        """Count the records of the study that have ended well, or were pruned, by their state."""
        return Counter(one.state.name for one in self._records())

    def print_ended(self) -> None:
        """Print how many trials have ended, and how many of them more than once."""
        numbers = Counter(one.user_attrs[NUMBER] for one in self._records())
        twice = [number for number, count in numbers.items() if count > 1]
        folders = len(list(self.home.glob("trial-*[0-9]")))
        known = sum(one.state.name == "FAIL" for one in self._study().get_trials())
        print(
            f"{len(numbers)} finished trials, {twice if twice else 'none'} twice "
            f"({dict(self.ended())}; {folders} run folders, {known} records taken up again)",
            flush=True,
        )
        assert sorted(numbers) == list(range(self.wanted))
        assert not twice

    def print_cold(self, count: int) -> None:
        """Train trials of each depth again, each with a store of its own; print the seconds."""
        by_depth: dict[str, list[Any]] = {}
        for one in self._records():
            by_depth.setdefault(json.dumps(one.params["freeze"]), []).append(one)
        whole = cpu_whole = 0.0
        for depth, records in by_depth.items():
            found = [self._cold(one) for one in records[:count]]
            seconds, cpu = (statistics.mean(values) for values in zip(*found, strict=True))
            whole, cpu_whole = whole + seconds * len(records), cpu_whole + cpu * len(records)
            each = ", ".join(f"{one:.0f} ({other:.0f})" for one, other in found)
            print(f"cold, {depth}: seconds (CPU) {each}; {len(records)} such trials", flush=True)
        print(f"by arithmetic, all {self.wanted} cold: {whole:.0f} seconds, {cpu_whole:.0f} CPU")

    def _cold(self, record: Any) -> tuple[float, float]:
        """Train the config of a trial with an empty store; return seconds, and those of CPUs."""
        folder = self.cold / f"trial-{record.user_attrs[NUMBER]:05}"
        config = self.home / folder.name / "config.yaml"
        command = [sys.executable, "-m", "finetune", "train", str(config), "--run-dir", str(folder)]
        began, spent = time.perf_counter(), _cpu_seconds()
        log = folder.with_suffix(".txt")
        log.parent.mkdir(parents=True, exist_ok=True)
        code = _process(command, log, folder.with_name(f"{folder.name}-store"), self.threads).wait()
        assert code == 0, log.read_text()
        return time.perf_counter() - began, _cpu_seconds() - spent

    def _study(self) -> Any:
        return Storage(self.url).open(self.config.run_name, "maximize")

    def _records(self) -> list[Any]:
        """Return the records of the study that have come to an end."""
        if not (self.home / MARK).exists():
            return []  # none of the processes has made the folder yet
        records = self._study().get_trials()
        return [one for one in records if one.state.name in ("COMPLETE", "PRUNED")]


def _process(
    command: Sequence[str], log: Path, store: Path, threads: int
) -> subprocess.Popen[bytes]:
    """Start a command that keeps its activation cache in a folder."""
    told = {"FINETUNE_CACHE": str(store), "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | told, stdout=file, stderr=file)


def _children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cpu_seconds() -> float:
    """Return the CPU seconds of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _options(overrides: Sequence[str]) -> list[str]:
    return [word for one in overrides for word in ("-o", one)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets runs, stores and logs")
    parser.add_argument("--kills", type=int, default=2, help="how often all processes are killed")
    parser.add_argument("--processes", type=int, default=2, help="processes that share the sweep")
    parser.add_argument("--storage", help="the study; a SQLite file in the folder if left out")
    parser.add_argument("--store", type=Path, help="activation cache; empty and new if left out")
    parser.add_argument("--cold", type=int, default=2, help="trials of each depth to run cold")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--override", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
