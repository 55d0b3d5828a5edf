"""Number labels as classes, and refuse those that training never sees.

Letters: N samples, C classes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.config.messages import shown
from finetune.data.images import Images
from finetune.data.ragged import Ragged
from finetune.data.readers.mapped import Distinct
from finetune.data.table import Numbers
from finetune.data.targets.class_counts import class_counts
from finetune.data.targets.labels import (
    LabelRules,
    Ordered,
    notes_on_gaps,
    notes_on_spelling,
    ordered,
    remedy_for_rare,
    twin_of,
)
from finetune.errors import DataError, named

TARGET_KEY = ("data", "target")


_LONG = 150
"""Most characters of a list of labels in a message; a longer one is given as a count."""


_MOST_NAMED = 3
"""Number of unknown labels to name; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Targets, and the names of the classes if there are any.

    They are a tensor `(N, ...)`, masks, or sequences such as the tags of a text's words.
    """

    values: Tensor | Images | Numbers | Ragged
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    """Lines to report to the user about the labels."""


@dataclass(frozen=True, slots=True)
class PartLabels:
    """What is known about a part's labels before they become numbers."""

    name: str
    """Name of the column."""
    part: str
    rules: LabelRules
    classes: tuple[str, ...] | None
    """Classes of the training part; None to find them in this part."""
    place: Callable[[int], str]
    """Returns the place of a row, for messages."""

    def numbered(self, labels: Distinct, spellings: set[str], found: Sequence[str]) -> Target:
        """Return the class numbers `(N,)` of labels; for the other arguments see `settled`."""
        order = self.settled(spellings, found)
        number = {label: position for position, label in enumerate(order.classes)}
        if not set(labels.values) <= number.keys():
            which = [labels.values[place] for place in labels.numbers.tolist()]
            raise self.unseen([{label} for label in which], order.classes)
        # One look-up for each different label, of which there are few, and none for each row.
        values = torch.tensor([number[label] for label in labels.values])
        return Target(values[labels.numbers], order.classes, order.notes)

    def unseen(self, sets: Sequence[set[str]], classes: Sequence[str]) -> DataError:
        """Return the error for labels that are no classes; it counts them and names a row of each.

        Args:
            sets: The labels of each sample.
            classes: The classes of training.
        """
        known, count = set(classes), Counter[str]()
        first: dict[str, int] = {}
        for row, labels in enumerate(sets):
            # Sorted: the order of a set of texts differs from one process to the next.
            for label in sorted(labels - known):
                count[label] += 1
                first.setdefault(label, row)
        each = [
            f"{shown(label)} ({num}, {'in' if num == 1 else 'first in'} {self._row(first[label])})"
            for label, num in count.most_common(_MOST_NAMED)
        ]
        more = f" and {len(count) - _MOST_NAMED} more" if len(count) > _MOST_NAMED else ""
        there = named(classes)
        # A message with hundreds of labels hides those that matter.
        there = there if len(there) <= _LONG else f"{len(classes)} labels"
        told = f": unknown are {', '.join(each)}{more}; training has {there}"
        return _unseen(next(iter(first)), self.part, classes, None, told)

    def _row(self, number: int) -> str:
        """Return the place of a row, without the name of the part if the message has it already."""
        return self.place(number).removesuffix(f" of {self.part}")

    def settled(self, spellings: set[str], found: Sequence[str]) -> Ordered:
        """Return the classes: those that were given, or those found, in order and with notes.

        Args:
            spellings: Each distinct label as written.
            found: Each distinct label as it is compared, sorted.
        """
        if self.classes is not None:
            return Ordered(self.classes)
        order = ordered(found, self.rules)
        written = sorted(spellings)
        about = (*notes_on_gaps(written), *notes_on_spelling(written, self.rules))
        return Ordered(order.classes, (*about, *order.notes))


def _unseen(
    label: str, part: str, classes: Sequence[str], hint: str | None, both: str = ""
) -> DataError:
    """Return the error for a label that training never sees; the hint names a similar one."""
    if (twin := twin_of(label, classes)) is not None:
        hint = f"training has {twin!r}; data.labels: {{fold: true}} makes them one label"
    return DataError(
        f"label {shown(label)} of {part} is never seen in training{both}", hint=hint, key=TARGET_KEY
    )


def refuse_unseen(
    trained: Tensor,
    target: Tensor,
    classes: tuple[str, ...],
    part: str,
    hint: str | None,
    *,
    drawn: Sequence[Tensor] = (),
) -> None:
    """Raise `DataError` if `target` has a class that `trained` never has.

    Args:
        trained: Targets of the training samples, `(N,)` or `(N, C)`.
        target: Targets of another part.
        classes: Names of the classes.
        part: Name of that other part.
        hint: The remedy.
        drawn: Targets of all parts of a source that was split; empty if each part has its own.
    """
    num_trained, num_here = (class_counts(each, len(classes)) for each in (trained, target))
    missing = (num_here > 0) & (num_trained == 0)
    if bool(missing.any()):
        number = int(missing.nonzero()[0])
        label, rare = classes[number], ""
        count = sum(int(class_counts(each, len(classes))[number]) for each in drawn)
        if count < len(drawn):
            # No other split would help, so the hint names none.
            rare = (
                f": it has {count} sample{'s' if count > 1 else ''}, too few for {len(drawn)} parts"
            )
            hint = remedy_for_rare(label, count, classes)
        raise _unseen(label, part, [name for name in classes if name != label], hint, rare)
