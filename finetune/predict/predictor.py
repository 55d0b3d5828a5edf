"""The predictor: a trained network, and the steps that prepare its inputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import Batch, Samples
from finetune.data.column_kinds import empty_column
from finetune.data.incoming.incoming_part import Incoming
from finetune.data.incoming.prepare_inputs import plan_input_steps, prepare_inputs
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.short_values import in_short
from finetune.data.steps.sample_steps import SampleSteps
from finetune.data.steps.text_windows import WindowCutter
from finetune.errors import DataError, FinetuneError
from finetune.models.declared import Network
from finetune.outfolder import Put
from finetune.predict.passes import Answer, OnBad, Passes
from finetune.predict.tap import Tap
from finetune.predict.windowed import ReadyInputs, cut_rows
from finetune.tasks.records import PicturedRecord, PredictionRecord
from finetune.train.after.known_rows_of_run import KnownToRun
from finetune.train.after.trained import TrainedRun, load_run
from finetune.train.build import evaluation_batch_size, located


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained network with the steps that prepare its inputs. Call it with samples."""

    run: TrainedRun
    batch_size: int
    """Samples of one forward pass."""
    steps: SampleSteps
    """Steps that prepare samples, with a tokenizer that is loaded once for all calls."""
    passes: Passes
    """Runs the network, in batches."""
    cutter: WindowCutter | None = None
    """Cuts texts that are too long into windows; None for a task without any."""

    @property
    def model(self) -> Network:
        """The network with its trained weights, in evaluation mode."""
        return self.run.model

    def __call__(
        self, inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor
    ) -> list[PredictionRecord]:
        """Return the prediction for each sample, in order.

        Args:
            inputs: Texts, image paths, or an array with samples first for a network of one input
                column; dicts of column to value otherwise; or whole columns by name.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        return list(self.stream(inputs))

    def stream(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Iterator[PredictionRecord]:
        """Yield predictions batch by batch, so that outputs never pile up.

        Args:
            inputs: As for a call.
            places: Row and file of each sample, for messages.
            tell: Receives lines on values that were converted or cut.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        ready = self.prepare(inputs, places=places, tell=tell)
        yield from ready.of_rows(self._stream(ready))

    def _stream(self, ready: ReadyInputs) -> Iterator[PredictionRecord]:
        """Yield the prediction for each sample, batch by batch."""
        for batch in self.batches(ready):
            outputs = self.outputs(batch, ready)
            # Outside of inference mode: between two predictions the caller's code runs, and
            # autograd must be as the caller has it.
            yield from self.read(outputs, batch, ready)

    def prepare(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
    ) -> ReadyInputs:
        """Return samples on which the network can run; for the arguments see `stream`.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        columns = _columns(inputs, self.run.facts.inputs)
        # Steps and shapes are found with the first sample, which must be there.
        if not any(len(values) for values in columns.values()):
            return ReadyInputs(columns, None)
        return self._ready(columns, places, tell)

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

    def batches(self, ready: ReadyInputs) -> Iterator[Batch]:
        """Yield the samples in batches, in order, on the device of the network."""
        if ready.samples is None:
            return
        for indices in torch.arange(len(ready.samples)).split(self.batch_size):
            with located(self.run.config):
                yield ready.samples.fetch(indices).to(self.run.device)

    def outputs(self, batch: Batch, ready: ReadyInputs) -> Any:
        """Return the network's outputs for a batch, computed without a graph."""
        assert ready.samples is not None
        return self.passes.outputs(ready.samples, batch)

    def read(self, outputs: Any, batch: Batch, ready: ReadyInputs) -> list[PredictionRecord]:
        """Return the predictions that outputs for a batch are read as, in order."""
        return self.passes.records(outputs, ready.columns, batch)

    def answers(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
        bad: OnBad | None = None,
    ) -> Iterator[Answer]:
        """Yield the position of each sample with its prediction, and with its embedding if asked.

        Args:
            inputs: As for a call.
            places: Row and file of each sample, for messages.
            tell: Receives lines on values that were converted or cut.
            bad: Receives samples that cannot be predicted, which are passed over; None to raise.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        if bad is None:
            ready = self.prepare(inputs, places=places, tell=tell)
            yield from ready.answers(self.passes, None)
            return
        ready, rows = self._ready_without_bad(inputs, places, tell, bad)
        for answer in ready.answers(self.passes, lambda row, why: bad(rows[row], why)):
            yield Answer(rows[answer.position], answer.record, answer.embedding)

    def _ready_without_bad(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        places: Places,
        tell: Callable[[str], None],
        bad: OnBad,
    ) -> tuple[ReadyInputs, Sequence[int]]:
        """Return the samples that can be read, with their positions; `bad` receives the others."""
        columns = _columns(inputs, self.run.facts.inputs)
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
        self, columns: Mapping[str, Sequence[Any]], places: Places, tell: Callable[[str], None]
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

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that a regression predicts: its target columns; else none."""
        run = self.run
        if run.config.task.learns != "numbers" or run.facts.target is None:
            return ()
        target = run.config.data.target
        return target if isinstance(target, tuple) else (run.facts.target,)

    def rows(
        self,
        parts: Iterable[Incoming],
        tell: Callable[[str], None] = lambda _: None,
        put: Put | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield one plain row for each sample of files: its name and its prediction.

        Args:
            parts: The samples.
            tell: Receives lines on values that were converted or cut.
            put: Writes the pictures of predictions that have some; None to write none.

        Raises:
            DataError: a value cannot be read.
        """
        for part in parts:
            for answer in self.answers(part.columns, places=part.places, tell=tell):
                name = part.names[answer.position]
                yield {"input": name} | self.plain(answer, name, put)

    def plain(self, answer: Answer, name: str, put: Put | None = None) -> dict[str, Any]:
        """Return an answer as plain values by name, and write its picture if it has one."""
        file: dict[str, Any] = {}
        if put is not None and isinstance(answer.record, PicturedRecord):
            file = {str(self.run.task.picture): put(name, answer.record.picture())}
        row = file | answer.record.row()
        return row if answer.embedding is None else row | {"embedding": answer.embedding.tolist()}

    @contextmanager
    def knowing(self, tell: Callable[[str], None]) -> Iterator["Predictor"]:
        """Yield a predictor that answers from rows of the activation cache where it has them.

        Args:
            tell: Receives a line on how many samples were answered.
        """
        run = self.run
        known = KnownToRun(run.config, run.model, run.inference, run.device, tell)
        with closing(known):
            yield replace(self, passes=replace(self.passes, known=known))

    def tapped(self, layer: str) -> "Predictor":
        """Return a predictor whose answers hold the output of a layer as their embedding.

        Args:
            layer: Name of the layer, as `model.named_modules()` has it.

        Raises:
            FinetuneError: the network has no such layer, or it runs as compiled code.
        """
        if self.run.inference.is_compiled:
            raise FinetuneError(
                "compiled code does not give the outputs of single layers",
                where="--embeddings",
                hint="-o inference.compile=false runs the network itself",
            )
        return replace(self, passes=replace(self.passes, tap=Tap.at(self.model, layer), known=None))


def load_predictor(
    run_dir: str | Path,
    *,
    trust: Sequence[str] = (),
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load the network of a run with its best or last weights.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import.
        batch_size: Samples of one forward pass; that of the config if left out.
        overrides: `key=value` each, for secrets that the saved config masks.

    Raises:
        CheckpointError: the folder holds no usable run.
        TrustError: its config imports code that `trust` does not name.
        DataError: its tokenizer, or a transform, cannot be loaded.
    """
    run = load_run(run_dir, trust=trust, overrides=overrides)
    config = run.config
    with located(config):
        # Once for all calls: to load a tokenizer takes about 30 ms.
        steps = plan_input_steps(config.data, run.facts, run.preprocessing, trust=config.trust)
        kinds = {name: empty_column(run.facts.kinds[name]) for name in run.facts.inputs}
        cutter = WindowCutter.of(config.task, config.data, kinds, run.preprocessing, config.trust)
    size = batch_size or evaluation_batch_size(config)
    passes = Passes(run, size)
    return Predictor(run, size, steps, passes, cutter)


def _picked(columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, list[Any]]:
    """Return some rows of columns."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def _columns(
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
