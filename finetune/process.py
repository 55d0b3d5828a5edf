"""Set up a process that does one task and ends, and its helpers: memory, signals, garbage."""

import atexit
import ctypes
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = {
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
}
"""Signals that ask a command to end; a terminal or cluster sends them to its whole group."""

INTERRUPTED = 130
"""Exit code of a command that was asked to end before there was anything to resume."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of two settings of glibc's `mallopt`, from its header `malloc.h`."""


class Interrupted(BaseException):
    """Raised by a signal that asks the command to end; not meant to be caught by `except`."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(f"interrupted by {self.number.name}")


class _Request:
    """The signal that was raised and has not ended anything yet.

    A library may catch what a signal raises in the midst of its work, or turn it into an error of
    its own: pydantic does both. So whoever is about to go on asks `unanswered`.
    """

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end: Interrupted | None = None


_REQUEST = _Request()
_FROZEN_AT_START = gc.get_freeze_count()
"""Objects that no collection looked at from the beginning: Python 3.12 freezes some hundred."""


class _Ending:
    """How the process of a command ends, once Python has called all that others asked for."""

    __slots__ = ("code", "is_of_command", "skips_teardown")

    def __init__(self) -> None:
        self.is_of_command = False
        self.code: int | None = None
        """What the command ends with; None while it runs, and if it ended by an exception."""
        self.skips_teardown = False

    def end(self) -> None:
        """Ignore signals that ask a command to end, or end the process now.

        Python resets all other handlers while it takes itself down: a Ctrl-C in these tenths of a
        second would end a finished command as if it had been killed.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.skips_teardown and self.code is not None:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                # One that is closed, or whose reader has gone, takes nothing.
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(self.code)


_ENDING = _Ending()


def skip_teardown() -> bool:
    """Let this process end before Python takes itself down, and tell whether it will.

    For libraries whose threads would abort it then. Only the process of a command does: a program
    that imports finetune ends in its own way.
    """
    _ENDING.skips_teardown = _ENDING.is_of_command
    return _ENDING.skips_teardown


def interrupt(number: int) -> NoReturn:
    """Raise `Interrupted` for a signal, and remember it until `answered` is called."""
    _REQUEST.end = Interrupted(number)
    raise _REQUEST.end


def unanswered() -> Interrupted | None:
    """Return what a signal has raised and nobody has answered, or None."""
    return _REQUEST.end


def answered() -> None:
    """Forget the interrupt of a signal: it has reached the code that ends the work."""
    _REQUEST.end = None


def end_if_asked() -> None:
    """Raise what a signal has raised before, if a library has caught it and nobody answered."""
    if _REQUEST.end is not None:
        raise _REQUEST.end


@contextmanager
def for_one_task() -> Iterator[None]:
    """Tune garbage collector and memory for a process that ends with the block.

    The collector runs rarely, and not once more at the end. Freed memory is kept: a network on a
    CPU needs the same blocks again at once, and returning them in between costs a tenth of a
    forward pass. Signals that ask the command to end are ignored while Python takes itself down:
    all is done.
    """
    gc.set_threshold(50_000, 20, 20)
    _keep_freed_memory()
    # Registered first and so called last, when all threads have ended: one that hangs, of a library
    # or of the user, can be interrupted until then.
    atexit.register(_ENDING.end)
    _ENDING.is_of_command = True
    try:
        yield
        _ENDING.code = 0
    except SystemExit as end:
        _ENDING.code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, _leave)
        # At exit Python collects once more; what is frozen here is not looked at.
        gc.freeze()


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries in the block, with the garbage collector off.

    What they have made is left out of later collections too. A signal that asks the command to end
    ends the process at once: raised as an exception, it might be caught in the middle of a
    library's import, or make the library abort.
    """
    with collector_off():
        try:
            with _leaving_at_a_signal():
                yield
        finally:
            # Before the collector is on again: its first collection would scan all of them. Only
            # once, because what a second call would hold may be garbage by then.
            if gc.get_freeze_count() <= _FROZEN_AT_START:
                gc.freeze()


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from running in the block, where a library is loaded.

    A library makes up to a million objects that stay: scanning those again and again finds nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make a signal that asks the command to end raise `Interrupted` in the block.

    A second signal ends the process at once. Forked processes keep the system's own handling.
    """
    # A forked worker should just end: raised in it, `Interrupted` would print a traceback.
    os.register_at_fork(after_in_child=_forget_handlers)
    before, sys.unraisablehook = sys.unraisablehook, _end_what_nobody_can_raise
    try:
        with handled_by(_interrupt):
            yield
    finally:
        # One that was set in the block stays: it is about what is taken down when Python ends.
        if sys.unraisablehook is _end_what_nobody_can_raise:
            sys.unraisablehook = before


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` for the signals that ask a command to end, while the block runs.

    Does nothing outside the main thread: Python lets no other thread set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS binds no process to cores


def available_memory_bytes() -> int:
    """Return how many bytes of memory this process may still take.

    The smaller of two figures: what the machine has left, and what the process's container
    (cgroup) allows. Memory that the system can reclaim, such as its file cache, counts as left.
    """
    found = [_left_on_machine(), _left_in_container()]
    return max(0, min(size for size in found if size is not None))


def shared_memory_bytes() -> int | None:
    """Return how many bytes are free where processes share tensors; None if that is not known.

    Containers often have 64 MiB there, and a process that writes beyond it is killed.
    """
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return None


def _left_on_machine() -> int:
    """Return what the machine has left; without Linux's figure, a quarter of all memory."""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable"))
        return int(told.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _left_in_container() -> int | None:
    """Return what a container may still take; None if nothing limits it."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        most = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        pairs = (group / "memory.stat").read_text(encoding="ascii").split()
        figures = dict(zip(pairs[::2], pairs[1::2], strict=False))
        # the cache of files that were read counts as used, and goes when memory is needed
        return most - used + int(figures["inactive_file"])
    return None


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back signals while processes start, which begin with them held back as well."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(number: int) -> None:
    """Set up a worker process, so that signals to the run's group of processes do not end it.

    The run itself answers them: it ends the step that is under way, for which it still needs its
    workers. To be called in a process that `signals_held` has held signals back for.

    Args:
        number: Which worker it is; all do the same.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    os.setpgid(0, 0)
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # also drops one that came in the meantime
        signal.signal(one, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `Interrupted`, and let the next signal end the process at once."""
    for one in STOP_SIGNALS:
        signal.signal(one, _leave)
    interrupt(number)


def _end_what_nobody_can_raise(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process if a signal was raised where code in C can pass on no exception.

    While a run is built, `leaving_at_once` has handlers of its own and answers the signal itself.
    """
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
    elif signal.getsignal(signal.SIGINT) is _leave:
        _leave(unraisable.exc_value.number, None)


def _forget_handlers() -> None:
    """Reset our handlers to the system's own; those of others stay."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in (_interrupt, _leave):
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once, with a line on standard error."""
    # By descriptor: `sys.stderr` may hold a lock that the interrupted code has taken.
    with suppress(OSError):
        os.write(2, f"{Interrupted(number)}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def _leaving_at_a_signal() -> Iterator[None]:
    """Let signals end the process at once in the block, if `interruptible` is active."""
    # A Python program that imports finetune has handlers of its own, which must stay.
    if signal.getsignal(signal.SIGINT) is not _interrupt:
        yield
        return
    with handled_by(_leave):
        yield


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks up to 32 MiB (its maximum), and 256 MiB at the heap's end."""
    with suppress(OSError, TypeError, AttributeError):  # another system, or another library of C
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)
