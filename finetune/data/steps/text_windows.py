"""Windows of texts that are too long for a network: each is a sample of its own.

They overlap, so that an answer is whole in one of them unless it is longer than the overlap.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from finetune.config.data import DataConfig
from finetune.config.task_keys import SpanTask
from finetune.config.task_list_keys import AnyTask
from finetune.data.parts.parting import RawPart
from finetune.data.ragged import Ragged
from finetune.data.samples import BETWEEN_ANSWERS, RIGHT_ANSWERS, WINDOW_OF
from finetune.data.steps.sample_steps import plan_sample_steps
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.table import Column, Listed, Numbers
from finetune.data.targets.answers import context_among
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing

_AT_ONCE = 1000
"""Texts that are tokenized at once."""
_STRIDE = 3
"""The usual overlap is this part of the tokens that a window has room for."""


class Window(NamedTuple):
    """A part of a text."""

    row: int
    """Position of the question among the samples."""
    start: int
    """First character of the window in the text."""
    end: int
    """The position behind its last character."""


@dataclass(frozen=True, slots=True)
class WindowCutter:
    """Cuts texts into windows that fit, together with their question, in `max_length` tokens."""

    tokenize: Tokenize
    question: str
    context: str
    stride: int | None

    @classmethod
    def of(
        cls,
        task: AnyTask,
        config: DataConfig,
        columns: Mapping[str, Column],
        preprocessing: Preprocessing,
        trust: Collection[str],
    ) -> "WindowCutter | None":
        """Return the cutter of a task; None if the task reads no answers.

        Raises:
            DataError: no step tokenizes question and text as a pair, or its tokenizer does not
                tell where tokens are in a text.
        """
        if not isinstance(task, SpanTask):
            return None
        # What steps keep of the training samples does not matter here.
        steps = plan_sample_steps(config, columns, preprocessing, trust, list).other
        question, context = (name for name in columns)
        found = (each.step for each in steps if isinstance(each.step, Tokenize))
        step = next((one for one in found if one.columns == (question, context)), None)
        if step is None:
            raise DataError(
                f"no step tokenizes {question!r} and {context!r} as a pair",
                hint=f"transforms: [{{type: tokenize, columns: [{question}, {context}]}}], which "
                "is the usual one for two texts",
                key=("data", "transforms"),
            )
        step.refuse_untold_places()
        return cls(step, question, context, task.stride)

    def windows(
        self, columns: Mapping[str, Sequence[Any]], place: Callable[[int], str]
    ) -> list[Window]:
        """Return the windows of all samples, in the order of the samples and of each text.

        Args:
            columns: Question and text of each sample.
            place: Returns the place of a sample, for messages.

        Raises:
            DataError: a question is empty, or too long to leave room for a text.
        """
        questions, texts = columns[self.question], columns[self.context]
        found: list[Window] = []
        for begin in range(0, len(texts), _AT_ONCE):
            rows = range(begin, min(begin + _AT_ONCE, len(texts)))
            lengths = self._encoded([questions[row] for row in rows])
            # A text with several questions is tokenized once.
            different = list(dict.fromkeys(texts[row] for row in rows))
            encoded = dict(zip(different, self._encoded(different), strict=True))
            for row, asked in zip(rows, lengths, strict=True):
                room = self._room(len(asked.ids), place, row)
                found += _windows_of(row, texts[row], encoded[texts[row]], room, self._stride(room))
        return found

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        """Return what `tokenizers` makes of each text, whole and without special tokens."""
        if not texts:
            return []
        # Not verbose: that a whole text is longer than the network takes is why it is cut here.
        made = self.tokenize.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return list(made.encodings)

    def _room(self, asked: int, place: Callable[[int], str], row: int) -> int:
        """Return how many tokens of a text fit beside a question.

        Raises:
            DataError: the question is empty, or leaves fewer tokens than the stride needs.
        """
        if not asked:
            raise DataError(f"column {self.question!r} asks nothing in {place(row)}")
        most = self.tokenize.max_length
        room = most - asked - int(self.tokenize.tokenizer.num_special_tokens_to_add(pair=True))
        least = 2 if self.stride is None else self.stride + 1
        if room < least:
            raise DataError(
                f"column {self.question!r} has {asked:,} tokens in {place(row)}, which leaves room "
                f"for {max(room, 0):,} tokens of the text; windows need {least:,}",
                hint=f"max_length of {{type: tokenize}} is {most:,}"
                + ("" if self.stride is None else f", and task.stride {self.stride:,}"),
            )
        return room

    def _stride(self, room: int) -> int:
        """Return how many tokens neighbouring windows have in common at least."""
        return room // _STRIDE if self.stride is None else self.stride


def _windows_of(row: int, text: str, encoding: Any, room: int, stride: int) -> list[Window]:
    """Return the windows of a text; each but the first begins with a word where it can."""
    places, words = encoding.offsets, encoding.word_ids
    count = len(places)
    if count <= room:
        return [Window(row, 0, len(text))]
    found, first = [], 0
    while True:
        last = min(first + room, count)
        # Blanks at both ends of the text go with the first and the last window.
        start = places[first][0] if first else 0
        found.append(Window(row, start, places[last - 1][1] if last < count else len(text)))
        if last == count:
            return found
        after = last - stride
        # Back to where a word begins, which only widens the overlap; never as far as `first`, or
        # the next window would be the same again.
        begins = (at for at in range(after, first, -1) if words[at] != words[at - 1])
        first = next(begins, after)


def in_windows(part: RawPart, cutter: WindowCutter, name: str) -> tuple[RawPart, list[str]]:
    """Return a part with a sample for each window, and lines on texts that were cut.

    A window that does not hold the whole answer learns that there is none, as long as another one
    holds it: transformers' `run_qa.py` does the same. If none does, the answer is not learnt.

    Args:
        part: Questions, texts and places of answers.
        cutter: Cuts the texts.
        name: `train`, `validation` or `test`; empty for data that is no part of a run.

    Raises:
        DataError: a question leaves no room for a text.
    """
    columns = part.table.columns
    question, found = columns[cutter.question], context_among(columns)
    assert found is not None
    assert isinstance(question, Listed)
    assert part.target_name is not None
    answers = part.beside[part.target_name]
    assert isinstance(answers, Ragged)
    texts = found[1]
    given = {cutter.question: question.values, cutter.context: texts.values}
    windows = cutter.windows(given, part.table.place)
    rows = torch.tensor([window.row for window in windows])
    places = [answers[row].values.tolist() for row in range(len(answers))]
    targets, num_lost = _targets(windows, places)
    right = list(map(_right, texts.values, places))
    cut = part if len(windows) == len(part.table) else _taken(part, rows, windows, cutter)
    beside = {
        **cut.beside,
        part.target_name: Numbers(torch.tensor(targets).reshape(-1, 2)),
        RIGHT_ANSWERS: Ragged.of([right[window.row] for window in windows], pad=-1, length=None),
        WINDOW_OF: Numbers(rows),
    }
    return replace(cut, beside=beside), _notes(len(part.table), windows, num_lost, name)


def _taken(
    part: RawPart, rows: torch.Tensor, windows: Sequence[Window], cutter: WindowCutter
) -> RawPart:
    """Return a part with the windows as its texts."""
    taken = part.take(rows)
    columns = dict(taken.table.columns)
    for name, column in columns.items():
        assert isinstance(column, Listed)
        values = column.values
        if name == cutter.context:
            values = [text[w.start : w.end] for text, w in zip(values, windows, strict=True)]
        # As columns of their own: tokens are stored by the text that they are made of.
        columns[name] = Listed(list(values), column.kind)
    return replace(taken, table=replace(taken.table, columns=columns))


def _targets(
    windows: Sequence[Window], answers: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, int]], int]:
    """Return the place of the first answer in each window, and how many are in no window whole."""
    held = set()
    for row, start, end in windows:
        places = answers[row]
        if not places or (start <= places[0] and places[1] <= end):
            held.add(row)
    targets = []
    for row, start, end in windows:
        first, behind = answers[row][:2] or (0, 0)
        # No window has the answer whole: to learn that there is none would be wrong.
        if row not in held:
            targets.append((-1, -1))
        elif start <= first and behind <= end:
            targets.append((first - start, behind - start) if first < behind else (0, 0))
        else:
            targets.append((0, 0))
    return targets, len(answers) - len(held)


def _right(text: str, places: Sequence[int]) -> list[int]:
    """Return all right answers as numbers of characters."""
    pairs = zip(places[::2], places[1::2], strict=True)
    return [code for a, b in pairs for code in (*map(ord, text[a:b]), BETWEEN_ANSWERS)]


def _notes(count: int, windows: Sequence[Window], num_lost: int, name: str) -> list[str]:
    """Return lines on texts that were cut, and on answers that no window holds."""
    about = f" of {name}" if name else ""
    notes = []
    if len(windows) > count:
        long = count - sum(
            1
            for number, window in enumerate(windows)
            if window.start == 0
            and (number + 1 == len(windows) or windows[number + 1].row != window.row)
        )
        notes.append(
            f"{long:,} of {count:,} texts{about} are longer than max_length of {{type: tokenize}}: "
            f"they are cut into windows, which makes {len(windows):,} samples"
        )
    if num_lost:
        notes.append(
            f"{num_lost:,} of {count:,} answers{about} are whole in no window: they are not "
            "learnt, and no answer to them can be right; a larger max_length or task.stride "
            "keeps them"
        )
    return notes
