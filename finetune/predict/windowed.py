"""What a predictor runs on: rows as samples, or windows of their texts with one answer a row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from finetune.data.batches import Samples
from finetune.data.column_kinds import column_of
from finetune.data.opening import DataFacts
from finetune.data.readers.row_places import Places
from finetune.data.steps.text_windows import Window, WindowCutter
from finetune.data.table import Listed
from finetune.errors import DataError
from finetune.predict.passes import Answer, OnBad, Passes
from finetune.tasks.records import PredictionRecord
from finetune.tasks.span import PredictedAnswer


@dataclass(slots=True)
class WindowedRows:
    """Rows of which each has one window or more, in order."""

    windows: Sequence[Window]
    _bad: set[int] = field(default_factory=set)
    """Rows with a window that cannot be predicted."""

    def on_bad(self, bad: OnBad) -> OnBad:
        """Return what receives windows that cannot be predicted; `bad` receives each row once."""

        def receive(position: int, why: Any) -> None:
            row = self.windows[position].row
            if row not in self._bad:
                self._bad.add(row)
                bad(row, why)

        return receive

    def answers(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Yield the answer of each row, given those of the windows in order."""
        for row, some in groupby(answers, lambda one: self.windows[one.position].row):
            # Before the look at `_bad`: a window that cannot be predicted is told while the others
            # are read.
            whole = self._whole((one.position, one.record) for one in some)
            if row not in self._bad:
                yield Answer(row, whole, None)

    def records(self, records: Iterable[PredictionRecord]) -> Iterator[PredictionRecord]:
        """Yield the record of each row, given those of all windows in order."""
        for _, some in groupby(enumerate(records), lambda one: self.windows[one[0]].row):
            yield self._whole(some)

    def _whole(self, some: Iterable[tuple[int, PredictionRecord]]) -> PredictionRecord:
        """Return the record of a row by those of its windows."""
        found = []
        for position, record in some:
            assert isinstance(record, PredictedAnswer)
            found.append(record.moved(self.windows[position].start))
        return PredictedAnswer.of_windows(found)


class ReadyInputs(NamedTuple):
    """What was handed in to be predicted, and the samples made of it."""

    columns: Mapping[str, Sequence[Any]]
    samples: Samples | None
    """None if nothing was handed in."""
    windows: WindowedRows | None = None
    """Which samples are windows of one row; None where each row is a sample."""

    def of_rows(self, records: Iterable[PredictionRecord]) -> Iterator[PredictionRecord]:
        """Yield the record of each row, given those of all samples in order."""
        return iter(records) if self.windows is None else self.windows.records(records)

    def answers(self, passes: Passes, bad: OnBad | None) -> Iterator[Answer]:
        """Run the network; yield the answer for each row, in order.

        Args:
            passes: Runs the network.
            bad: Receives rows that cannot be predicted; None to raise.
        """
        if self.samples is None:
            return iter(())
        if self.windows is None:
            return passes.over(self.samples, self.columns, bad)
        of_windows = None if bad is None else self.windows.on_bad(bad)
        return self.windows.answers(passes.over(self.samples, self.columns, of_windows))


def cut_rows(
    cutter: WindowCutter,
    columns: Mapping[str, Sequence[Any]],
    facts: DataFacts,
    places: Places,
) -> tuple[dict[str, list[Any]], Places, WindowedRows] | None:
    """Return windows in place of rows; None for columns that are missing or of unequal length.

    Args:
        cutter: Cuts the texts.
        columns: The rows as they were handed in.
        facts: Facts of the training data.
        places: Places of the rows, for messages.

    Raises:
        DataError: a value is no text, or a question leaves no room for a text.
    """
    names = (cutter.question, cutter.context)
    if any(name not in columns for name in names) or len({len(columns[n]) for n in names}) > 1:
        return None  # told by what prepares samples
    texts: dict[str, Sequence[str]] = {}
    for name in names:
        column = column_of(name, columns[name], facts.kinds[name], places)
        if not isinstance(column, Listed):
            raise DataError(f"column {name!r} needs text")
        texts[name] = column.values
    windows = cutter.windows(texts, places.told)
    rows = [window.row for window in windows]
    cut = {
        cutter.question: [texts[cutter.question][row] for row in rows],
        cutter.context: [texts[cutter.context][one.row][one.start : one.end] for one in windows],
    }
    return cut, places.at(rows), WindowedRows(windows)
