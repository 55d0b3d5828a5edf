"""How a process is set up that does one thing and ends."""

import ctypes
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = {
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
}
"""Signals that ask a command to end; a terminal or cluster sends them to all its processes."""

INTERRUPTED = 130
"""Exit code of a command that was asked to end and leaves nothing to go on with."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings of glibc's `mallopt`."""


class Interrupted(BaseException):
    """Raised by a signal that asks the command to end. No error: only its end answers it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")


@contextmanager
def for_one_task() -> Iterator[None]:
    """Set the process up as one should be that ends with the block.

    It looks for garbage rarely, and not once more at the end. And it keeps memory that it has
    freed: a network on a CPU takes the same again at once, and to give it back in between costs a
    tenth of a forward pass.
    """
    gc.set_threshold(50_000, 20, 20)
    _keep_freed_memory()
    try:
        yield
    finally:
        gc.freeze()


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries in the block: nobody looks for garbage meanwhile.

    They make a million objects that stay. To look through them again and again takes a third of
    the time that they take to load; nor are they looked through afterwards. A signal that asks a
    command to end is answered by the system: a library may catch an exception that is raised in
    the middle of its import, or abort.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        with _leaving_at_a_signal():
            yield
    finally:
        if gc.get_freeze_count() == 0:  # what a second call would hold may be garbage by then
            gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal that asks the command to end raise `Interrupted` in the block.

    A second one ends the process at once. Processes that are forked have the system's own rule.
    """
    os.register_at_fork(after_in_child=_forget_handlers)
    with handled_by(_interrupt):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` answer the signals that ask a command to end.

    In the main thread alone: elsewhere Python sets no handlers.
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    for one in STOP_SIGNALS:
        signal.signal(one, _leave)
    raise Interrupted(number)


def _forget_handlers() -> None:
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in (_interrupt, _leave):
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"{Interrupted(number)}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def _leaving_at_a_signal() -> Iterator[None]:
    """End the process at a signal, where it is a command's: other programs have their own way."""
    if signal.getsignal(signal.SIGINT) is not _interrupt:
        yield
        return
    with handled_by(_leave):
        yield


def _keep_freed_memory() -> None:
    """Let glibc hold blocks up to 32 MiB, the most it takes, and 256 MiB at the end of the heap."""
    with suppress(OSError, TypeError, AttributeError):  # another system, or another library of C
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)
