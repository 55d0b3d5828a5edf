"""Wrap the standard streams, which may be closed or full, or whose reader may have gone."""

import errno
import io
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from finetune.errors import FinetuneError


class ReaderGone(BaseException):
    """Raised when nobody reads standard output any more; not meant to be caught by `except`."""


class _Unfailing:
    """A text stream that silently drops what cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the file was closed meanwhile
            self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _fail(self, error: OSError | ValueError) -> None:
        return


class _Results(_Unfailing):
    """Standard output of a command: a failed write ends the command, with one error."""

    _is_lost = False

    def _fail(self, error: OSError | ValueError) -> None:
        # `print` and Python's own flush at exit try again; a second error would hide the first.
        if self._is_lost:
            return
        self._is_lost = True
        # `| head` has read enough: no fault, and no message.
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        reason = getattr(error, "strerror", None) or str(error)
        raise FinetuneError(f"cannot be written: {reason}", where="standard output") from error


def unfailing(stream: TextIO | None) -> TextIO:
    """Return a stream that drops what cannot be written, so that messages never end a run."""
    return stream if isinstance(stream, _Unfailing) else cast("TextIO", _Unfailing(stream))


def set_up_standard_streams() -> None:
    """Replace the standard streams of this process by ones that survive being closed or full.

    A failed write to standard output ends the command with `FinetuneError` or `ReaderGone`; what
    cannot be written to standard error is dropped.
    """
    _fill_closed_descriptors()
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    sys.stdout = cast("TextIO", _Results(sys.stdout))
    sys.stderr = unfailing(sys.stderr)


def _fill_closed_descriptors() -> None:
    """Open /dev/null for each closed descriptor of 0, 1, 2: the next file would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
