"""What an evaluation has seen of answers in texts, and the pictures of it.

Letters: B samples of a batch, L tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from finetune.config.task_keys import SpanTask
from finetune.data.batches import Batch
from finetune.data.samples import (
    CHARACTERS,
    IGNORED,
    RIGHT_ANSWERS,
    TOKEN_ENDS,
    TOKEN_STARTS,
    WINDOW_OF,
)
from finetune.pictures.beside_targets import draw_beside_targets
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, ShownSample, draw_samples
from finetune.tasks.answer_scores import score_of
from finetune.tasks.span import (
    BestAnswer,
    answer_of_text,
    best_answers,
    right_answers,
    text_of_codes,
)
from finetune.train.looks.seen import MOST_SCORES, MOST_WORDS, Curve, Inputs

_NONE = (-1, -1)
"""Place of no answer."""
_WORDS_BEFORE = 8
"""Words that are shown before the first answer."""


class _Window(NamedTuple):
    """What is said of a window of a text, and what is right."""

    number: int
    """Of the text, before it was cut into windows."""
    sample: int
    """Position of the window in the split, where each window is a sample."""
    found: BestAnswer
    text: str
    so: tuple[int, int]
    """As in `_Said`."""
    answers: Sequence[str]
    """All right answers; none of them, or an empty one, stands for no answer."""

    # For `answer_of_text`.
    @property
    def probability(self) -> float:
        return self.found.probability

    @property
    def none(self) -> float:
        return self.found.none


class _Said(NamedTuple):
    """What is said of a text, and the window that gives its answer, as metrics choose it."""

    f1: float
    doubt: float
    """1 - its probability: of answers that are equally wrong, the surest comes first."""
    number: int
    sample: int
    text: str
    """The window of the text that the network saw."""
    said: tuple[int, int]
    """First character of the predicted answer in that window, and the place behind its last."""
    so: tuple[int, int]
    """The same of the answer that is learnt; of a text in windows, that answer may lie in another
    one."""
    right: str
    """That answer; empty for none."""


@dataclass(slots=True)
class SeenAnswers:
    """The answer to a question as a part of a text."""

    config: SpanTask
    _places: list[tuple[int, int]] = field(default_factory=list)
    """First character of the predicted answer and of the learnt one, of each text."""
    _worst: list[_Said] = field(default_factory=list)
    _num: int = 0
    _num_unplaced: int = 0
    """Texts whose answer does not lie whole in the window that gives the predicted one."""
    _open: list[_Window] = field(default_factory=list)
    """The windows of the latest text so far: more may follow."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, L, 2)`.

        Raises:
            ValueError: they are of another form, or there are too many samples.
        """
        target = batch.target
        if target is None or target.ndim != 2 or CHARACTERS not in batch.columns:
            raise ValueError("no place of an answer for each text")
        found = best_answers(self.config, outputs, batch)
        if len(self._places) + len(found) > MOST_SCORES:
            raise ValueError(f"they are more than {MOST_SCORES:,} texts")
        names = (CHARACTERS, RIGHT_ANSWERS, WINDOW_OF, TOKEN_STARTS, TOKEN_ENDS)
        columns = (batch.columns[name].tolist() for name in names)
        for sample, best, (first, last), codes, right, number, starts, ends in zip(
            batch.indices.tolist(), found, target.tolist(), *columns, strict=True
        ):
            is_there = first != IGNORED and starts[first] >= 0
            so = (starts[first], ends[last]) if is_there else _NONE
            # Shorter texts of a batch are padded with -1.
            text = text_of_codes([code for code in codes if code >= 0])
            if self._open and self._open[0].number != number:
                self._close()
            self._open.append(_Window(number, sample, best, text, so, right_answers(right)))

    def shown(self) -> Sequence[int]:
        """Return windows of the texts with the least right answers."""
        self._close()
        return [one.sample for one in self._worst]

    def _close(self) -> None:
        """Count the latest text, whose windows are all seen."""
        windows, self._open = self._open, []
        if not windows:
            return
        one = _said(windows)
        # An answer in another window has no place in this one that a point could show.
        if one.so != _NONE or not one.right:
            self._places.append((one.said[0], one.so[0]))
        else:
            self._num_unplaced += 1
        if one.f1 < 1:
            self._worst = sorted([*self._worst, one])[:MOST_SHOWN]
        self._num += 1

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return where answers begin beside where they should, and the most wrong answers."""
        self._close()
        places = np.array(self._places, dtype=np.float64).reshape(-1, 2)
        name = "first character of the answer" + (
            " (-1: none)" if self.config.may_be_unanswered else ""
        )
        heading = f"most wrong of {self._num:,}; line above: said, below: is"
        lost = self._num_unplaced
        remark = f"{lost:,} of {self._num:,} answers are outside the window" if lost else ""
        worst = [self._sample(one, show[one.sample]) for one in self._worst]
        return {
            "targets": draw_beside_targets(places[:, 0], places[:, 1], name, remark=remark),
            **({"most_wrong": draw_samples(worst, heading)} if worst else {}),
        }

    def curves(self) -> list[Curve]:
        """Return none: an answer is not there or absent, it has a place."""
        return []

    def _sample(self, one: _Said, inputs: Inputs) -> ShownSample:
        """Return the question, and the words around both answers."""
        words = list(re.finditer(r"\S+", one.text))
        said, so = (_words_of(words, place) for place in (one.said, one.so))
        begins = max(
            0, min([place.start for place in (said, so) if place], default=0) - _WORDS_BEFORE
        )
        question = [*inputs.words, "|"] if inputs.words else []
        shift = len(question) - begins
        text = [word.group() for word in words[begins : begins + MOST_WORDS]]
        return ShownSample(
            _part(one.text, one.said) or "no answer",
            one.right or "no answer",
            f"sample {one.number}: F1 {one.f1:.2f}",
            words=[*question, *text],
            said_words=range(said.start + shift, said.stop + shift),
            true_words=range(so.start + shift, so.stop + shift),
        )


def _said(windows: Sequence[_Window]) -> _Said:
    """Return what is said of a text by all its windows."""
    whole = answer_of_text(windows)
    number, sample, found, text, so, answers = windows[whole.window]
    is_none = whole.is_none or found.end <= found.start
    said = _NONE if is_none else (found.start, found.end)
    f1 = score_of(_part(text, said), answers).f1
    doubt = 1 - (whole.none if is_none else whole.probability)
    return _Said(f1, doubt, number, sample, text, said, so, next(iter(answers), ""))


def _part(text: str, place: tuple[int, int]) -> str:
    """Return the part of a text between two places; empty for no answer."""
    return "" if place == _NONE else text[slice(*place)].strip()


def _words_of(words: Sequence[re.Match[str]], place: tuple[int, int]) -> range:
    """Return which words of a text lie in a part of it."""
    begin, end = place
    within = [n for n, word in enumerate(words) if word.start() < end and word.end() > begin]
    return range(within[0], within[-1] + 1) if within and place != _NONE else range(0)
