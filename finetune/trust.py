"""Which packages a user may trust: any with a proper name, except Python's own."""

import sys
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path

from finetune.errors import TrustError


@dataclass(frozen=True, slots=True, eq=False)
class Trust(Set[str]):
    """The set of packages that the user trusts, as named by `--trust`.

    Args:
        names: Their dotted names.
        folder: Folder in which these packages, and no others, are searched if not installed.
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
        # Equality of sets compares the names alone, so the folder must not count here.
        return hash(self.names)


def check_trust(names: Collection[str], folder: Path | None = None) -> Trust:
    """Return the packages to trust, after checking each name.

    The standard library is refused: through `os` or `subprocess` a config could do anything the
    computer can, and no network, source or loss comes from there.

    Args:
        names: Dotted names; a `Trust` is returned as it is, with its own folder.
        folder: Folder in which packages that are not installed are searched.

    Raises:
        TrustError: a name is not dotted identifiers, or belongs to the standard library.
    """
    # A string is a collection of letters: each letter would be taken for a package.
    if isinstance(names, str):
        raise TrustError(f"needs a list of packages, got {names!r}", hint=f"trust=[{names!r}]")
    for name in names:
        # `mynet.py` would pass as the module `py` of a package `mynet`.
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
    """Tell whether `name` has the form of a module's dotted name."""
    return all(part.isidentifier() and not iskeyword(part) for part in name.split("."))


def module_of_file(name: str) -> str | None:
    """Return the module name that a file name stands for: `mynet` for `./mynet.py`; else None."""
    module = name.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
    is_file = name.endswith(".py") or "/" in name
    return module if is_file and is_dotted_name(module) else None


def _name_hint(name: str) -> str:
    """Return a hint with the form of a right name, made from the given one if it is a file's."""
    module = module_of_file(name)
    return "such as my_pkg or my_pkg.nets" if module is None else f"--trust {module}"
