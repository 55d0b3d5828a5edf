"""What default tracking costs: CPU seconds of whole runs with it and without, in turns.

With it, a run writes event files, pictures and its page; without, only what it always writes.
Each run is a process of its own, as its end (pictures, page) counts, and so do the libraries that
it loads. A run before the first round fills the activation cache and is not counted.
Run: `python benchmarks/tracking_cost.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "bbc_news.yaml"
WITHOUT = ["-o", "tracking={to: [], report: false}"]


def cpu_seconds(config: Path, run: Path, options: list[str]) -> float:
    """Return user and system seconds of one run, with its worker processes."""
    command = [sys.executable, "-m", "finetune", "train", str(config), "--run", str(run), "-q"]
    # On a busy machine threads that wait for each other burn seconds that nothing has caused.
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    before = os.times()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, env=one_thread)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> None:
    """Print the seconds of each run and the share that tracking takes, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("-o", action="append", default=[], help="a key of the config")
    asked = parser.parse_args()
    changes = [word for change in asked.o for word in ("-o", change)]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        cpu_seconds(asked.config, Path(folder) / "first", changes)
        for number in range(asked.rounds):
            # Who goes first alternates: a machine that grows busier then falls on both.
            ways = [("with", list[str]()), ("without", WITHOUT)]
            for name, options in ways if number % 2 else reversed(ways):
                run = Path(folder) / f"{name}-{number}"
                taken = cpu_seconds(asked.config, run, [*changes, *options])
                seconds[name].append(round(taken, 2))
    pairs = list(zip(seconds["with"], seconds["without"], strict=True))
    result = {
        "cpu_seconds": seconds,
        "more_seconds_median": round(statistics.median(a - b for a, b in pairs), 2),
        "share_median": round(statistics.median(a / b - 1 for a, b in pairs), 4),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
