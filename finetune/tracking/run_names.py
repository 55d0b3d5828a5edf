"""What a tracker of another program knows a run by, and where it keeps it."""

import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = "finetune"
"""Experiment or project of a run, where the person's own environment names no other."""
_PASSWORD = re.compile(r"(?<=://)[^/\s]+(?=@)")
"""Up to the last @ before the path: a password that is not quoted may have one, too."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Names of a run for a tracker."""

    id: str
    """Letters and digits; the same when a run is resumed, so that it continues its curves."""
    name: str
    place: Path
    """The folder of the run's folder: what is kept on this machine lies beside the runs."""


def without_password(text: str) -> str:
    """Return an address, or a text with addresses, without the user and password in it."""
    return _PASSWORD.sub("***", text)
