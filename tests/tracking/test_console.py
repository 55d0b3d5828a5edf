"""What a person sees: plain lines in a log, a live view on a terminal, no word on stdout."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.table import Table

from finetune.terminal import Terminal, print_lines
from finetune.tracking.console import Console


@pytest.fixture
def stream():
    return io.StringIO()


def train(console, steps, total=None):
    console.begin(0, total or len(steps))
    for step in steps:
        console.scalars(
            step, {"epoch": step / 10, "phase": "head", "train/loss": 0.5, "train/lr/head": 1e-3}
        )
    console.close()


def test_a_log_gets_a_line_for_every_tenth_of_the_run(stream):
    train(Console(stream), range(1, 201))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "step 20/200  head  epoch 2  loss 0.5  lr 0.001"
    assert lines[-1] == "step 200/200  head  epoch 20  loss 0.5  lr 0.001"


def test_a_log_gets_a_line_when_half_a_minute_has_gone_by(stream, monkeypatch):
    console, now = Console(stream), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console.begin(0, 1_000_000)
    console.scalars(1, {"train/loss": 0.5})
    assert stream.getvalue() == ""
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    console.scalars(2, {"train/loss": 0.5})
    console.scalars(3, {"train/loss": 0.5})
    assert stream.getvalue() == "step 2/1000000  loss 0.5\n"


def test_a_log_gets_every_evaluation_with_all_its_figures(stream):
    console = Console(stream)
    console.begin(0, 700)
    for step in (70, 71, 72):
        console.scalars(
            step,
            {"epoch": 1.0, "phase": "all", "validation/loss": 0.25, "validation/accuracy": 0.96875},
        )
    assert stream.getvalue().splitlines()[0] == (
        "step 70/700  all  epoch 1  validation/loss 0.25  validation/accuracy 0.9688"
    )
    assert len(stream.getvalue().splitlines()) == 3


def test_a_resumed_run_does_not_tell_the_tenths_behind_it_again(stream):
    console = Console(stream)
    console.begin(100, 200)
    console.scalars(101, {"train/loss": 0.5})
    assert stream.getvalue() == ""


def test_a_message_is_printed_as_it_is_however_long(stream):
    text = f"[bold]not markup[/bold] {'x' * 300}"
    Console(stream).message(text)
    assert stream.getvalue() == f"{text}\n"


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("columns", "margin"), [(60, 8), (20, 0)])
def test_on_a_terminal_a_long_text_hangs_under_its_value(columns, margin, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = "the weights of step 60, the best by validation/accuracy: 0.9832, of the last phase"
    screen = Screen()
    print_lines([("curves", "short"), ("used", text)], Terminal(screen, columns))
    _, first, *rest = screen.getvalue().splitlines()
    assert first.startswith("used    the")
    assert {len(line) - len(line.lstrip()) for line in rest} == {margin}


def test_a_table_of_a_log_is_wider_than_80_columns(stream):
    table = Table("name", "state")
    table.add_row("x" * 90, "frozen")
    Console(stream).table(table)
    assert "x" * 90 in stream.getvalue()


def test_nothing_goes_to_standard_output(capsys):
    console = Console()
    train(console, range(1, 11))
    console.message("a message")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 11


TERMINAL_SCRIPT = """
import sys, time
from finetune.counting import Counting
from finetune.terminal import Terminal, print_lines
from finetune.tracking.console import Console

console = Console()
console.begin(0, 45)
console.phase_begins("head", 45, ["top"])
for step in range(1, 46):
    time.sleep(0.02)
    console.step_is_done(step, 8, 0)
    console.scalars(step, {"phase": "head", "train/loss": 1 / step, "train/lr/head": 1e-3})
    if step == 20:
        with console.shows_activity():
            time.sleep(0.25)
            Counting("evaluating validation", "samples").at(4, 0.5)
        console.scalars(step, {f"validation/metric_{n}": n for n in range(9)})
print("on standard output")
console.close()
"""


def test_a_terminal_gets_a_view_that_is_redrawn_a_few_times_a_second():
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL_SCRIPT],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ
        | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=180,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.stdout == b"on standard output\n"
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown)]
    views = [line for line in lines if re.match(r"\d+/45 ", line)]
    assert 3 <= len(views) <= 16, "drawn by time, not at every step"
    assert any("evaluating validation: 4 samples, 50%" in line for line in lines)
    assert "then top" in shown
    assert max(map(len, lines)) <= 80
    words = " ".join(line.strip() for line in lines if "validation/m" in line).split()
    assert words[2::2] == [f"validation/metric_{n}" for n in range(9)], "broken between words"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    after = shown.rpartition("45/45")[2] if "45/45" in shown else shown.rpartition("/45")[2]
    assert "\x1b[2K" in after, "the view is removed at the end"
