"""What an evaluation has seen of tagged words, and the pictures of it.

Letters: B texts, L tokens, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from finetune.data.batches import Batch
from finetune.data.samples import IGNORED, WORDS_OF
from finetune.pictures.class_scores import draw_class_scores, scores_of
from finetune.pictures.confusion import draw_confusion
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, ShownSample, draw_samples
from finetune.train.looks.seen import Curve, Inputs
from finetune.train.looks.seen_masks import confusion


class _Wrong(NamedTuple):
    """A text with wrong words."""

    share: float
    """Share of its words that are right."""
    number: int
    words: int
    faults: Mapping[int, tuple[int, int]]
    """For each wrong word, by its place in the text: the class it was given, and its own."""


@dataclass(slots=True)
class SeenTags:
    """A class for each word of a text."""

    names: Sequence[str]
    _worst: list[_Wrong] = field(default_factory=list)
    _counts: np.ndarray | None = None
    _num: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, L, C)`.

        Raises:
            ValueError: they are of another form.
        """
        target, size = batch.target, len(self.names)
        if target is None or target.ndim != 2 or outputs.shape != (*target.shape, size):
            raise ValueError("no logit for each class of each token")
        said, is_word = outputs.argmax(-1), target != IGNORED
        counts = confusion(target[is_word], said[is_word], size)
        self._counts = counts if self._counts is None else self._counts + counts
        self._num += len(batch)
        places = next((v for k, v in batch.columns.items() if k.startswith(WORDS_OF)), None)
        # No tokenizer has told which words tokens begin: they are counted.
        if places is None:
            places = is_word.cumsum(1) - 1
        rows = zip(batch.indices.tolist(), said.cpu(), target.cpu(), places.cpu(), strict=True)
        found = [_wrong(*row) for row in rows]
        worst = [*self._worst, *(one for one in found if one.faults)]
        self._worst = sorted(worst, key=lambda one: one[:2])[:MOST_SHOWN]

    def shown(self) -> Sequence[int]:
        """Return the texts with the smallest share of right words."""
        return [one.number for one in self._worst]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return the confusion of words, the scores of classes, and texts with marked words."""
        assert self._counts is not None
        heading = f"most wrong of {self._num:,} validation texts; marked: said, not what it is"
        worst = [self._sample(one, show[one.number]) for one in self._worst]
        return {
            "confusion": draw_confusion(self._counts, self.names),
            "classes": draw_class_scores(*scores_of(self._counts), self.names),
            **({"most_wrong": draw_samples(worst, heading)} if worst else {}),
        }

    def curves(self) -> list[Curve]:
        """Return none: words are too many."""
        return []

    def _sample(self, one: _Wrong, inputs: Inputs) -> ShownSample:
        """Return a text with its wrong words marked."""
        marks: list[str | None] = [None] * len(inputs.words)
        for place, (said, so) in one.faults.items():
            if place < len(marks):
                marks[place] = f"{self.names[said]}, not {self.names[so]}"
        # Named apart: it may lie behind what is shown of the text.
        place, (said, so) = min(one.faults.items())
        return ShownSample(
            f"{self.names[said]} of word {place + 1}",
            self.names[so],
            f"sample {one.number}: {len(one.faults)} of {one.words} words wrong",
            words=inputs.words,
            marks=marks,
        )


def _wrong(number: int, said: torch.Tensor, target: torch.Tensor, places: torch.Tensor) -> _Wrong:
    """Return what is wrong with one text, from `(L,)` each."""
    is_word = target != IGNORED
    is_wrong = is_word & (said != target)
    triples = zip(*(each[is_wrong].tolist() for each in (places, said, target)), strict=True)
    words = int(is_word.sum())
    faults = {place: (given, own) for place, given, own in triples}
    return _Wrong(1 - len(faults) / max(1, words), number, words, faults)
