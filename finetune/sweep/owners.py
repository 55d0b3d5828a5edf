"""Which process runs a trial, and whether it is still there."""

import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SEEN_EVERY_S = 20.0
"""Seconds between two signs of life that a process leaves in the study for each of its trials."""
_GRACE_S = 120.0
"""Seconds without a sign of life after which a process of another machine counts as gone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that runs trials, as the study names it."""

    host: str
    pid: int
    started: str
    """When it started, by the system's clock: its number may later be another process's."""

    @classmethod
    def this_process(cls) -> "Owner":
        """Return the owner that this process is."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()))

    @classmethod
    def of(cls, attributes: Any) -> "Owner | None":
        """Return the owner that a trial names; None if it names none."""
        if not isinstance(attributes, dict) or attributes.keys() != {"host", "pid", "started"}:
            return None
        return cls(**attributes)

    def as_attributes(self) -> dict[str, Any]:
        """Return it as plain data for the study."""
        return asdict(self)

    def is_gone(self) -> bool | None:
        """Tell whether the process has ended; None if it is on another machine."""
        if self.host != socket.gethostname():
            return None
        return _started(self.pid) != self.started


@dataclass(slots=True)
class SignsOfLife:
    """Tells by signs of life in the study which processes of other machines are gone.

    Their clocks are not trusted: what counts is how long a sign has not changed, by the clock here.
    """

    _last: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def are_over(self, trial: int, sign: Any) -> bool:
        """Tell whether a trial's sign of life has not changed for too long.

        Args:
            trial: Number of the trial in the study.
            sign: Its latest sign.
        """
        known, since = self._last.get(trial, (None, 0.0))
        if known != (sign,):
            self._last[trial] = ((sign,), time.monotonic())
            return False
        return time.monotonic() - since > _GRACE_S


def _started(pid: int) -> str:
    """Return when a process started, as text; "" if there is none, or if it has ended."""
    try:
        # From the 3rd field on: the 2nd, a name in brackets, may hold spaces itself.
        told = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        # In a container whose first process waits for none, a killed one stays for good, as Z.
        return "" if told[0] in "ZX" else told[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        # macOS has no such files; signal 0 is not sent, the system only says whether there is one
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"
