"""Predict with a trained network on new inputs, from Python or from files."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from finetune.config.task import ClassificationTask, MultilabelTask
from finetune.data.incoming import Incoming
from finetune.data.named_rows import rows_named
from finetune.data.new_labels import notes_on_new_labels, notes_on_new_sets
from finetune.data.prepare import SampleSteps, plan_input_steps, prepare_inputs
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.data.short_values import in_short
from finetune.errors import DataError
from finetune.models.declared import Network
from finetune.outfile import is_written_as_csv, output_file
from finetune.tasks.tasks import Prediction
from finetune.train.build import evaluation_batch_size, located
from finetune.train.precision import Precision
from finetune.train.trained import TrainedRun, load_run
from finetune.visible import json_text, one_line


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
    ) -> list[Prediction]:
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
    ) -> Iterator[Prediction]:
        """Yield predictions batch by batch, so that outputs never pile up.

        Args:
            inputs: As for a call.
            places: Row and file of each sample, for messages.
            tell: Receives lines on values that were converted or cut.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        run = self.run
        columns = _columns(inputs, run.facts.inputs)
        # Steps and shapes are found with the first sample, which must be there.
        if not any(len(values) for values in columns.values()):
            return
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
        # Outputs of inference mode can never enter a graph, which code of the user may need.
        is_strict = run.config.inference.mode == "inference_mode"
        quiet = torch.inference_mode if is_strict else torch.no_grad
        precision = Precision(run.config.train.precision, run.device)
        for indices in torch.arange(len(samples)).split(self.batch_size):
            with located(run.config):
                batch = samples.fetch(indices).to(run.device)
            with quiet(), precision.autocast(), rows_named(samples, batch):
                outputs = run.model(**batch.inputs)
            # Outside of the block above: between two predictions the caller's code runs, and
            # autograd must be as the caller has it.
            yield from run.task.readout(outputs)

    def rows(
        self, parts: Iterable[Incoming], tell: Callable[[str], None] = lambda _: None
    ) -> Iterator[dict[str, Any]]:
        """Yield one plain row for each sample of files: its name and its prediction.

        Args:
            parts: The samples.
            tell: Receives lines on values that were converted or cut.

        Raises:
            DataError: a value cannot be read.
        """
        for part in parts:
            predictions = self.stream(part.columns, places=part.places, tell=tell)
            for name, prediction in zip(part.names, predictions, strict=True):
                yield as_row(name, prediction)

    def notes_on(self, parts: Sequence[Incoming]) -> list[str]:
        """Return notes on new samples: how they were read, and how their labels differ.

        Args:
            parts: The samples, with the column of the target where they have it.
        """
        facts, config = self.run.facts, self.run.config
        notes = [note for part in parts for note in part.notes]
        if facts.target is None or facts.classes is None:
            return notes
        labels = [label for part in parts for label in part.columns.get(facts.target, ())]
        about, fold = (labels, facts.target, facts.classes), config.data.labels.fold
        match config.task:
            case ClassificationTask():
                notes += notes_on_new_labels(*about, fold=fold)
            case MultilabelTask() as task:
                notes += notes_on_new_sets(*about, task, fold=fold)
        return notes


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


def as_row(name: str, prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as a plain row, the form in which it is written."""
    row: dict[str, Any] = {"input": name}
    if prediction.label is None:
        return row | {"values": list(prediction.values)}
    label = prediction.label if isinstance(prediction.label, str) else list(prediction.label)
    row["label"] = label
    if prediction.probability is not None:
        row["probability"] = prediction.probability
    return row | {"probabilities": prediction.probabilities}


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    file: TextIO,
    *,
    as_csv: bool,
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Write rows as JSON lines, or as CSV with a column for each class; return how many.

    Texts in CSV go through `spreadsheet_text`; `note` receives a line if that changed any.

    Args:
        rows: Rows made by `as_row`.
        file: Where to write.
        as_csv: Whether to write CSV.
        raw: Whether to write texts in CSV as they are.
        note: Receives a line for the user.
    """
    cells = _Cells(is_raw=raw)
    count = 0
    writer: csv.DictWriter[str] | None = None
    for count, row in enumerate(rows, 1):  # noqa: B007 - the count is returned
        if not as_csv:
            file.write(json_text(row, file) + "\n")
            continue
        flat = _flat_row(row)
        if writer is None:
            writer = csv.DictWriter(file, list(flat))
            # Not `writeheader`: names of classes are texts that a spreadsheet would compute, too.
            writer.writer.writerow(map(cells.shown, flat))
        writer.writerow({name: cells.shown(value) for name, value in flat.items()})
    if cells.num_changed:
        note(f"{cells.num_changed} {_CHANGED}")
    return count


def write_file(
    rows: Iterable[Mapping[str, Any]],
    out: Path,
    *,
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Write rows to a file, as CSV or JSON lines by its ending; return how many.

    A regular file is written completely or not changed. See `output_file` for others.

    Raises:
        FinetuneError: the file cannot be written, or has another ending.
    """
    as_csv = is_written_as_csv(out)
    with output_file(out) as file:
        return write_rows(rows, file, as_csv=as_csv, raw=raw, note=note)


def spreadsheet_text(text: str) -> str:
    r"""Return a text as a CSV cell that a spreadsheet shows and does not compute.

    The rule of OWASP ("CSV Injection"): a cell that begins with `=`, `+`, `-`, `@`, a tab, a
    carriage return or a line feed gets an apostrophe before it. Then hidden characters are written
    as escapes: `\x1b`, `\n`.
    """
    begins_a_formula = text.startswith(_BEGINNINGS_OF_FORMULAS)
    return f"'{one_line(text)}" if begins_a_formula else one_line(text)


_BEGINNINGS_OF_FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""The last four are the full-width forms, which spreadsheets treat like the others."""

_CHANGED = (
    "texts were changed for spreadsheets: an apostrophe before = + - @, escapes for hidden "
    "characters; --raw writes them as they are"
)


@dataclass(slots=True)
class _Cells:
    """Turns texts into CSV cells, and counts those that it changed."""

    is_raw: bool
    num_changed: int = 0

    def shown(self, value: Any) -> Any:
        """Return the cell for a value; numbers stay as they are."""
        # Numbers are computed here: with a minus in front they are still no formula.
        if self.is_raw or not isinstance(value, str):
            return value
        shown = spreadsheet_text(value)
        self.num_changed += shown != value
        return shown


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


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with one column per class or output, for CSV."""
    flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
    if isinstance(row.get("label"), list):
        flat["label"] = "|".join(row["label"])
    flat |= {f"probability/{name}": p for name, p in row.get("probabilities", {}).items()}
    return flat | {f"value/{n}": value for n, value in enumerate(row.get("values", ()))}
