"""Text of others cannot steer a terminal, forge a line, become a formula or end a run."""

import csv
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from finetune.errors import FinetuneError
from finetune.predict.written_rows import spreadsheet_text, write_rows
from finetune.terminal import Terminal, new_table
from finetune.tracking.console import Console
from finetune.tracking.tensorboard import TensorBoard
from finetune.visible import VisibleStream, json_text, one_line, visible, visible_streams

TITLE = "\x1b]0;PWNED\x07\x1b[2J"
HOSTILE = {
    "escape sequence": TITLE,
    "C1": "\x9b2J\x85",
    "bidi override": "a\u202eb\u2066c",
    "zero width": "a\u200bb\ufeff\u2060",
    "carriage return": "right\rwrong",
    "line feed": "a\nproof  intact",
    "line separator": "a\u2028b",
    "tags": "a\U000e0041",
    "filler": "\u3164\u115f",
    "surrogate": "\ud800",
    "no UTF-8": "caf\udce9",
    "NUL": "a\0b",
    "backspace": "ab\b\b\x7f",
}
DANGEROUS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u115f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


def is_safe(text):
    text.encode()
    return not DANGEROUS.search(text.replace("\r\n", "\n"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hidden_characters_are_escaped_and_a_second_time_changes_nothing(text):
    shown = one_line(text)
    assert is_safe(shown)
    assert "\n" not in shown
    assert "\\" in shown
    assert one_line(shown) == shown
    assert visible(visible(text)) == visible(text)
    found = json_text({text: [text]})
    assert is_safe(found)
    assert json.loads(found) == {text: [text]}


@pytest.mark.parametrize(
    "text", ["Größe", "日本語 の\u3000文", "مرحبا", "❤️ 👍🏽", "C:\\x1b", "[bold]", "a  b", "🇩🇪"]
)
def test_honest_text_stays_as_it_is(text):
    assert visible(text) == one_line(text) == text
    assert json_text(text) == json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_error_has_as_many_lines_as_we_give_it(text):
    error = FinetuneError(text, where=text, details=[text, text], hint=text)
    assert is_safe(str(error))
    first, *more = str(error).split("\n")
    assert first == f"{one_line(text)}: {one_line(text)}"
    assert more == [f"    {one_line(text)}"] * 3


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_console_shows_texts_and_keeps_its_own_colours(text, screen):
    console = Terminal(VisibleStream(screen), width=200)
    console.print(text, style="red")
    console.tell(text)
    assert "\x1b[" in screen.getvalue()
    assert is_safe(re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue()))


def test_a_name_in_a_table_cannot_forge_a_row():
    table = new_table(["name"], ["size"])
    table.add_row("a\nb", "1")
    Terminal(out := io.StringIO(), width=80).print(table)
    assert out.getvalue().splitlines()[-1].split() == ["a\\nb", "1"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_tracker_tells_one_line_for_each(text):
    tracker = Console(out := io.StringIO())
    tracker.begin(0, 1)
    tracker.message(text)
    tracker.scalars(1, {"phase": text, f"validation/{text}": 1.0})
    assert is_safe(out.getvalue())
    assert len(out.getvalue().splitlines()) == 2


def test_a_bar_shows_the_name_of_a_phase_on_a_terminal(screen):
    tracker = Console(screen)
    tracker.begin(0, 1)
    tracker.scalars(1, {"phase": TITLE, "train/loss": 1.0})
    time.sleep(0.25)  # it is drawn five times a second at most
    tracker.step_is_done(1, 1, 0)
    tracker.close()
    assert "\\x1b]0;PWNED\\x07" in screen.getvalue()
    assert "\x1b]" not in screen.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_whatever_is_printed_by_anyone_is_visible(text, monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    try:
        with visible_streams():
            print(f"print {text}")
            sys.stderr.writelines([f"log {text}\n"])
            handler = logging.StreamHandler()
            handler.emit(logging.makeLogRecord({"msg": f"library {text}"}))
            raise RuntimeError(f"bug {text}")
    except RuntimeError as error:
        assert sys.stdout is out
        # as the interpreter does with what nobody catches
        sys.excepthook(type(error), error, error.__traceback__)
    assert is_safe(out.getvalue() + err.getvalue())
    assert "Traceback" in err.getvalue()
    for word in ("log", "library", "bug"):
        assert f"{word} {visible(text)}" in err.getvalue()


def test_progress_bars_of_libraries_still_go_back_to_the_begin_of_their_line():
    out = io.StringIO()
    VisibleStream(out).write("\r 10%|#   |")
    VisibleStream(out).write("a\r\n")
    assert out.getvalue() == "\r 10%|#   |a\r\n"


@pytest.mark.parametrize("begin", [*"=+-@\t\r\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_text_in_csv_begins_a_formula(begin):
    text = f"{begin}1+cmd|' /C calc'!A0"
    assert spreadsheet_text(text) == f"'{one_line(text)}"
    rows = [{"input": text, "label": text, "probability": -0.5, "probabilities": {text: -1e-9}}]
    notes = []
    write_rows(rows, out := io.StringIO(newline=""), as_csv=True, note=notes.append)
    head, row = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert head[0] == "input"
    assert row == [f"'{one_line(text)}"] * 2 + ["-0.5", "-1e-09"]
    assert len(notes) == 1
    assert "--raw" in notes[0]
    write_rows(rows, out := io.StringIO(newline=""), as_csv=True, raw=True, note=notes.append)
    assert list(csv.reader(io.StringIO(out.getvalue(), newline="")))[1][:2] == [text, text]
    assert len(notes) == 1


def test_an_honest_csv_has_nothing_changed():
    notes = []
    rows = [{"input": "a.txt", "label": "x-y", "values": [-1.5]}]
    write_rows(rows, out := io.StringIO(), as_csv=True, note=notes.append)
    assert out.getvalue() == "input,label,value/0\r\na.txt,x-y,-1.5\r\n"
    assert notes == []


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_tensorboard_takes_every_name(text, tmp_path):
    board = TensorBoard(tmp_path)
    board.begin(0, 1)
    board.scalars(1, {f"validation/{text}": 1.0})
    board.text(text, text, 1)
    board.hparams({text: text, "whole": True}, {f"validation/{text}": 1.0})
    board.close()
    (file,) = tmp_path.iterdir()
    # Two bytes alone may also be those of a time.
    assert b"\x1b]0;" not in file.read_bytes()


def hostile_run(attack, config):
    """Train on labels, columns and phases of hostile names; return all that is printed."""
    labels = [*HOSTILE.values(), "=1+1", "[/bold]"]
    columns = [f"u{TITLE}", "v\u202e", f"y{TITLE}"]
    lines = [
        json.dumps(dict(zip(columns, (row * 0.5, 1.5, labels[row % len(labels)]), strict=True)))
        for row in range(3 * len(labels))
    ]
    attack.write(f"d{TITLE}.jsonl", "\n".join(lines))
    data = {
        "source": {"type": "jsonl", "path": f"d{TITLE}.jsonl"},
        "split": {"test": 0.4, "stratify": True},
        "inputs": columns[:2],
        "target": columns[2],
        "transforms": [{"type": "stack"}],
    }
    freeze = {"phases": [{"name": f"p{TITLE}", "train": ["head"]}]}
    attack.write(f"c{TITLE}.yaml", config | {"data": data, "freeze": freeze})
    attack.write("in.jsonl", json.dumps({columns[0]: 1.0, columns[1]: 2.0}))
    attack.write("-=in.jsonl", json.dumps({columns[0]: 1.0, "w\x1b[2J": 2.0}))
    return labels


@pytest.mark.slow
def test_a_run_on_hostile_names_ends_and_prints_nothing_that_is_hidden(attack, config):
    labels = hostile_run(attack, config)
    c = f"c{TITLE}.yaml"
    for arguments in (
        ("validate", c),
        ("plan", c),
        ("plan", c, "--full"),
        ("plan", c, "--json"),
        ("plan", c, "--write", f"w{TITLE}.yaml"),
        ("inspect", c),
        ("train", c, "--run", f"r{TITLE}"),
        ("train", c, "--run", f"r{TITLE}", "-o", "train.epochs=3"),
        ("eval", f"r{TITLE}"),
        ("eval", f"r{TITLE}", "--json"),
        ("doctor", f"r{TITLE}"),
        ("doctor", f"r{TITLE}", "--json"),
        ("predict", f"r{TITLE}", "in.jsonl"),
        ("predict", f"r{TITLE}", "in.jsonl", "--out", "p.csv"),
        ("predict", f"r{TITLE}", "in.jsonl", "--out", "p.jsonl"),
        ("predict", f"r{TITLE}", "in.jsonl", "--raw", "--out", "raw.csv"),
        ("runs", "."),
        ("runs", ".", "--json"),
        ("diff", f"r{TITLE}", f"r{TITLE}"),
        ("diff", f"r{TITLE}", f"r{TITLE}", "--json"),
        ("report", f"r{TITLE}", "--out", f"page{TITLE}.html"),
        ("certify", f"r{TITLE}", "--out", f"c{TITLE}.json"),
        ("certify", "--check", f"c{TITLE}.json"),
        ("export", f"r{TITLE}", "--format", "safetensors", "--out", f"e{TITLE}"),
        ("export", f"r{TITLE}", "--format", "torch", "--out", f"t{TITLE}"),
    ):
        outcome = attack.harmless(*arguments)
        assert outcome.code == 0, (arguments, outcome)
        assert is_safe(outcome.out + outcome.err), arguments
        if "--json" in arguments:
            json.loads(outcome.out)
    rows = json.loads((attack.folder / "p.jsonl").read_text())
    assert set(rows["probabilities"]) == set(labels)
    assert is_safe((attack.folder / "p.csv").read_text())
    assert is_safe((attack.folder / f"page{TITLE}.html").read_text(encoding="utf-8"))
    for made in ("e", "t"):
        assert is_safe((attack.folder / f"{made}{TITLE}" / "README.md").read_text(encoding="utf-8"))
    for name in ("config.yaml", "data.json", "plan.json", "metrics.jsonl", "summary.json"):
        (attack.folder / f"r{TITLE}" / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_mistakes_are_told_without_hidden_characters(attack, config):
    hostile_run(attack, config)
    c = f"c{TITLE}.yaml"
    for arguments in (
        ("train", f"no{TITLE}.yaml"),
        ("train", c, "-o", f"{TITLE}=1"),
        ("train", c, "-o", f"data.target={TITLE}"),
        # typer itself escapes controls, but no more
        ("train", c, f"--{TITLE}\u202e\ud800"),
        (f"{TITLE}\u202e",),
        ("eval", TITLE),
        ("eval", ".", "--split", TITLE),
        ("doctor", TITLE),
        ("cache", "ls", TITLE),
        ("tensorboard", TITLE),
        ("runs", TITLE),
        ("diff", TITLE, TITLE),
        ("report", TITLE, "--out", TITLE),
        ("certify", TITLE, "--out", TITLE),
        ("certify", "--check", TITLE),
        ("export", TITLE, "--format", TITLE, "--out", TITLE),
        ("init", TITLE),
        ("show", TITLE),
        ("serve", TITLE),
        ("sweep", TITLE),
    ):
        outcome = attack.harmless(*arguments)
        assert outcome.code == 2, arguments
        assert is_safe(outcome.out + outcome.err), arguments
        assert "\\x1b" in outcome.err, arguments


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_another_encoding_ends_nothing(planted, attack, config, encoding):
    attack.write("in.csv", "u,v\n1,2\n")
    name = os.fsdecode(b"in\xe9\xc3\xa9.csv")
    (attack.folder / "in.csv").rename(attack.folder / name)
    command = [sys.executable, "-m", "finetune", "predict", planted, name]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, check=True, capture_output=True, env=environment)
    assert json.loads(ended.stdout.decode(encoding))["input"] == "in\udce9é.csv:1"
    ended = subprocess.run(
        [*command, "--out", b"\xc3\xa9.jsonl"], check=True, capture_output=True, env=environment
    )
    assert ended.stderr.decode(encoding).startswith("1 prediction in ")
    attack.write("é\u0416.yaml", config)
    command = [sys.executable, "-m", "finetune", "validate", "é\u0416.yaml"]
    ended = subprocess.run(command, check=True, capture_output=True, env=environment)
    expected = "é\u0416.yaml: valid\n".encode(encoding, "backslashreplace")
    assert ended.stdout == expected


def test_half_a_character_in_a_text_is_told_with_its_text():
    from finetune.data.steps.tokenizing import Tokenize

    class Fast:
        def __call__(self, texts, **_):
            raise TypeError("TextEncodeInput must be Union[TextInputSequence, ...]")

    tokenize = Tokenize(("text",), 8, False, Fast(), ())
    with pytest.raises(FinetuneError) as caught:
        tokenize({"text": "a\ud800"})
    assert str(caught.value) == (
        "tokenize needs text, column 'text' holds 'a\\ud800', which holds half a character"
    )
    with pytest.raises(TypeError):
        tokenize({"text": "whole"})


def test_help_keeps_its_colours_on_a_terminal():
    shown = b""

    def read(descriptor):
        nonlocal shown
        shown += (data := os.read(descriptor, 1 << 16))
        return data

    before = os.environ.get("TERM")
    os.environ["TERM"] = "xterm-256color"
    try:
        silence, out = os.open(os.devnull, os.O_WRONLY), os.dup(1)
        os.dup2(silence, 1)
        status = pty.spawn([sys.executable, "-m", "finetune", "eval", "--help"], read)
        os.dup2(out, 1)
    finally:
        os.environ.pop("TERM") if before is None else os.environ.update(TERM=before)
    assert status == 0
    assert b"\x1b[1m" in shown
    assert b"\\x1b" not in shown
