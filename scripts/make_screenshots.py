"""Photograph pages and terminal of real runs of scikit-learn's digits, for docs/pictures.

Run: `python scripts/make_screenshots.py`, or with the names of some: `report tensorboard terminal`.
Needs Chromium and playwright. It takes some minutes on a CPU.
"""

import contextlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fcntl import ioctl
from io import BytesIO, StringIO
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from finetune import build_trainer, load_config
from finetune.errors import FinetuneError
from finetune.report.page import render_page

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
RUNS = {
    "good": ("train.epochs=8",),
    "overfit": ("train.epochs=16", "optimizer.lr=0.02", "data.split.validation=0.6"),
    "wild": ("train.epochs=4", "optimizer.lr=1e30"),
}
_PHASES = (
    "freeze={phases: [{name: head, train: [head], until: {epochs: 3}}, {name: all, freeze: []}]}"
)
_BOARD = {
    "tensorboard": "",
    "tensorboard_custom": "custom_scalars",
    "tensorboard_images": "images",
    "tensorboard_hparams": "hparams",
}
_SETTLED_MS = 6000
"""TensorBoard draws its charts some seconds after the page is there."""


def train(folder: Path) -> list[Path]:
    """Train a good run, one that overfits and one that NaN ends; return their folders."""
    for name, changes in RUNS.items():
        overrides = [*changes, "train.log_every=2", _PHASES]
        config = load_config(ROOT / "configs" / "digits.yaml", overrides=overrides)
        with contextlib.suppress(FinetuneError):
            build_trainer(config, run_dir=folder / name).fit(quiet=True)
    return [folder / name for name in RUNS]


def keep(png: bytes, name: str) -> None:
    """Write a photograph with a palette of 256 colours, which the docs show all the same."""
    image = Image.open(BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(FOLDER / f"{name}.png", optimize=True)


def photograph_reports(browser: Any, runs: list[Path], scratch: Path) -> None:
    """Keep the page about one run at the width of a desk and of a phone, and that of three."""
    for name, shown, width, height, part in (
        ("report_one", runs[:1], 1440, 900, None),
        ("report_pictures", runs[:1], 1440, 900, ".pictures"),
        ("report_phone", runs[:1], 390, 844, None),
        ("report_three", runs, 1440, 900, None),
    ):
        file = scratch / f"{name}.html"
        file.write_text(render_page(shown), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(file.as_uri())
        page.wait_for_timeout(1000)
        keep(page.locator(part).screenshot() if part else page.screenshot(), name)
        page.close()


@contextlib.contextmanager
def board(runs: Path) -> Iterator[str]:
    """Serve a folder of runs; yield the address that the command prints."""
    command = [sys.executable, "-m", "finetune", "tensorboard", str(runs), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            said = (re.search(r"http://127\.0\.0\.1:\d+/\S*", line) for line in process.stdout)
            yield next(found[0] for found in said if found)
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def photograph_board(browser: Any, runs: Path) -> None:
    """Keep the pages of TensorBoard that a person looks at first."""
    with board(runs) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        # Until the server has read all runs.
        page.goto(address)
        page.get_by_text("overfit").filter(visible=True).first.wait_for()
        for name, place in _BOARD.items():
            page.goto(
                f"{address.partition('#')[0].partition('?')[0]}#{place}" if place else address
            )
            page.wait_for_timeout(_SETTLED_MS)
            keep(page.screenshot(), name)


def terminal_says(folder: Path, columns: int, *, no_color: bool = False) -> bytes:
    """Return what a training writes to a terminal of so many columns and 50 lines."""
    command = [sys.executable, "-m", "finetune", "train"]
    # Beside the config the run's path is short, and no folder of this machine is in the picture.
    command += [str(ROOT / "configs" / "digits.yaml"), "--run", "runs/digits", "--fresh"]
    command += ["-o", _PHASES, "-o", "train.epochs=6"]
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    environment.pop("COLUMNS", None)
    # The run's own folder is the current one.
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        # Linux raises an error where a terminal ends.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                said += part
        os.close(ours)
        process.wait(timeout=600)
    return said


def screen(said: str) -> list[str]:
    """Return the lines that a terminal shows after these bytes; colours stay in them."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", said):
        moved = re.fullmatch(r"\x1b\[(\d*)A", part)
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif moved:
            row = max(0, row - int(moved[1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\r" or (part.startswith("\x1b") and not part.endswith("m")):
            # rich clears a line before it writes it anew, so going back changes nothing.
            continue
        else:
            lines[row] += part
    return lines


def photograph_terminal(folder: Path) -> None:
    """Keep the screen in the middle of a run and at its end, at two widths, and without colours."""
    for columns, no_color in ((80, False), (200, False), (80, True)):
        whole = terminal_says(folder, columns, no_color=no_color).decode()
        # The live view moves the cursor up before it draws: take one of its last frames.
        frames = [
            found.start() for found in re.finditer(r"\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)+", whole)
        ]
        shown = {"end": whole}
        if frames:
            shown["live"] = whole[: frames[2 * len(frames) // 3]]
        for when, said in shown.items():
            name = f"terminal_{columns}{'_no_color' * no_color}_{when}"
            _as_svg(screen(said)[-48:], columns, name)


def _as_svg(lines: list[str], columns: int, name: str) -> None:
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    svg = console.export_svg(title=f"{columns} columns", unique_id=name)
    (FOLDER / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")


def main() -> None:
    """Train the runs and keep all pictures."""
    wanted = sys.argv[1:] or ["report", "tensorboard", "terminal"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FINETUNE_CACHE"] = str(folder / "cache")
        if "terminal" in wanted:
            photograph_terminal(folder)
        if not {"report", "tensorboard"} & set(wanted):
            return
        # The docs about the terminal need no browser.
        from playwright.sync_api import sync_playwright

        runs = train(folder / "runs")
        with sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            if "report" in wanted:
                photograph_reports(browser, runs, folder)
            if "tensorboard" in wanted:
                photograph_board(browser, folder / "runs")
            browser.close()


if __name__ == "__main__":
    main()
