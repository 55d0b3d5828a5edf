"""Predict with a trained network on new inputs, from Python or from files."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

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
from finetune.outfile import is_written_as_csv, output_file
from finetune.outfolder import Put
from finetune.tasks.records import Asked, PicturedRecord, PredictionRecord
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
            given = partial(_given, columns, indices)
            size = partial(self._size, given)
            yield from run.task.read(outputs, Asked(batch, given, size))

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


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    file: TextIO,
    *,
    as_csv: bool,
    numbers: Sequence[str] = (),
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Write rows as JSON lines, or as CSV with a column for each class or number; return how many.

    Texts in CSV go through `spreadsheet_text`; `note` receives a line if that changed any.

    Args:
        rows: Rows of plain values by name.
        file: Where to write.
        as_csv: Whether to write CSV.
        numbers: Names of the numbers in `values`, for columns of CSV; they are counted if their
            number is another one.
        raw: Whether to write texts in CSV as they are.
        note: Receives a line for the user.
    """
    cells = _Cells(is_raw=raw)
    count = 0
    writer: csv.DictWriter[str] | None = None
    for count, row in enumerate(rows, 1):
        if not as_csv:
            file.write(json_text(row, file) + "\n")
            continue
        flat = _flat_row(row, numbers)
        if writer is None:
            writer = csv.DictWriter(file, list(flat))
            # Not `writeheader`: names of classes are texts that a spreadsheet would compute, too.
            writer.writer.writerow(map(cells.shown, flat))
        if strange := sorted(flat.keys() - set(writer.fieldnames)):
            raise DataError(
                f"prediction {count} has {strange[0]!r} and the first one has not, so they fit no "
                "table",
                hint="JSON lines take any: --out predictions.jsonl",
            )
        writer.writerow({name: cells.shown(value) for name, value in flat.items()})
    if cells.num_changed:
        note(f"{cells.num_changed} {_CHANGED}")
    return count


def write_file(
    rows: Iterable[Mapping[str, Any]],
    out: Path,
    *,
    numbers: Sequence[str] = (),
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Write rows to a file, as CSV or JSON lines by its ending; return how many.

    For the arguments see `write_rows`. A regular file is written completely or not changed, see
    `output_file` for others.

    Raises:
        FinetuneError: the file cannot be written, or has another ending.
    """
    as_csv = is_written_as_csv(out)
    with output_file(out) as file:
        return write_rows(rows, file, as_csv=as_csv, numbers=numbers, raw=raw, note=note)


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


def _flat_row(row: Mapping[str, Any], numbers: Sequence[str]) -> dict[str, Any]:
    """Return a row with a cell for each class or output, and a text for each list, for CSV."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        singular = _SINGULAR.get(name, name)
        if isinstance(value, dict):
            # The record of a list of tasks is a row for each of them.
            flat |= {f"{singular}/{key}": cell for key, cell in _flat_row(value, ()).items()}
        elif isinstance(value, list) and name in _SINGULAR:
            names = numbers if len(numbers) == len(value) else [*map(str, range(len(value)))]
            pairs = zip(names, value, strict=True)
            flat |= {f"{singular}/{one}": _cell_of(number) for one, number in pairs}
        else:
            flat[name] = _cell_of(value)
    return flat


_SINGULAR = {"probabilities": "probability", "values": "value", "shares": "share"}
"""Name of the cells of one number each, by the name of all of them in a row."""


def _cell_of(value: Any) -> Any:
    """Return a value as one CSV cell: labels between `|`, other lists and dicts as JSON."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "|".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
