"""Find the files that a pattern such as `part-*.csv` names; only the last part of a path may be one."""

import re
from pathlib import Path

_WILDCARD = re.compile(r"[*?\[]")
"""Characters that make a name a pattern, unless a file is really called so."""


def has_wildcard(text: str) -> bool:
    """Tell whether a name, or a part of a path, would be a pattern if no file is called so."""
    return _WILDCARD.search(text) is not None


def is_pattern(path: Path) -> bool:
    """Tell whether the last part of a path is a pattern that can be searched for."""
    # `**` reads as "at any depth": inside a name it is an error of Python before 3.13.
    return has_wildcard(path.name) and "**" not in path.name


def files_of_pattern(path: Path) -> list[Path]:
    """Return the files that the last part of a path names, sorted; hidden ones do not count."""
    if not is_pattern(path):
        return []
    found = sorted(file for file in path.parent.glob(path.name) if not file.name.startswith("."))
    return [file for file in found if not file.is_dir()]
