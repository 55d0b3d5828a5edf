"""Labels that new samples bring along, beside those that a run has learned."""

from collections.abc import Sequence
from typing import Any

from finetune.data.labels import folded, twin_of
from finetune.errors import named


def notes_on_new_labels(
    labels: Sequence[Any], column: str, classes: Sequence[str], *, fold: bool
) -> list[str]:
    """Tell which labels a run does not know, and which of its classes no sample has.

    Args:
        labels: The cells of the column; none where the samples have no such column.
        column: Its name.
        classes: What the run tells apart.
        fold: Whether spellings that differ in case and blanks alone are one label.
    """
    found = [_as_text(label) for label in labels if label is not None and label != ""]
    if not found:
        return []
    spelt = folded if fold else str
    known, here = set(map(spelt, classes)), set(map(spelt, found))
    strange = [label for label in found if spelt(label) not in known]
    absent = [name for name in classes if spelt(name) not in here]
    notes = []
    if strange:
        twin = twin_of(strange[0], classes)
        more = "" if twin is None else f"; the run knows {named([twin])}"
        which = named(list(dict.fromkeys(strange)))
        count = f"{len(strange):,} of {len(found):,}"
        notes.append(f"{count} labels of {column!r} are no class of the run: {which}{more}")
    if absent:
        count = f"{len(absent)} of {len(classes)} classes of the run"
        notes.append(f"{count} are no label of {column!r}: {named(absent)}")
    return notes


def _as_text(label: Any) -> str:
    """Return a label as training names it: whole numbers without a point."""
    is_whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if is_whole else label)
