"""Turn whatever ends a command into a line on standard error and an exit code, in one place."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from finetune.errors import FinetuneError, FrozenWeightError, StoppedError, is_out_of_memory
from finetune.process import INTERRUPTED, Interrupted, answered, unanswered
from finetune.streams import ReaderGone
from finetune.visible import tell, tell_error

_READER_GONE = 141
"""Exit code that a shell shows for a command ended by SIGPIPE."""


@contextmanager
def told() -> Iterator[None]:
    """Report whatever ends the block on standard error, and exit with the documented code.

    0 done, 1 a bug (with its traceback), 2 or another code of a `FinetuneError`, 130 interrupted,
    141 nobody reads standard output any more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # Python would flush after this, where a failure is not reported
    except ReaderGone:
        sys.exit(_READER_GONE)
    except Interrupted as end:
        _end_interrupted(end)
    # No `FinetuneError`: the user can do nothing about it, and it must not look like a wrong
    # config.
    except FrozenWeightError as error:
        tell(f"proof failed: {error}", sys.stderr)
        sys.exit(1)
    except Exception as error:
        # A library may have turned what a signal raised into an error of its own.
        if (asked := unanswered()) is not None and not isinstance(error, StoppedError):
            _end_interrupted(asked)
        fault = error if isinstance(error, FinetuneError) else fault_of_the_system(error)
        if fault is None:
            raise
        tell_error(fault)
        if fault is not error:
            # Objects that the system's refusal left half made fail again as they are taken down:
            # torch's iterator without its processes, for one. Python would print a traceback each.
            sys.unraisablehook = _say_nothing
        sys.exit(fault.exit_code)


def _end_interrupted(end: Interrupted) -> NoReturn:
    answered()
    tell(str(end), sys.stderr)
    sys.exit(INTERRUPTED)


def refuse_removed_folder() -> None:
    """Raise if the current folder was removed: C libraries would end the process without a word.

    Raises:
        FinetuneError: it was removed.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise FinetuneError("the current folder was removed", hint="cd to another one") from error


def fault_of_the_system(error: BaseException) -> FinetuneError | None:
    """Return the error that tells what the system refused, if that caused `error`; else None.

    That is a failed system call, memory or threads that ran out, or a library that cannot be
    loaded.
    """
    if is_out_of_memory(error):
        return FinetuneError("memory has run out", hint="free some, or lift the limit (ulimit -v)")
    match error:
        case OSError(errno=int(number), strerror=str(reason)):
            where = None if error.filename is None else str(error.filename)
            return FinetuneError(
                f"the system refuses: {reason}", where=where, hint=_HINTS.get(number)
            )
        case ImportError() if not isinstance(error, ModuleNotFoundError) and ".so" in str(error):
            return FinetuneError(
                f"cannot be loaded: {error}", where=error.name, hint="is there enough memory?"
            )
        # Python gives this fault no type or number of its own.
        case RuntimeError() if "can't start new thread" in str(error):
            return FinetuneError("the system starts no more threads", hint="see ulimit -u and -v")
        # torch raises this without the number of the system's error.
        case RuntimeError() if str(error).startswith("Too many open files. Communication"):
            return FinetuneError(
                "the system refuses: Too many open files", hint=_HINTS[errno.EMFILE]
            )
        # A worker that exits by itself is a bug, or hung: its own lines tell which.
        case RuntimeError() if re.match(r"DataLoader worker .* is killed by signal", str(error)):
            return FinetuneError(
                f"a process that prepares batches has ended: {error}",
                hint="data.workers: 0 prepares them in the process of the run",
            )
    # Libraries wrap the system's error in one of their own.
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if cause is None else fault_of_the_system(cause)


def _say_nothing(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ignore an error in `__del__` of an object: its cause has been reported already."""


_HINTS = {
    errno.EMFILE: "too few open files are allowed: see ulimit -n",
    errno.ENOSPC: "free some space, or choose another place",
}
