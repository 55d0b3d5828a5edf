"""Standard streams that are closed, full or read no more: one line or none, never a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.streams import ReaderGone, _Results, unfailing
from finetune.tracking.console import Console

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no such device here")


@pytest.fixture
def shell(tmp_path):
    """Run a line of bash, in which `finetune` is the command, and return code and texts."""

    def run(line, **environment):
        python = f"{sys.executable} -m finetune"
        return subprocess.run(
            ["bash", "-c", line.replace("finetune", python)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, check=False,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


RESULTS = [
    "finetune schema",
    "finetune validate c.yaml",
    "finetune --help",
    "finetune train --help",
]


@pytest.fixture
def valid(written):
    return written("c.yaml")


@needs_full
@pytest.mark.parametrize("command", RESULTS)
def test_results_that_find_no_room_are_told(shell, valid, command):
    done = shell(f"{command} > /dev/full")
    assert (done.returncode, done.stderr) == (
        2,
        "standard output: cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("command", RESULTS)
def test_results_for_a_closed_output_are_told(shell, valid, command):
    done = shell(f"{command} >&-")
    assert done.returncode == 2
    assert done.stderr == "standard output: cannot be written: it is closed\n"


@pytest.mark.parametrize("command", RESULTS)
def test_a_reader_that_has_gone_ends_it_quietly_with_141(shell, valid, command):
    done = shell(f"(sleep 0.3; {command}) | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closing", ["<&- 2>&-", pytest.param("2>/dev/full", marks=needs_full)])
def test_other_streams_are_not_needed_for_results(shell, valid, closing):
    done = shell(f"finetune validate c.yaml {closing}")
    assert (done.returncode, done.stdout) == (0, "c.yaml: valid\n")


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_an_error_keeps_its_code_whatever_is_closed(shell, tmp_path, closing):
    (tmp_path / "c.yaml").write_text("seed: -1\n")
    assert shell(f"finetune validate c.yaml {closing}").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("closing", [
    "2>&-",
    pytest.param(">&- 2>&- <&-", marks=pytest.mark.slow),
    pytest.param("2> >(true)", marks=pytest.mark.slow),
    pytest.param("2>/dev/full", marks=[needs_full, pytest.mark.slow]),
])  # fmt: skip
def test_a_run_that_can_tell_nobody_goes_on(shell, valid, tmp_path, closing):
    done = shell(f"finetune train c.yaml --run run {closing}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run" / "summary.json").is_file()
    # What a file of ours would hold if it had got the number of a closed stream.
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 5


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_are_escaped(shell, tmp_path, encoding):
    (tmp_path / "\u03b1.yaml").write_text("seed: -1\n")
    (tmp_path / "\u03b2.yaml").write_text((tmp_path / "\u03b1.yaml").read_text())
    for stream in ("", "2>&1"):
        done = shell(f"finetune validate *.yaml {stream}", PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        assert "\\u03b1.yaml" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_a_library_has_no_results_written_twice_after_a_loss():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    results = _Results(Full())
    with pytest.raises(FinetuneError, match="standard output: cannot be written: No space left"):
        results.write("x")
    assert results.write("more") == 4
    results.flush()


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "full"), ValueError("closed file")]
)
def test_the_console_of_a_run_never_ends_it(error):
    console = Console(Broken(error))
    console.begin(0, 10)
    console.message("text")
    console.scalars(1, {"train/loss": 0.5})
    console.table("table")
    console.close()


def test_a_gone_reader_is_no_error_that_a_library_could_catch():
    assert not issubclass(ReaderGone, Exception)
    with pytest.raises(ReaderGone):
        _Results(Broken(BrokenPipeError(32, "Broken pipe"))).write("x")


def test_a_stream_is_wrapped_once():
    stream = unfailing(io.StringIO())
    assert unfailing(stream) is stream
