"""Labels as people write them: their spelling, and the order that a pretrained head gives them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from finetune.errors import DataError, named

_KEY = ("data", "target")
_INVISIBLE = "Cf"
"""Unicode's category of characters that nobody sees, such as a byte order mark."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How the labels of a target become classes.

    Args:
        fold: Whether spellings that differ in case and blanks alone are one label.
        order: Where the order of the classes comes from.
        head: Names that a pretrained head gives its outputs, in their order; empty if there are
            none.
        names: Labels that the columns of a row of 0 and 1 stand for; empty for their positions.
    """

    fold: bool = False
    order: Literal["head", "sorted"] = "head"
    head: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def spelt(self, label: str) -> str:
        """Return a label as it is compared with others."""
        return folded(label) if self.fold else label


class Ordered(NamedTuple):
    """The classes, each the place of its number, and what a user should know of the order."""

    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def folded(label: str) -> str:
    """Return a label without what people rarely mean: its case, blanks, and invisible characters.

    Characters that Unicode holds to be the same (NFKC) become one, also blanks of other widths.
    """
    text = unicodedata.normalize("NFKC", label).casefold()
    seen = (character for character in text if unicodedata.category(character) != _INVISIBLE)
    return " ".join("".join(seen).split())


def notes_on_spelling(labels: Sequence[str], rules: LabelRules) -> list[str]:
    """Tell which labels are equal but for case and blanks, or that such ones became one.

    Args:
        labels: Each label of the training samples once, as they hold it.
        rules: Whether such labels are one.
    """
    spellings: dict[str, list[str]] = {}
    for label in sorted(labels):
        spellings.setdefault(folded(label), []).append(label)
    alike = [group for group in spellings.values() if len(group) > 1]
    if not alike:
        return []
    if rules.fold:
        return [f"{len(labels)} spellings are folded to {len(spellings)} labels"]
    count, worst = sum(map(len, alike)), max(alike, key=len)
    return [
        f"{count} of {len(labels)} labels are equal to others but for case and blanks, such as "
        f"{named(worst)}; data.labels: {{fold: true}} leaves {len(spellings)}"
    ]


def twin_of(label: str, classes: Sequence[str]) -> str | None:
    """Return the class that a label equals but for case and blanks; None if there is none."""
    return next((name for name in classes if folded(name) == folded(label)), None)


def ordered(found: Sequence[str], rules: LabelRules) -> Ordered:
    """Return the classes in the order of a pretrained head that knows them, else as they are.

    Names match if they are equal, or equal but for case and blanks where that leaves no doubt. A
    head that knows more classes than the data holds keeps all of them. Labels 0, 1, ... are its
    places. A head of another width will be a new one, and orders nothing.

    Args:
        found: The labels of the training samples, each once, sorted.
        rules: Names of the head, and whether it is asked.

    Raises:
        DataError: the head has as many outputs as there are labels, but other names for them.
    """
    head, classes = rules.head, tuple(found)
    if not head or rules.order == "sorted" or not classes:
        return Ordered(classes)
    if set(classes) == {str(place) for place in range(len(head))}:
        pairs = ", ".join(f"{place} is {named([name])}" for place, name in enumerate(head[:5]))
        more = ", ..." if len(head) > 5 else ""
        return Ordered(classes, (f"labels are places of the pretrained head: {pairs}{more}",))
    places = _places(classes, head)
    if places is None:
        if len(classes) != len(head):
            return Ordered(classes)
        raise DataError(
            f"the labels are {named(classes)}, the outputs of the pretrained head are "
            f"{named(head)}",
            hint="name the labels as the head does; data.labels: {order: sorted} takes its "
            "outputs for the sorted labels all the same",
            key=_KEY,
        )
    of_head = tuple(places.get(n, rules.spelt(name)) for n, name in enumerate(head))
    if of_head == classes:
        return Ordered(classes)
    note = (
        f"classes are in the order of the pretrained head: {named(of_head)}; "
        "data.labels: {order: sorted} sorts them"
    )
    return Ordered(of_head, (note,))


def _places(found: Sequence[str], head: Sequence[str]) -> dict[int, str] | None:
    """Return each label by its place in the head; None if some are not there, or there twice."""
    for spelt in (str, folded):
        place = {spelt(name): number for number, name in enumerate(head)}
        matched = {place[spelt(label)]: label for label in found if spelt(label) in place}
        if len(place) == len(head) and len(matched) == len(found):
            return matched
    return None
