"""Which packages a user may trust: those with a proper name, and never Python's own."""

import sys
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path

from finetune.errors import TrustError


@dataclass(frozen=True, slots=True, eq=False)
class Trust(Set[str]):
    """The set of packages that the user trusts.

    Args:
        names: Their dotted names.
        folder: Where these packages, and no others, are looked for if they are not installed.
    """

    names: frozenset[str] = frozenset()
    folder: Path | None = None

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __hash__(self) -> int:
        return hash(self.names)


def check_trust(names: Collection[str], folder: Path | None = None) -> Trust:
    """Return the names of `--trust`, if each can be the name of a package that may be trusted.

    The standard library is refused: with `os` or `subprocess` a config could name anything that a
    computer does, and no network, source or loss is made by them.

    Args:
        names: The names. A `Trust` keeps its own folder.
        folder: Where packages that are not installed are looked for.

    Raises:
        TrustError: one is no dotted name, or belongs to the standard library.
    """
    if isinstance(names, str):
        raise TrustError(f"needs a list of packages, got {names!r}", hint=f"trust=[{names!r}]")
    for name in names:
        if not is_dotted_name(name) or name.endswith(".py"):
            raise TrustError(
                f"needs the name of a package, got {name!r}",
                where="--trust",
                hint=_name_hint(name),
            )
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise TrustError(
                f"{name!r} belongs to Python's standard library, which no config may call",
                where="--trust",
                hint="trust a package of your own, and call it there",
            )
    return names if isinstance(names, Trust) else Trust(frozenset(names), folder)


def is_dotted_name(name: str) -> bool:
    """Tell whether `name` can be the dotted name of a module."""
    return all(part.isidentifier() and not iskeyword(part) for part in name.split("."))


def module_of_file(name: str) -> str | None:
    """Return the module that the name of a file means: `mynet` for `./mynet.py`; else None."""
    module = name.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
    is_file = name.endswith(".py") or "/" in name
    return module if is_file and is_dotted_name(module) else None


def _name_hint(name: str) -> str:
    module = module_of_file(name)
    return "such as my_pkg or my_pkg.nets" if module is None else f"--trust {module}"
