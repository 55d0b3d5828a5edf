"""Which packages a user may trust: those with a proper name, and never Python's own."""

import sys
from collections.abc import Collection
from keyword import iskeyword

from finetune.errors import TrustError


def check_trust(names: Collection[str]) -> frozenset[str]:
    """Return the names of `--trust`, if each can be the name of a package that may be trusted.

    The standard library is refused: with `os` or `subprocess` a config could name anything that a
    computer does, and no network, source or loss is made by them.

    Raises:
        TrustError: one is no dotted name, or belongs to the standard library.
    """
    if isinstance(names, str):
        raise TrustError(f"needs a list of packages, got {names!r}", hint=f"trust=[{names!r}]")
    for name in names:
        if not is_dotted_name(name):
            raise TrustError(
                f"needs the name of a package, got {name!r}",
                where="--trust",
                hint="such as my_pkg or my_pkg.nets",
            )
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise TrustError(
                f"{name!r} belongs to Python's standard library, which no config may call",
                where="--trust",
                hint="trust a package of your own, and call it there",
            )
    return frozenset(names)


def is_dotted_name(name: str) -> bool:
    """Tell whether `name` can be the dotted name of a module."""
    return all(part.isidentifier() and not iskeyword(part) for part in name.split("."))
