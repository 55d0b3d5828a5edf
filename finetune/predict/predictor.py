"""The predictor: a trained network, and the steps that prepare its inputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.data.batches import Batch, Samples
from finetune.data.incoming_part import Incoming
from finetune.data.loss_columns import changes_what_is_seen
from finetune.data.named_rows import rows_named
from finetune.data.new_labels import notes_on_new_labels, notes_on_new_sets
from finetune.data.own_sizes import own_size
from finetune.data.prepare_inputs import plan_input_steps, prepare_inputs
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.sample_steps import SampleSteps
from finetune.data.short_values import in_short
from finetune.errors import DataError
from finetune.models.declared import Network
from finetune.outfolder import Put
from finetune.tasks.records import Asked, PicturedRecord, PredictionRecord
from finetune.train.build import evaluation_batch_size, located
from finetune.train.precision import Precision
from finetune.train.trained import TrainedRun, load_run


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained network with the steps that prepare its inputs. Call it with samples."""

    run: TrainedRun
    batch_size: int
    """Samples of one forward pass."""
    steps: SampleSteps
    """Steps that prepare samples, with a tokenizer that is loaded once for all calls."""

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
    ) -> "ReadyInputs":
        """Return samples on which the network can run; for the arguments see `stream`.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        run = self.run
        columns = _columns(inputs, run.facts.inputs)
        # Steps and shapes are found with the first sample, which must be there.
        if not any(len(values) for values in columns.values()):
            return ReadyInputs(columns, None)
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
            )
        run.refuse_misfit(samples)
        return ReadyInputs(columns, samples)

    def batches(self, ready: "ReadyInputs") -> Iterator[Batch]:
        """Yield the samples in batches, in order, on the device of the network."""
        if ready.samples is None:
            return
        for indices in torch.arange(len(ready.samples)).split(self.batch_size):
            with located(self.run.config):
                yield ready.samples.fetch(indices).to(self.run.device)

    def outputs(self, batch: Batch, ready: "ReadyInputs") -> Any:
        """Return the network's outputs for a batch, computed without a graph."""
        run = self.run
        assert ready.samples is not None
        # Outputs of inference mode can never enter a graph, which code of the user may need.
        is_strict = run.config.inference.mode == "inference_mode"
        quiet = torch.inference_mode if is_strict else torch.no_grad
        precision = Precision(run.config.train.precision, run.device)
        with quiet(), precision.autocast(), rows_named(ready.samples, batch):
            return run.model(**batch.inputs)

    def read(self, outputs: Any, batch: Batch, ready: "ReadyInputs") -> list[PredictionRecord]:
        """Return the predictions that outputs for a batch are read as, in order."""
        given = partial(_given, ready.columns, batch.indices)
        size = partial(self._size, given)
        return self.run.task.read(outputs, Asked(batch, given, size))

    def _size(
        self, given: Callable[[int], Mapping[str, Any]], number: int
    ) -> tuple[int, int] | None:
        """Return height and width of a sample's image as it was handed in."""
        return own_size(given(number), self.run.facts, self.run.config.data)

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
            predictions = self.stream(part.columns, places=part.places, tell=tell)
            for name, prediction in zip(part.names, predictions, strict=True):
                file: dict[str, Any] = {}
                if put is not None and isinstance(prediction, PicturedRecord):
                    file = {str(self.run.task.picture): put(name, prediction.picture())}
                yield {"input": name} | file | prediction.row()

    def notes_on(self, parts: Sequence[Incoming]) -> list[str]:
        """Return notes on new samples: how they were read, and how their labels differ.

        Args:
            parts: The samples, with the column of the target where they have it.
        """
        facts, config = self.run.facts, self.run.config
        notes = [*self.run.notes, *(note for part in parts for note in part.notes)]
        if self.run.task.picture is not None and changes_what_is_seen(config.data):
            notes.append(
                f"evaluation cuts or pads images: a {self.run.task.picture} is of what the network "
                "sees, not of the whole image"
            )
        if facts.target is None or facts.classes is None:
            return notes
        labels = [label for part in parts for label in part.columns.get(facts.target, ())]
        about, fold = (labels, facts.target, facts.classes), config.data.labels.fold
        match config.task.learns:
            case "class":
                notes += notes_on_new_labels(*about, fold=fold)
            case "labels":
                notes += notes_on_new_sets(*about, config.task, fold=fold)
        return notes


class ReadyInputs(NamedTuple):
    """Inputs as they were handed in, and as samples for the network."""

    columns: Mapping[str, Sequence[Any]]
    samples: Samples | None
    """None without any sample."""


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
    return Predictor(run, batch_size or evaluation_batch_size(config), steps)


def _given(columns: Mapping[str, Sequence[Any]], indices: Tensor, number: int) -> Mapping[str, Any]:
    """Return the columns of a sample of a batch as they were handed in."""
    return {name: values[int(indices[number])] for name, values in columns.items()}


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
