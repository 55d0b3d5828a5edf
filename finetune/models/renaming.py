"""Rename tensors of a file as asked, or find the rename that would make them fit."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from finetune.errors import Key, ModelError

_MOST_ENTRIES = 4
"""Most entries of a suggested rename: what needs more is not just a matter of beginnings."""
_MOST_TRIED = 16
"""Most beginnings tried per entry, those first that fit most names."""


def renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], key: Key
) -> dict[str, Tensor]:
    """Return the tensors by their names in the module: the first beginning that fits is replaced.

    Raises:
        ModelError: two tensors get the same name, or an entry matches no name.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _new_name(name, rename)
        if new in result:
            raise ModelError(f"two tensors of the file become {new!r}", key=key)
        result[new] = tensor
    used = {_entry_for(name, rename) for name in tensors}
    for old in rename:
        if old not in used:
            raise ModelError(
                f"no name of the file begins with {old!r}, or an entry before it takes them all",
                hint=f"the file has {first_names(tuple(tensors))}",
                key=(*key, old),
            )
    return result


def mending(own: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return the rename that gives most names of a file the names of the module.

    Names differ by a beginning: that of a wrapper (`module.`, `_orig_mod.`, `model.`, `backbone.`),
    of a container (`ema.`), or of a part with another name. The beginning is what precedes the
    longest common end of two names. Nothing is renamed here.

    Args:
        own: Names in the module that need a tensor.
        theirs: Names in the file that do not fit.

    Returns:
        Entries in the order of trying; empty if no beginning helps.
    """
    own, entries = set(own), dict[str, str]()
    gained = _num_fitting(own, theirs, entries) or 0
    # Greedy: each entry is the one that gains most. All combinations would take too long.
    for _ in range(_MOST_ENTRIES):
        tried = [_with_entry(entries, *pair) for pair in _candidates(own, theirs, entries)]
        counts = [_num_fitting(own, theirs, one) or 0 for one in tried]
        best = max(counts, default=0)
        if best <= gained:
            break
        gained, entries = best, tried[counts.index(best)]
    return entries


def in_yaml(rename: Mapping[str, str]) -> str:
    """Return a rename as text for a config."""
    entries = ", ".join(f'"{old}": "{new}"' for old, new in rename.items())
    return f"rename: {{{entries}}}"


def fits_all(own: Collection[str], theirs: Collection[str], rename: Mapping[str, str]) -> bool:
    """Tell whether a file's names, renamed, are exactly those of the module."""
    return {_new_name(name, rename) for name in theirs} == set(own)


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names as text."""
    more = ", ..." if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _entry_for(name: str, rename: Mapping[str, str]) -> str | None:
    """Return the first entry that a name begins with; None if it keeps its name."""
    return next((old for old in rename if name.startswith(old)), None)


def _new_name(name: str, rename: Mapping[str, str]) -> str:
    """Return a name as the rename changes it."""
    old = _entry_for(name, rename)
    return name if old is None else rename[old] + name.removeprefix(old)


def _num_fitting(
    own: Collection[str], theirs: Collection[str], rename: Mapping[str, str]
) -> int | None:
    """Return how many names become names of the module; None if the rename would be refused."""
    if any(old not in {_entry_for(name, rename) for name in theirs} for old in rename):
        return None
    new = Counter(_new_name(name, rename) for name in theirs)
    return None if rename and max(new.values()) > 1 else len(new.keys() & set(own))


def _candidates(
    own: Collection[str], theirs: Iterable[str], rename: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return pairs of old and new beginning that would make names of the file fit, best first."""
    by_end = defaultdict[str, list[str]](list)
    for name in own:
        for end in _ends(name):
            by_end[end].append(name)
    votes = Counter[tuple[str, str]]()
    for name in theirs:
        if _new_name(name, rename) in own:
            continue
        end = next((end for end in _ends(name) if end in by_end), "")
        # If several names have this end, it would be a guess which one is meant.
        others = [end] if end in own else by_end.get(end, [])
        if len(others) != 1:
            continue
        old, new = name.removesuffix(end), others[0].removesuffix(end)
        # The longer pair of beginnings does not touch names that fit already.
        first = end.partition(".")[0] + "." if "." in end else ""
        votes.update({(old, new), (old + first, new + first)})
    ranked = sorted(votes.items(), key=lambda one: (-one[1], len(one[0][0]), one[0]))
    return [pair for pair, _ in ranked[:_MOST_TRIED]]


def _ends(name: str) -> Iterator[str]:
    """Yield a dotted name, and then what is left without its first parts, the longest first."""
    while name:
        yield name
        name = name.partition(".")[2]


def _with_entry(rename: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Return a rename with one more entry; longer ones come first, since the first match wins."""
    entries = {**rename, old: new}
    return dict(sorted(entries.items(), key=lambda entry: -len(entry[0])))
