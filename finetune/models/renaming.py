"""Rename tensors of a file as asked, or find the rename that would make them fit."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from finetune.errors import Key, ModelError

_MOST_ENTRIES = 4
"""Most entries of a suggested rename: what needs more is not just a matter of beginnings."""
_OLD_ENDS = {"gamma": "weight", "beta": "bias"}
"""What TensorFlow calls the parameters of a norm, with torch's names."""
_MOST_TRIED = 16
"""Most beginnings tried per entry, those first that fit most names."""


def renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], key: Key
) -> dict[str, Tensor]:
    """Return the tensors by their names in the module.

    The first beginning that fits is replaced, after all parts whose entry begins with `*`.

    Raises:
        ModelError: two tensors get the same name, or an entry matches no name.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _new_name(name, rename)
        if new in result:
            raise ModelError(f"two tensors of the file become {new!r}", key=key)
        result[new] = tensor
    # An entry may be right by itself and never reached, since the first that fits is taken.
    used = _used(tensors, rename)
    for old in rename:
        if old not in used:
            where = "holds" if _is_part(old) else "begins with"
            raise ModelError(
                f"no name of the file {where} {old.removeprefix('*')!r}, or an entry before it "
                "takes them all",
                hint=f"the file has {first_names(tuple(tensors))}",
                key=(*key, old),
            )
    return result


def mending(own: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return the rename that gives most names of a file the names of the module.

    Names differ by a beginning: that of a wrapper (`module.`, `_orig_mod.`, `model.`, `backbone.`),
    of a container (`ema.`), or of a part with another name. The beginning is what precedes the
    longest common end of two names. Or all have a part within (`.base_layer.`), or one part under
    another name (`.gamma` for `.weight`). Nothing is renamed here.

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
        pairs = _candidates(own, theirs, entries) + _parts(own, theirs, entries)
        tried = [_with_entry(entries, *pair) for pair in pairs]
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


def _is_part(old: str) -> bool:
    """Tell whether an entry is about a part of names, wherever it is in them."""
    return len(old) > 1 and old.startswith("*")


def _entry_for(name: str, rename: Mapping[str, str]) -> str | None:
    """Return the first entry that a name begins with; None if it keeps its beginning."""
    return next((old for old in rename if not _is_part(old) and name.startswith(old)), None)


class _Changed(NamedTuple):
    """A name as a rename changes it."""

    name: str
    entries: tuple[str, ...]
    """The entries that were used, in their order."""


def _changed(name: str, rename: Mapping[str, str]) -> _Changed:
    """Return a name after all parts whose entry begins with `*`, and then its beginning."""
    entries = []
    for old, new in rename.items():
        if _is_part(old) and old[1:] in name:
            entries.append(old)
            name = name.replace(old[1:], new)
    beginning = _entry_for(name, rename)
    if beginning is not None:
        entries.append(beginning)
        name = rename[beginning] + name.removeprefix(beginning)
    return _Changed(name, tuple(entries))


def _used(names: Iterable[str], rename: Mapping[str, str]) -> set[str]:
    """Return the entries that change a name."""
    return {old for name in names for old in _changed(name, rename).entries}


def _new_name(name: str, rename: Mapping[str, str]) -> str:
    """Return a name as the rename changes it."""
    return _changed(name, rename).name


def _num_fitting(
    own: Collection[str], theirs: Collection[str], rename: Mapping[str, str]
) -> int | None:
    """Return how many names become names of the module; None if the rename would be refused."""
    # As `renamed` refuses them: a suggestion must not be answered by the next error.
    if not rename.keys() <= _used(theirs, rename):
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
        # A name that fits already is no reason to rename anything.
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


def _parts(
    own: Collection[str], theirs: Iterable[str], rename: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return entries for one part of names that the module lacks, or has under another name."""
    known = {part for name in own for part in name.split(".")}
    masked = defaultdict[tuple[str, ...], set[str]](set)
    for name in own:
        for masks, part in _masked(name):
            masked[masks].add(part)
    votes = Counter[tuple[str, str]]()
    for name in theirs:
        for masks, part in _masked(_new_name(name, rename)):
            if part not in known:
                votes.update(_entries_for(part, masks, masked.get(masks, set())))
    return [pair for pair, _ in votes.most_common(_MOST_TRIED)]


def _entries_for(
    part: str, masks: Sequence[str], others: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield the entries that take out a part of a name, or give it the name it has in the module.

    Args:
        part: A part that no name of the module has.
        masks: All parts of its name, "" in its place.
        others: What the module has in that place of such a name.
    """
    if masks[-1] != "":
        yield f"*{part}.", ""
    elif part in _OLD_ENDS:
        yield f"*.{part}", f".{_OLD_ENDS[part]}"
    if len(others) == 1 and masks[0] != "":
        end = "" if masks[-1] == "" else "."
        yield f"*.{part}{end}", f".{next(iter(others))}{end}"


def _masked(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each part of a dotted name, with all parts in order and "" in its place."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        yield (*parts[:at], "", *parts[at + 1 :]), part


def _ends(name: str) -> Iterator[str]:
    """Yield a dotted name, and then what is left without its first parts, the longest first."""
    while name:
        yield name
        name = name.partition(".")[2]


def _with_entry(rename: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Return a rename with one more entry; longer ones come first, since the first match wins."""
    entries = {**rename, old: new}
    # Without the order `enc.` would take the names of `enc.layer.`, too.
    return dict(sorted(entries.items(), key=lambda entry: -len(entry[0])))
