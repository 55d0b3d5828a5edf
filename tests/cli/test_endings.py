"""What the system refuses is one line and exit code 2; a bug keeps its traceback."""

import errno
import os
import subprocess
import sys

import pytest

from finetune.cli.endings import fault_of_the_system

LONG = "a" * 300


def caused(error, cause):
    error.__cause__ = cause
    return error


REFUSED = {
    "a name too long": (
        OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: the system refuses: File name"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "see ulimit -n"),
    "no folder for temporary files": (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []"), "No usable"),
    "memory": (MemoryError(), "memory has run out"),
    "torch's memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        "memory has run out"),
    "a library that is not loaded": (
        ImportError("libtorch_cpu.so: failed to map segment from shared object", name="torch._C"),
        "torch._C: cannot be loaded: libtorch_cpu.so"),
    "no thread": (RuntimeError("can't start new thread"), "starts no more threads"),
    "a loader's process": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "data.workers"),
    "no file for what a loader's process sends": (
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        "see ulimit -n"),
    "what another error comes from": (
        caused(RuntimeError("cannot import"), MemoryError()), "memory has run out"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_system_refuses_is_told(error, words):
    fault = fault_of_the_system(error)
    assert words in str(fault)
    assert fault.exit_code == 2


BUGS = [KeyError("x"), RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("shape"), OSError("a library's words"), ValueError(),
        ModuleNotFoundError("No module named 'x.so'"), caused(TypeError(), KeyError())]  # fmt: skip


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_a_bug_is_none_of_it(error):
    assert fault_of_the_system(error) is None


HALF_MADE = """
import errno
from finetune.cli.endings import told
from finetune.process import interruptible

class Half:
    def __del__(self):
        self.never_made

with interruptible(), told():
    half = Half()
    raise OSError(errno.EMFILE, "Too many open files")
"""


def test_what_a_refusal_left_half_made_is_taken_down_without_a_word():
    """As torch's iterator over processes, some of which could not be started."""
    done = subprocess.run(
        [sys.executable, "-c", HALF_MADE], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "the system refuses: Too many open files\n"
        "    too few open files are allowed: see ulimit -n\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["validate", f"{LONG}.yaml"], ["train", "points.yaml", "--run", LONG], ["doctor", LONG],
     ["eval", LONG], ["predict", LONG, "x.csv"], ["train", "points.yaml", "--resume", LONG],
     ["tensorboard", LONG], ["plan", "points.yaml", "--write", LONG],
     ["validate", "points.yaml/x"], ["train", "points.yaml", "--run", "points.csv/run"]],
    ids=" ".join,
)  # fmt: skip
def test_a_path_that_no_system_takes_is_told_in_one_line(finetune, points, arguments):
    outcome = finetune(*arguments)
    assert outcome.code == 2
    assert outcome.err.count(LONG) <= 1
    assert len([line for line in outcome.err.splitlines() if line[:1] != " "]) <= 40


@pytest.mark.parametrize("arguments", [["plan", "{}"], ["validate", "{}"], ["cache", "ls"]])
def test_a_current_folder_that_was_removed_is_told(tmp_path, points, arguments):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from finetune.__main__ import run; run()"
    done = subprocess.run(
        # Without -P, Python 3.13 imports no module of C in such a folder.
        [sys.executable, "-P", "-c", code, *(one.format(points) for one in arguments)],
        cwd=gone, env=os.environ, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("the current folder was removed\n")
