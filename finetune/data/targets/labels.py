"""Compare labels as people write them, and order classes as a pretrained head does."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from finetune.errors import DataError, named

_KEY = ("data", "target")
_INVISIBLE = "Cf"
"""Unicode category of invisible characters, such as a byte order mark."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?")
_SIGN = r"(?:[\s_'\"`.,;:\u2018-\u201f]|[\u2010-\u2015\u2212-](?!$))"
_SIGNS = re.compile(rf"(?<![0-9]){_SIGN}+|{_SIGN}+(?![0-9])")
"""Signs that people set and leave out: blanks, dashes, quotation marks, points. Between digits they
mean something, as in class 1.11 of others, and so does a last dash, as in the grade A-."""
_LETTERS = str.maketrans("аеорсухкмнтвіјѕ", "aeopcyxkmhtbijs")
"""Cyrillic letters that look like Latin ones."""

_GAPS = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?"})
"""Labels, without case, that programs write where there is none. Tags have signs such as `-`."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How the labels of a target become classes.

    Args:
        fold: Whether labels that differ only in case and blanks are one.
        order: Where the order of the classes comes from.
        head: Names of the outputs of a pretrained head, in order; empty if there are none.
        names: Labels that the columns of rows of 0 and 1 stand for; empty to use positions.
    """

    fold: bool = False
    order: Literal["head", "sorted"] = "head"
    head: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def spelt(self, label: str) -> str:
        """Return a label in the form in which it is compared with others."""
        return folded(label) if self.fold else label


class Ordered(NamedTuple):
    """The classes in the order of their numbers, and notes for the user on that order."""

    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def folded(label: str) -> str:
    """Return a label without what people rarely intend: case, extra blanks, hidden characters.

    Characters that Unicode treats as equivalent (NFKC) become one, including blanks of any width.
    """
    # `casefold`, not `lower`: it also makes `ß` and `ss` the same.
    text = unicodedata.normalize("NFKC", label).casefold()
    seen = (character for character in text if unicodedata.category(character) != _INVISIBLE)
    return " ".join("".join(seen).split())


def notes_on_spelling(labels: Sequence[str], rules: LabelRules) -> list[str]:
    """Return a note on labels that differ only in case and blanks, or were made one; or nothing.

    Args:
        labels: Each distinct label of the training samples, as written.
        rules: Say whether such labels are one.
    """
    spellings: dict[str, list[str]] = {}
    for label in sorted(labels):
        spellings.setdefault(folded(label), []).append(label)
    alike = [group for group in spellings.values() if len(group) > 1]
    if not alike:
        return _notes_on_looks(labels)
    if rules.fold:
        return [f"{len(labels)} spellings are folded to {len(spellings)} labels"]
    count, worst = sum(map(len, alike)), max(alike, key=len)
    return [
        f"{count} of {len(labels)} labels are equal to others but for case and blanks, such as "
        f"{named(worst)}; data.labels: {{fold: true}} leaves {len(spellings)}"
    ]


def _notes_on_looks(labels: Sequence[str]) -> list[str]:
    """Return a note on labels that look alike to a person and are several classes; or nothing."""
    looks: dict[str, list[str]] = {}
    for label in sorted(labels):
        looks.setdefault(_looks(label), []).append(label)
    alike = [group for group in looks.values() if len(group) > 1]
    if not alike:
        return []
    count, worst = sum(map(len, alike)), max(alike, key=len)
    return [
        f"{count} of {len(labels)} labels look alike to a person, such as {named(worst)}; if they "
        "mean one class, write them alike in the data"
    ]


def _looks(label: str) -> str:
    """Return what a person sees of a label: a number's value, letters without signs between."""
    text = folded(label)
    if _NUMBER.fullmatch(text):
        return str(float(text))
    return _SIGNS.sub("", text).translate(_LETTERS) or text


def notes_on_gaps(labels: Sequence[str]) -> list[str]:
    """Return a note on labels that read like a missing value, or nothing.

    They stay classes: `none` may be an answer.

    Args:
        labels: Each distinct label of the training samples, as written.
    """
    gaps = [label for label in labels if label.strip().casefold() in _GAPS]
    if not gaps:
        return []
    verb = "is a class and reads" if len(gaps) == 1 else "are classes and read"
    listed = ", ".join(f'"{label}"' for label in gaps)
    return [
        f"{len(gaps)} of {len(labels)} labels {verb} like a missing value: {named(gaps)}; "
        f"missing: [{listed}], beside the path, refuses rows without a label"
    ]


def twin_of(label: str, classes: Sequence[str]) -> str | None:
    """Return the class that equals a label except for case and blanks, or None."""
    return next((name for name in classes if folded(name) == folded(label)), None)


def remedy_for_rare(label: str, count: int, classes: Sequence[str]) -> str:
    """Return a hint for a class with fewer samples than there are parts.

    Args:
        label: The class.
        count: Number of its samples.
        classes: All classes; one of them may be the same label in another spelling.
    """
    twin = twin_of(label, [name for name in classes if name != label])
    if twin is not None:
        return f"there is also {twin!r}; data.labels: {{fold: true}} makes them one label"
    rows, them = ("its row", "it") if count == 1 else (f"its {count} rows", "them")
    return f"leave {rows} out of the data, or give {them} the label of another class"


def ordered(found: Sequence[str], rules: LabelRules) -> Ordered:
    """Return the classes in the order of a pretrained head that has them; else in their own.

    Names match if they are equal, or equal except for case and blanks if that is unambiguous. A
    head with more classes than the data keeps all of them. Labels 0, 1, ... are positions in the
    head. A head of another width will be replaced, so its order does not matter.

    Args:
        found: The distinct labels of the training samples, sorted.
        rules: Names of the head's outputs, and whether to use them.

    Raises:
        DataError: the head has as many outputs as there are labels, but with other names.
    """
    head, classes = rules.head, tuple(found)
    if not head or rules.order == "sorted" or not classes:
        return Ordered(classes)
    # Whole numbers from 0 on are what a head's outputs are counted by, whatever its names are.
    if set(classes) == {str(place) for place in range(len(head))}:
        pairs = ", ".join(f"{place} is {named([name])}" for place, name in enumerate(head[:5]))
        more = ", ..." if len(head) > 5 else ""
        return Ordered(classes, (f"labels are places of the pretrained head: {pairs}{more}",))
    places = _places(classes, head)
    if places is None:
        if len(classes) != len(head):
            return Ordered(classes)
        # In the sorted order each output would silently stand for another class than it was trained
        # for.
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
    """Return each label by its position in the head; None if one is missing or ambiguous."""
    # Equal names first: folded ones are only a guess at what is meant.
    for spelt in (str, folded):
        place = {spelt(name): number for number, name in enumerate(head)}
        matched = {place[spelt(label)]: label for label in found if spelt(label) in place}
        # With fewer places than names two of the head are alike, and nobody knows which is meant.
        if len(place) == len(head) and len(matched) == len(found):
            return matched
    return None
