"""What a user is told of new samples: how they were read, and how their labels differ."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from finetune.data.incoming.incoming_part import Incoming
from finetune.data.targets.loss_columns import changes_what_is_seen
from finetune.data.targets.new_labels import notes_on_new_labels, notes_on_new_sets
from finetune.train.after.trained import TrainedRun

_MOST_LABELS = 100_000
_NUMBER = re.compile(r"""(column (?:'[^']*'|"[^"]*"))|\d[\d,.]*""")
"""A number; the name of a column is matched too, so that digits in it are not taken for one."""


class Remarks:
    """Tells each remark on new samples once, although they come piece by piece.

    Args:
        run: The run that predicts.
        told: Receives a line for the user.
    """

    def __init__(self, run: TrainedRun, told: Callable[[str], None]) -> None:
        self._run = run
        self._told = told
        self._seen: Counter[str] = Counter()
        """Number of notes of each kind so far; notes of one kind differ in numbers alone."""
        self._known = set[str]()
        """Kinds of which one note was told."""
        self._has_begun = False
        self._labels: list[Any] = []
        self._num_labels = 0
        self.num_odd = 0
        """Predictions with a number that is not finite."""
        self.first_odd = ""
        """Name of the first sample with one."""

    def first(self) -> None:
        """Tell what is known before any sample is read, once."""
        if self._has_begun:
            return
        self._has_begun = True
        picture = self._run.task.picture
        for note in self._run.notes:
            self._told(note)
        if picture is not None and changes_what_is_seen(self._run.config.data):
            self._told(
                f"evaluation cuts or pads images: a {picture} is of what the network sees, not of "
                "the whole image"
            )

    def tell(self, note: str) -> None:
        """Tell a note, unless one like it, with other numbers, was told of an earlier piece."""
        like = _NUMBER.sub(lambda found: found[1] or "#", note)
        self._seen[like] += 1
        if like not in self._known:
            self._known.add(like)
            self._told(note)

    def begin_anew(self) -> None:
        """Forget all samples, but not what was told of them: they are read once more."""
        self._seen.clear()
        self._labels.clear()
        self._num_labels = self.num_odd = 0
        self.first_odd = ""

    def on(self, part: Incoming) -> None:
        """Tell how a piece was read, and keep its labels."""
        for note in part.notes:
            self.tell(note)
        target = self._run.facts.target
        labels = part.columns.get(target, ()) if target is not None else ()
        self._num_labels += len(labels)
        self._labels += labels[: _MOST_LABELS - len(self._labels)]

    def predicted(self, row: Mapping[str, Any], name: str) -> None:
        """Count a prediction whose numbers are not all finite; `name` is that of its sample."""
        if not _is_finite(row):
            self.num_odd += 1
            self.first_odd = self.first_odd or name

    def last(self) -> None:
        """Tell which remarks hold for further pieces too, and how the labels differ."""
        if self.num_odd:
            is_one = self.num_odd == 1
            first = self.first_odd if is_one else f"the first for {self.first_odd}"
            self._told(
                f"{self.num_odd:,} prediction{' is' if is_one else 's are'} not finite (nan, "
                f"inf), {first}: JSON has null there, and a label beside nan means nothing"
            )
        facts, config = self._run.facts, self._run.config
        if facts.target is not None and facts.classes is not None:
            about, fold = (self._labels, facts.target, facts.classes), config.data.labels.fold
            notes: list[str] = []
            match config.task.learns:
                case "class":
                    notes = notes_on_new_labels(*about, fold=fold)
                case "labels":
                    notes = notes_on_new_sets(*about, config.task, fold=fold)
            cut = self._num_labels > len(self._labels)
            more = f" (of the first {len(self._labels):,} labels)" if cut else ""
            for note in notes:
                self._told(note + more)
        again = sum(count - 1 for count in self._seen.values())
        if again:
            noun, are = ("note", "is") if again == 1 else ("notes", "are")
            self._told(f"{again:,} {noun} like these on further pieces of the input {are} left out")


def _is_finite(value: Any) -> bool:
    """Tell whether all numbers of a prediction are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):  # before mappings: to tell that it is none takes a while
        return True
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True
