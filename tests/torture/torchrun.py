"""Runs of `finetune` under torchrun itself, and kills of their ranks at random moments.

python torchrun.py FOLDER KILLS SEED [ddp|fsdp2]: trains a run of two ranks, unbroken; then kills
single ranks until the number is reached, and compares the final bits each time a run ends. It
prints a line for each kill. What a test needs of it is imported: it loads no torch itself.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetune.runs.kept import Checkpoints

LIMIT_S = 900
"""Seconds after which a run that neither moves nor ends counts as hung."""
STEPS = 40
CONFIG = {
    "seed": 0,
    "model": {
        "layers": [
            {"name": "slow", "type": "import", "path": "slow_steps:Slowly",
             "args": {"seconds": 0.02, "started": "began"}},
            {"name": "body", "type": "Linear", "out_features": 8},
            {"name": "middle", "type": "Linear", "out_features": 6},
            {"name": "act", "type": "Tanh"},
            {"name": "drop", "type": "Dropout", "p": 0.25},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 64, "features": 4, "targets": 3},
        "split": {"validation": 0.25},
    },
    "task": {"type": "regression"},
    "optimizer": {"type": "AdamW", "lr": 0.05},
    "freeze": {
        "phases": [
            {"name": "head", "train": ["head"], "until": {"steps": 9}},
            {"name": "top", "train": ["head", "middle"], "until": {"steps": 12}},
            {"name": "rows", "freeze": [{"kind": "bias"}, {"rows": "middle.weight[:2]"}]},
        ]
    },
    "train": {
        "steps": STEPS, "batch_size": 8, "micro_batch": 4, "log_every": 1,
        "checkpoint": {"every": {"steps": 2}},
    },
    "tracking": {"to": [], "report": False},
    "cache": "off",
}  # fmt: skip
"""A run of some seconds, whose two ranks give the bits of one process."""


def write_config(folder: Path, **train: object) -> Path:
    """Write the config of the run; return its file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | train}))
    return path


def environment(**more: str) -> dict[str, str]:
    """Return variables with which processes find this package and the networks of the tests."""
    here = Path(__file__).resolve().parent
    places = [str(here), str(here.parent / "train"), str(here.parents[1])]
    path = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def command(run: Path, *arguments: object, options: Sequence[str] = ("--standalone",)) -> list[str]:
    """Return the command that trains in two ranks, whose sets have unlike orders."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node=2"]
    train = 'PYTHONHASHSEED=1$RANK exec "$0" -m finetune train "$@"'
    shell = ["--no-python", "sh", "-c", train, sys.executable]
    more = ["--trust", "slow_steps", "--run-dir", run]
    return [*torchrun, *shell, *map(str, [*arguments, *more])]


@dataclass
class Launch:
    """A torchrun that was started in a group of its own, and what it writes into a file."""

    process: subprocess.Popen
    log: Path

    @classmethod
    def of(cls, folder: Path, arguments: Sequence[str], **more: str) -> "Launch":
        log = folder / f"told-{time.monotonic_ns()}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                arguments, cwd=folder, env=environment(**more), stdout=file, stderr=file,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return cls(process, log)

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that lives now."""
        found = {}
        for pid in children_of(self.process.pid):
            with contextlib.suppress(OSError):
                place = Path("/proc", str(pid))
                if b"finetune\0train" not in place.joinpath("cmdline").read_bytes():
                    continue  # it is still the shell
                named = dict(
                    one.split(b"=", 1)
                    for one in place.joinpath("environ").read_bytes().split(b"\0")
                    if b"=" in one
                )
                found[int(named[b"RANK"])] = pid
        return found

    def end(self) -> None:
        """Kill what is left of it, also of its ranks."""
        # torchrun gives each rank a session of its own, and once it is dead they are not its.
        ranks = children_of(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_until(is_so: Callable[[], object], launch: Launch) -> bool:
    """Wait until something is so; return False if torchrun ends before."""
    until = time.monotonic() + LIMIT_S
    while not is_so():
        if launch.process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise TimeoutError(f"hangs: {launch.log.read_text()}")
        time.sleep(0.005)
    return True


def num_lines(run: Path) -> int:
    """Count the lines that a run has told."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_one(launch: Launch, run: Path, draw: random.Random, known: set[int]) -> str | None:
    """Kill a rank, somewhere in its life; return in words when, None if torchrun has ended."""
    rank, early, more = draw.randrange(2), draw.random() < 0.4, draw.randrange(1, 14)
    delay = draw.uniform(0, 8) if early else draw.uniform(0, 0.06)
    life: dict[int, int] = {}

    def has_begun() -> bool:
        life.update({rank: pid for rank, pid in launch.ranks().items() if pid not in known})
        return len(life) == 2

    if not wait_until(has_begun, launch):
        return None
    known |= {*life.values()}
    before = num_lines(run)
    if not early and not wait_until(lambda: num_lines(run) >= before + more, launch):
        return None
    time.sleep(delay)
    try:
        os.kill(life[rank], signal.SIGKILL)
    except ProcessLookupError:
        return None
    when = f"{delay:.2f} s after its start" if early else f"{more} lines and {delay:.3f} s later"
    return f"rank {rank}, {when}, at line {num_lines(run)}"


def faults_of(run: Path) -> list[str]:
    """Return what is wrong with checkpoints that a run would go on from."""
    kept = Checkpoints(run / "checkpoints", keep_last=99)
    found = [(path.name, kept.fault(path)) for path in kept.all()]
    return [f"{name}: {fault}" for name, fault in found if fault is not None]


def digests(run: Path) -> dict[str, str]:
    """Return the digests of the tensors in all checkpoints of a finished run, and of its proof."""
    files = [*run.glob("checkpoints/step-*/*.safetensors"), run / "freeze_proof.json"]
    assert any(f"step-{STEPS:08}" in str(path) for path in files)
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def killed_run(
    folder: Path, run: Path, config: Path, draw: random.Random, kills: int, restarts: int
) -> Iterator[str]:
    """Train a run to its end while its ranks are killed; yield a line for each kill.

    Raises:
        AssertionError: a checkpoint is half, or the run ends otherwise than by a kill.
        TimeoutError: it hangs.
    """
    done = 0
    while True:
        options = ["--standalone", f"--max-restarts={restarts}"]
        launch = Launch.of(folder, command(run, config, options=options))
        known: set[int] = set()
        try:
            for _ in range(min(restarts + 1, kills - done)):
                told = kill_one(launch, run, draw, known)
                if told is None:
                    break
                done += 1
                yield told
            wait_until(lambda: False, launch)
        finally:
            launch.end()
        assert faults_of(run) == [], faults_of(run)
        if launch.process.returncode == 0:
            return
        assert known, launch.log.read_text()


def main() -> None:
    """Kill until the number is reached."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder, parallel=sys.argv[4] if sys.argv[4:] else "ddp")
    draw, done, number = random.Random(seed), 0, 0
    for _ in killed_run(folder, folder / "whole", config, draw, 0, 0):
        pass
    whole = digests(folder / "whole")
    while done < kills:
        number += 1
        run, restarts = folder / f"run-{number}", draw.randrange(4)
        some = draw.randrange(1, 8)
        for told in killed_run(folder, run, config, draw, min(some, kills - done), restarts):
            done += 1
            print(f"kill {done}, run {number}, --max-restarts={restarts}: {told}", flush=True)
        same = digests(run) == whole
        print(f"run {number} ended; bits of the unbroken run: {same}", flush=True)
        assert same


if __name__ == "__main__":
    main()
