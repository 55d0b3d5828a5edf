"""A prediction that is killed goes on with the same command and ends with the same bytes."""

import json
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PIECE = 1024
TRUST = ("--trust", "held_nets")


@pytest.fixture
def trained(written, tmp_path, monkeypatch, command_line):
    """Train a network that can be held; return its folder."""
    monkeypatch.syspath_prepend(str(HERE))
    layers = [
        {"name": "held", "type": "import", "path": "held_nets:held"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
    config = written(
        model={"layers": layers}, train={"steps": 2, "batch_size": 8}, inference={"batch_size": 256}
    )
    done = command_line("train", config, "--run", tmp_path / "run", *TRUST)
    assert done.code == 0, done.err
    sys.modules.pop("held_nets", None)
    return tmp_path / "run"


def test_killed_in_the_middle_it_ends_with_the_bytes_of_one_that_was_not(
    trained, started, tmp_path, command_line, monkeypatch
):
    table = tmp_path / "new.jsonl"
    rows = [{"id": n, "features": [n / 9, 1.0, -n % 7, 0.5]} for n in range(3 * PIECE)]
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "said.jsonl"
    assert command_line("predict", trained, table, "--out", expected, *TRUST).code == 0
    monkeypatch.setenv("HELD_AT", str(tmp_path))
    process = started("predict", trained, table, "--out", out, *TRUST)
    # It is held from the first entry of the journal on, however slow the machine is.
    until = time.monotonic() + 300
    while not list(tmp_path.glob(".finetune-predict-*.json")) and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not out.exists()
    monkeypatch.delenv("HELD_AT")
    again = command_line("predict", trained, table, "--out", out, *TRUST)
    assert again.code == 0, again.err
    assert "goes on behind 1,024 rows of an interrupted prediction of said.jsonl" in again.err
    assert out.read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob(".finetune-predict-*"))
