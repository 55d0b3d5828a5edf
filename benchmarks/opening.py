"""Measure how long the page about a run and TensorBoard take to open, for unusual runs.

Runs are really trained, but the longest, whose 100,000 lines of figures are written by the same
trackers. The page is opened from the disk. TensorBoard runs as `finetune tensorboard` starts it,
over all runs; its page is counted from the address on until each of its pinned charts is drawn.
Each is opened by a new context of Chromium, which has nothing kept. The least of some tries is
printed: what is above it is other work of the machine.
Run: `python benchmarks/opening.py`. Needs Chromium and playwright.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from finetune import build_trainer
from finetune.config.run import RunConfig
from finetune.errors import FinetuneError
from finetune.report.page import render_page
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.tensorboard import TensorBoard

STEPS = 100_000
NAMES = {
    "nan": ["a", "b"],
    "one epoch": ["a", "b"],
    "regression": [],
    "1,000 classes": [f"class {number}" for number in range(1000)],
    "long" + "-name" * 39: ["x" * 200, "y z" * 66],
    "中文 运行": ["体育", "财经新闻"],
    "تجربة עברית": ["رياضة", "ספורט"],
}
"""Names of the runs, and of their classes."""
_PAGE_DRAWN = """() => document.readyState === "complete"
    && [...document.querySelectorAll(".chart")].every(one => one.querySelector("canvas"))"""
_BOARD_DRAWN = """count => document.readyState === "complete"
    && [...document.querySelectorAll("metrics-pinned-view line-chart")].length >= count
    && !document.querySelector("metrics-pinned-view mat-spinner")"""


def config_of(name: str, classes: list[str], folder: Path) -> RunConfig:
    """Write the data of a run; return its config."""
    table = folder / f"data{list(NAMES).index(name)}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["u", "v", "y"])
        for number in range(max(200, 4 * len(classes))):
            target = classes[number % len(classes)] if classes else number * 0.5
            rows.writerow([number % 17, number % 23, target])
    return RunConfig.model_validate(
        {
            "model": {
                "layers": [
                    {"name": "body", "type": "Linear", "out_features": 16},
                    {"name": "relu", "type": "ReLU"},
                    {"name": "head", "type": "Linear", "out_features": "classes" if classes else 1},
                ]
            },
            "data": {
                "source": {"type": "csv", "path": str(table)},
                "transforms": [{"type": "stack"}],
                "inputs": ["u", "v"],
                "target": "y",
                "split": {"validation": 0.25, "stratify": bool(classes)},
            },
            "task": {"type": "classification" if classes else "regression"},
            "optimizer": {"type": "SGD", "lr": 1e30 if name == "nan" else 0.01},
            "train": {"epochs": 1 if name == "one epoch" else 4, "batch_size": 16, "log_every": 1},
        }
    )


def train_all(folder: Path) -> None:
    """Train each run, and write the long one."""
    for name, classes in NAMES.items():
        # The end of a run by NaN is what is looked at.
        with contextlib.suppress(FinetuneError):
            config = config_of(name, classes, folder)
            build_trainer(config, run_dir=folder / "runs" / name).fit(quiet=True)
    short, long = folder / "runs" / "one epoch", folder / "runs" / f"{STEPS:,} steps"
    shutil.copytree(short, long)
    shutil.rmtree(long / "tensorboard")
    trackers = (JsonLines(long / "metrics.jsonl"), TensorBoard(long / "tensorboard"))
    for tracker in trackers:
        tracker.begin(0, STEPS)
        for step in range(1, STEPS + 1):
            tracker.scalars(step, {"epoch": step / 1000, "train/loss": 1 / step, "train/lr": 0.1})
            if step % 1000 == 0:
                figures = {"validation/loss": 1 / step, "validation/accuracy": step / STEPS}
                tracker.scalars(step, figures)
        tracker.close()


@contextlib.contextmanager
def board(runs: Path, count: int) -> Iterator[str]:
    """Start `finetune tensorboard`; yield its address once it has read this number of runs."""
    command = [sys.executable, "-m", "finetune", "tensorboard", str(runs), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            said = (re.search(r"http://127\.0\.0\.1:\d+/\S*", line) for line in process.stdout)
            address = next(found[0] for found in said if found)
            _wait_for_runs(address.partition("?")[0], count)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _wait_for_runs(server: str, count: int) -> None:
    last = urlencode({"run": f"{STEPS:,} steps", "tag": "train/loss"})
    while True:
        with contextlib.suppress(OSError), urlopen(f"{server}data/runs", timeout=60) as answer:
            if len(json.loads(answer.read())) >= count:
                asked = Request(f"{server}data/plugin/scalars/scalars?{last}")
                with urlopen(asked, timeout=60) as points:
                    # TensorBoard keeps a thousand points of a curve.
                    if json.loads(points.read())[-1][1] > 0.99 * STEPS:
                        return
        time.sleep(0.5)


def opened(browser: Any, address: str, drawn: str, count: int) -> tuple[float, float]:
    """Return the seconds from an address to what it shows, by the clock and of the processor.

    The latter are those of the page's own thread, which reads, lays out and draws.
    """
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_function(drawn, arg=count, timeout=120_000)
    seconds = time.perf_counter() - began
    figures = {
        one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]
    }
    context.close()
    return seconds, figures["TaskDuration"]


def measured(browser: Any, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the least seconds of page and TensorBoard for each run, and how much there is."""
    runs, found = sorted((folder / "runs").iterdir()), dict[str, dict[str, Any]]()
    page = folder / "page.html"
    with board(folder / "runs", len(runs)) as address:
        for run in runs:
            page.write_text(render_page([run]), encoding="utf-8")
            # All lines of other runs are hidden, as by a click; the server holds all of them.
            only = address.replace("#", f"&runFilter={quote('^' + re.escape(run.name) + '$')}#")
            of_page, of_board = [], []
            for _ in range(rounds):
                of_page.append(opened(browser, page.as_uri(), _PAGE_DRAWN, 0))
                of_board.append(opened(browser, only, _BOARD_DRAWN, 3))
            found[run.name[:24]] = {
                "page_s": _least(of_page),
                "tensorboard_s": _least(of_board),
                "page_kb": page.stat().st_size // 1000,
                "events_kb": _size(run / "tensorboard") // 1000,
            }
    return found


def _least(times: list[tuple[float, float]]) -> list[float]:
    """Return the least seconds by the clock, and of the processor."""
    return [round(min(kind), 2) for kind in zip(*times, strict=True)]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Print the seconds and sizes of each run as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    # Only this script needs it.
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as started:
        os.environ["FINETUNE_CACHE"] = str(Path(name) / "cache")
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        train_all(Path(name))
        found = measured(browser, Path(name), asked.rounds)
        browser.close()
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
