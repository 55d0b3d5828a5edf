"""Tell how the data at hand differs from what a run was trained on."""

from collections.abc import Sequence

import numpy as np

from finetune.data.identify.identity import DataIdentity, Hashes

_SHOWN = 5
"""Names that a message quotes at most."""


def mended(there: DataIdentity, now: DataIdentity) -> int:
    """Return how many samples are others now because they were mended; 0 if anything else differs.

    A sample counts as mended if the run could not make it: then nothing was trained on it.
    """
    is_alike = there.classes == now.classes and there.by_target == now.by_target
    is_alike &= there.columns.keys() == now.columns.keys()
    if not is_alike or there.sizes != now.sizes or there.is_short or now.is_short:
        return 0
    count = 0
    for part, rows in there.parts.items():
        changed = np.flatnonzero(rows != now.parts[part]).tolist()
        if not set(changed) <= set(there.unread.get(part, ())):
            return 0
        count += len(changed)
    return count


def differences(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return one line per difference between a run's data and the data at hand."""
    lines = [*_columns(there, now), *_classes(there.classes, now.classes)]
    lines += _classes_by_target(there, now)
    return lines + (_rows(there, now) or _places(there, now))


def differences_of_contents(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return the lines of `differences` that do not depend on the part of a row.

    For data whose rows have no part yet; its classes may be unknown.
    """
    lines = _columns(there, now)
    if now.classes is not None:
        lines += _classes(there.classes, now.classes)
    return lines + _rows(there, now)


def _columns(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return lines on columns that are gone, new, or exchanged."""
    old, new = there.columns, now.columns
    lines = [f"column {name!r} is gone" for name in old if name not in new]
    lines += [f"column {name!r} is new" for name in new if name not in old]
    for name, value in old.items():
        # Columns that were exchanged would otherwise be reported as rows that all changed.
        other = next((each for each in new if new[each] == value), None)
        if new.get(name, value) != value and other is not None:
            lines.append(f"column {other!r} holds what column {name!r} held")
    return lines


def _classes(old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> list[str]:
    """Return a line on classes that are gone, new, or in another order."""
    if old == new:
        return []
    gone = [name for name in old or () if name not in (new or ())]
    added = [name for name in new or () if name not in (old or ())]
    said = [f"{_shown(gone)} gone"] * bool(gone) + [f"{_shown(added)} new"] * bool(added)
    return [f"classes: {', '.join(said) or 'in another order'}"]


def _classes_by_target(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return a line for each target of a list of tasks whose classes differ."""
    names = dict.fromkeys([*there.by_target, *now.by_target])
    return [
        f"column {name!r}: {line}"
        for name in names
        for line in _classes(there.by_target.get(name), now.by_target.get(name))
    ]


def _rows(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return a line on rows that changed, were added or removed, whatever their order."""
    size, other = sum(there.sizes.values()), sum(now.sizes.values())
    if there.is_short or now.is_short:
        return [] if size == other else [f"rows: other ones, {size} there, {other} now"]
    old, new = np.concatenate([*there.parts.values()]), np.concatenate([*now.parts.values()])
    num_gone, num_new = _num_lacking(old, new), _num_lacking(new, old)
    if not num_gone and not num_new:
        return []
    # A row that changed is one that is gone and one that is new; which of them belong together is
    # unknown.
    changed = min(num_gone, num_new)
    return [
        f"rows: {changed} changed, {num_new - changed} added, {num_gone - changed} removed, "
        f"of {len(old)}"
    ]


def _places(there: DataIdentity, now: DataIdentity) -> list[str]:
    """Return a line on how equal rows moved between parts or in order."""
    if there.sizes == now.sizes and _alike(there, now):
        return []
    if there.is_short or now.is_short:
        size, other = sum(there.sizes.values()), sum(now.sizes.values())
        return [f"rows: other ones, {size} there, {other} now"]
    none = np.empty(0, np.uint64)
    moved = sum(_num_lacking(rows, now.parts.get(name, none)) for name, rows in there.parts.items())
    return [f"rows: {moved} in another part" if moved else "rows: in another order"]


def _alike(there: DataIdentity, now: DataIdentity) -> bool:
    """Tell whether all parts have the same rows in the same order."""
    return there.parts.keys() == now.parts.keys() and all(
        np.array_equal(rows, now.parts[name]) for name, rows in there.parts.items()
    )


def _num_lacking(some: Hashes, others: Hashes) -> int:
    """Return how many of some rows are not among others; each row matches only one."""
    # Sorted once instead of looked up one by one: there may be millions.
    values, counts = np.unique(some, return_counts=True)
    other_values, other_counts = np.unique(others, return_counts=True)
    _, here, there = np.intersect1d(values, other_values, assume_unique=True, return_indices=True)
    return len(some) - int(np.minimum(counts[here], other_counts[there]).sum())


def _shown(names: Sequence[str]) -> str:
    """Return the first few names as text, and the number of the others."""
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
