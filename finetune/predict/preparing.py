"""Prepare what is handed in to be predicted: columns from any form, samples from columns."""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.data.batches import Samples
from finetune.data.column_kinds import empty_column
from finetune.data.incoming.prepare_inputs import plan_input_steps, prepare_inputs
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.short_values import in_short
from finetune.data.steps.sample_steps import SampleSteps
from finetune.data.steps.text_windows import WindowCutter
from finetune.errors import DataError
from finetune.predict.passes import OnBad
from finetune.predict.windowed import ReadyInputs, cut_rows
from finetune.train.after.trained import TrainedRun
from finetune.train.build import located


@dataclass(frozen=True, slots=True)
class InputPreparer:
    """Prepares new inputs as the run prepared its own."""

    run: TrainedRun
    batch_size: int
    """Samples of one forward pass."""
    steps: SampleSteps
    """Steps that prepare samples, with a tokenizer that is loaded once for all calls."""
    cutter: WindowCutter | None = None
    """Cuts texts that are too long into windows; None for a task without any."""

    @classmethod
    def of(cls, run: TrainedRun, batch_size: int) -> "InputPreparer":
        """Plan the steps of a run.

        Raises:
            DataError: its tokenizer, or a transform, cannot be loaded.
        """
        config, facts, preprocessing = run.config, run.facts, run.preprocessing
        with located(config):
            # Once for all calls: to load a tokenizer takes about 30 ms.
            steps = plan_input_steps(config.data, facts, preprocessing, trust=config.trust)
            kinds = {name: empty_column(facts.kinds[name]) for name in facts.inputs}
            cutter = WindowCutter.of(config.task, config.data, kinds, preprocessing, config.trust)
        return cls(run, batch_size, steps, cutter)

    def prepare(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
    ) -> ReadyInputs:
        """Return samples on which the network can run; for the arguments see `Predictor.stream`.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        columns = columns_of(inputs, self.run.facts.inputs)
        # Steps and shapes are found with the first sample, which must be there.
        if not any(len(values) for values in columns.values()):
            return ReadyInputs(columns, None)
        return self._ready(columns, places, tell)

    def prepare_readable(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        places: Places,
        tell: Callable[[str], None],
        bad: OnBad,
    ) -> tuple[ReadyInputs, Sequence[int]]:
        """Return the samples that can be read, with their positions; `bad` receives the others."""
        columns = columns_of(inputs, self.run.facts.inputs)
        rows: Sequence[int] = range(len(next(iter(columns.values()))))
        told: list[str] = []
        try:
            # All at once first: mostly no sample is bad, and then each is prepared only once.
            ready = self.prepare(columns, places=places, tell=told.append)
        except DataError as error:
            told.clear()
            rows = self._readable_halves(columns, places, rows, error, bad)
            picked = _picked(columns, rows)
            ready = self.prepare(picked, places=places.at(rows), tell=told.append)
        for note in told:
            tell(note)
        return ready, rows

    def samples(
        self,
        columns: Mapping[str, Sequence[Any]],
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Samples:
        """Return raw values as samples that can be fetched.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        run = self.run
        with located(run.config):
            samples = prepare_inputs(
                columns,
                run.config.data,
                run.facts,
                run.preprocessing,
                trust=run.config.trust,
                steps=self.steps,
                places=places,
                tell=tell,
                batch_size=self.batch_size,
            )
        run.refuse_misfit(samples)
        return samples

    def _ready(
        self, columns: Mapping[str, Sequence[Any]], places: Places, tell: Callable[[str], None]
    ) -> ReadyInputs:
        """Return samples of rows, or of the windows of their texts if the task has such."""
        cut = None
        if self.cutter is not None:
            with located(self.run.config):
                cut = cut_rows(self.cutter, columns, self.run.facts, places)
        if cut is None:
            return ReadyInputs(columns, self.samples(columns, places, tell))
        columns, places, windows = cut
        return ReadyInputs(columns, self.samples(columns, places, tell), windows)

    def _readable(
        self, columns: Mapping[str, Sequence[Any]], places: Places, rows: Sequence[int], bad: OnBad
    ) -> Sequence[int]:
        """Return the rows that can be read, found by halving; `bad` receives the others."""
        try:
            self._ready(_picked(columns, rows), places.at(rows), lambda _: None)
        except DataError as error:
            return self._readable_halves(columns, places, rows, error, bad)
        return rows

    def _readable_halves(
        self,
        columns: Mapping[str, Sequence[Any]],
        places: Places,
        rows: Sequence[int],
        error: DataError,
        bad: OnBad,
    ) -> Sequence[int]:
        """Return those that can be read of several rows, which together gave an error."""
        if len(rows) <= 1:
            for row in rows:
                bad(row, error)
            return []
        half = len(rows) // 2
        parts = (rows[:half], rows[half:])
        return [row for part in parts for row in self._readable(columns, places, part, bad)]


def _picked(columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, list[Any]]:
    """Return some rows of columns."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def columns_of(
    inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor, names: tuple[str, ...]
) -> Mapping[str, Sequence[Any]]:
    """Return the samples as columns by name, in whatever form they were given."""
    # A text is a sequence, too: each letter would be taken for a sample.
    if isinstance(inputs, str | bytes):
        raise DataError("needs a list of samples, got a single text", hint="put it in a list")
    if isinstance(inputs, Mapping):
        for name, values in inputs.items():
            if isinstance(values, str | bytes) or not isinstance(values, Sized):
                raise DataError(
                    f"needs a column of values for {name!r}, got {in_short(values)}",
                    hint="put a single sample in a list: [{...}]",
                )
        return inputs
    rows = list(inputs)
    if rows and isinstance(rows[0], Mapping):
        return {name: [_cell(row, name, n) for n, row in enumerate(rows, 1)] for name in names}
    if len(names) > 1:
        wanted = ", ".join(map(repr, names))
        raise DataError(f"the network takes the columns {wanted}", hint="hand in a list of dicts")
    return {names[0]: rows}


def _cell(row: Any, name: str, number: int) -> Any:
    """Return the value of a column in one sample; raise if the sample has none."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    found = ", ".join(map(in_short, row)) if isinstance(row, Mapping) else in_short(row)
    raise DataError(f"sample {number} has no {name!r}, only {found}")
