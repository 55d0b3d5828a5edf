"""Names of tensors in a file and in a network: renamed as asked, or the rename that would mend."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from finetune.errors import Key, ModelError

_MOST_ENTRIES = 4
"""Entries of a rename that is suggested: one that needs more is no mere matter of beginnings."""
_MOST_TRIED = 16
"""Beginnings that are tried for each entry, those first that most names speak for."""


def renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], key: Key
) -> dict[str, Tensor]:
    """Give every tensor its name in the module: the first beginning that fits is replaced.

    Raises:
        ModelError: two tensors get one name, or an entry fits no name.
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
    """Return the rename by which most names of a file become names of the module.

    Such names differ by a beginning: of a wrapper (`module.`, `_orig_mod.`, `model.`, `backbone.`),
    of a container (`ema.`), or of a part that is called otherwise. The beginning is what is left
    of two names before the longest end that they share. Nothing is renamed by this.

    Args:
        own: Names of the module that need a tensor.
        theirs: Names of the file that have found no place.

    Returns:
        Entries in the order in which they are to be tried; empty if no beginning helps.
    """
    own, entries = set(own), dict[str, str]()
    gained = _num_fitting(own, theirs, entries) or 0
    for _ in range(_MOST_ENTRIES):
        tried = [_with_entry(entries, *pair) for pair in _candidates(own, theirs, entries)]
        counts = [_num_fitting(own, theirs, one) or 0 for one in tried]
        best = max(counts, default=0)
        if best <= gained:
            break
        gained, entries = best, tried[counts.index(best)]
    return entries


def in_yaml(rename: Mapping[str, str]) -> str:
    """Return a rename as it is written into a config."""
    entries = ", ".join(f'"{old}": "{new}"' for old, new in rename.items())
    return f"rename: {{{entries}}}"


def fits_all(own: Collection[str], theirs: Collection[str], rename: Mapping[str, str]) -> bool:
    """Tell whether names of a file, renamed, are just those of the module."""
    return {_new_name(name, rename) for name in theirs} == set(own)


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Join the first few names."""
    more = ", ..." if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _entry_for(name: str, rename: Mapping[str, str]) -> str | None:
    """Return the beginning that a name has; None if it keeps its name."""
    return next((old for old in rename if name.startswith(old)), None)


def _new_name(name: str, rename: Mapping[str, str]) -> str:
    old = _entry_for(name, rename)
    return name if old is None else rename[old] + name.removeprefix(old)


def _num_fitting(
    own: Collection[str], theirs: Collection[str], rename: Mapping[str, str]
) -> int | None:
    """Count the names that a rename leads to names of the module; None if it would be refused."""
    if any(old not in {_entry_for(name, rename) for name in theirs} for old in rename):
        return None
    new = Counter(_new_name(name, rename) for name in theirs)
    return None if rename and max(new.values()) > 1 else len(new.keys() & set(own))


def _candidates(
    own: Collection[str], theirs: Iterable[str], rename: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return pairs of beginnings that would bring names of the file to names of the module."""
    by_end = defaultdict[str, list[str]](list)
    for name in own:
        for end in _ends(name):
            by_end[end].append(name)
    votes = Counter[tuple[str, str]]()
    for name in theirs:
        if _new_name(name, rename) in own:
            continue
        end = next((end for end in _ends(name) if end in by_end), "")
        # Where several names end so, which of them is meant would be a guess.
        others = [end] if end in own else by_end.get(end, [])
        if len(others) != 1:
            continue
        old, new = name.removesuffix(end), others[0].removesuffix(end)
        # The longer pair of beginnings leaves names alone that have their place already.
        first = end.partition(".")[0] + "." if "." in end else ""
        votes.update({(old, new), (old + first, new + first)})
    ranked = sorted(votes.items(), key=lambda one: (-one[1], len(one[0][0]), one[0]))
    return [pair for pair, _ in ranked[:_MOST_TRIED]]


def _ends(name: str) -> Iterator[str]:
    """Yield a dotted name and what is left of it without its first segments, the longest first."""
    while name:
        yield name
        name = name.partition(".")[2]


def _with_entry(rename: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Return a rename with one more entry, longer beginnings before shorter ones."""
    entries = {**rename, old: new}
    return dict(sorted(entries.items(), key=lambda entry: -len(entry[0])))
