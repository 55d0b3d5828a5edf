"""The same fine-tuning by this project, by hand, by Lightning and the Trainer, against the limit.

Every contestant runs in a process of its own, turn by turn, round by round, so that noise of the
machine falls on all of them. What is counted is told in `benchmarks/README.md`.

Run: `python benchmarks/peers.py`, and `--help` for choices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contest.cases import CASES, CONTESTANTS, UNCACHED, Case
from contest.figures import Figures, document, figures_of, print_tables
from contest.job import Job
from contest.prepare import prepare

ROOT = Path(__file__).parents[1]
_NEEDS = {"lightning": "lightning", "trainer": "accelerate"}


def main() -> None:
    """Measure, print the tables, write the JSON."""
    args = _arguments()
    missing = [n for n in args.contestants if n in _NEEDS and find_spec(_NEEDS[n]) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}\n    pip install -e '.[bench]'")
    before = os.getloadavg()[0]
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as name:
        for case in args.cases:
            contest = Contest(CASES[case], Path(name, case), args)
            for number in range(args.rounds or contest.usual_rounds):
                for figures in contest.round(number):
                    found.append(figures)
                    _tell(figures)
                _write(args.json, found, args.threads, before)
    print_tables(found)


class Contest:
    """One case, measured by rounds.

    Args:
        case: The case.
        folder: For the job, and for the runs.
        args: Choices of the command line.
    """

    def __init__(self, case: Case, folder: Path, args: argparse.Namespace) -> None:
        self.case, self.folder, self.args = case, folder, args
        overrides = case.tiny if args.quick else ()
        self.job: Job = prepare(case, folder / "job", overrides=overrides, check=True)

    @property
    def usual_rounds(self) -> int:
        """How often the case is measured: a short one more often."""
        return 3 if self.case.network == "digits" and not self.args.quick else 1

    def round(self, number: int) -> Iterator[Figures]:
        """Let every contestant run once. The first run of ours finds no store, the second one."""
        store = self.folder / f"store-{number}"
        for name in CONTESTANTS:
            if name not in self.args.contestants or not self._takes_part(name):
                continue
            epochs = self.job.epochs
            if name in UNCACHED and len(self.job.phases) == 1 and self.args.peer_epochs:
                epochs = min(epochs, self.args.peer_epochs)
            measured = self._measured(name, epochs, number, store)
            yield figures_of(
                measured,
                case=self.case.name,
                contestant=name,
                round=number,
                epochs=epochs,
                wanted=self.job.epochs,
            )

    def _takes_part(self, name: str) -> bool:
        """With nothing frozen there is no store, and the limit is the loop by hand."""
        return self.case.network != "digits" or name not in ("limit", "ours_warm")

    def _measured(self, name: str, epochs: int, number: int, store: Path) -> dict[str, Any]:
        """Run a contestant to its end; return what it wrote, and what the system counted."""
        out = self.folder / f"{name}-{number}"
        kind = name.removesuffix("_warm")
        command = [sys.executable, "-m", "contest", kind, str(self.folder / "job"), str(out)]
        if kind != "ours":
            command += ["--epochs", str(epochs)]
        if name == "ours_warm":
            command += ["--override", f"optimizer.lr={self.case.other_rate}"]
        log = out.with_suffix(".log")
        with log.open("wb") as file:
            began = time.perf_counter()
            child = subprocess.Popen(
                command, env=self._environment(store), cwd=self.folder, stdout=file, stderr=file
            )
            # The system counts what this child alone has used.
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{self.case.name}: {name} failed\n{log.read_text(errors='replace')[-4000:]}")
        measured: dict[str, Any] = json.loads(out.with_suffix(".json").read_text("utf-8"))
        return measured | {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}

    def _environment(self, store: Path) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": str(self.args.threads),
            "MKL_NUM_THREADS": str(self.args.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "FINETUNE_CACHE": str(store),
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS], metavar="NAME"
    )
    parser.add_argument("--rounds", type=int, help="of every case; 1, and 3 of the short case")
    parser.add_argument(
        "--peer-epochs",
        type=int,
        default=2,
        help="epochs really trained by those who run the whole network in each; at least 2, the "
        "others count as the last one took; 0 for all of them",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="few, small samples: a trial")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "latest.json"
    )
    args = parser.parse_args()
    if args.peer_epochs == 1:
        parser.error("--peer-epochs: the first epoch alone tells little, needs 2 or more, or 0")
    return args


def _tell(figures: Figures) -> None:
    text = f"{figures.case:18} {figures.contestant:10} {figures.seconds:8.1f} s"
    print(f"{text} {figures.cpu_seconds:8.1f} CPU s", file=sys.stderr, flush=True)


def _write(path: Path, found: Sequence[Figures], threads: int, before: float) -> None:
    """Write what there is after every round, so that a run that is ended leaves something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    load = (round(before, 2), round(os.getloadavg()[0], 2))
    text = json.dumps(document(found, threads=threads, load=load), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
