"""Turn raw columns into tensors: deterministic steps now, random ones at each fetch.

Letters: N samples.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.data.audio import Audio
from finetune.data.cells import no_number, read_cells
from finetune.data.gaps import filled_by, refuse_gaps
from finetune.data.images import Images
from finetune.data.joined_samples import UnequalShapesError, allocate, build_columns
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.media.decoding import image_tensor, is_image
from finetune.data.memory_budget import MemoryBudget
from finetune.data.ragged import Ragged
from finetune.data.samples import Columns, Prepared, Sample
from finetune.data.short_values import in_short
from finetune.data.sources.named_images import no_such_image
from finetune.data.steps.fitted_steps import FittedStep
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.tokens import TokenStore
from finetune.data.steps.transforms import PlannedStep, Stack, Step
from finetune.data.steps.vision import Vision, transform_all, transform_batch
from finetune.data.table import DECODED, Listed, Numbers, Table, as_tensor
from finetune.data.vectors import Vectors
from finetune.errors import DataError, Faults

_LEAST_IMAGE_AXES = 2
"""Axes of an image without channels; fewer bytes are plain numbers."""


_OF_COLUMNS = (Tokenize, Stack, FittedStep)
"""Steps that take whole columns."""


class TokenKeeping(NamedTuple):
    """Where tokens are kept."""

    store: TokenStore | None
    """From run to run."""
    budget: MemoryBudget | None
    """During the run, if they are made as they are needed."""


class Outcome(NamedTuple):
    """What steps have made of whole columns, and those that are left for every fetch."""

    columns: Columns
    """Those that no step left touches are finished: what the network takes."""
    once: list[Step]
    """Steps left that make the same of a sample every time."""
    drawn: list[Step]
    """Steps left from the first random one on."""

    @property
    def made(self) -> set[str]:
        """Columns that are made at every fetch: images of files, and what steps left touch."""
        steps = [*self.once, *self.drawn]
        if not all(isinstance(step, Vision) for step in steps):
            # a step of the user's own may read and write any column
            return set(self.columns)
        vision = [step for step in steps if isinstance(step, Vision)]
        touched = {name for step in vision for name in (step.column, *step.along)}
        return touched | {n for n, c in self.columns.items() if isinstance(c, DECODED)}


def run_steps(
    table: Table,
    planned: Sequence[PlannedStep],
    tokens: TokenStore | None = None,
    budget: MemoryBudget | None = None,
) -> Outcome:
    """Run the steps that can run on whole columns; return the columns and the steps that are left.

    Steps that are left run at every fetch. They are the random steps and all after them; steps on
    decoded files, which may not fit into memory; and deterministic steps before a random one whose
    outcome has unequal shapes.

    Args:
        table: The raw samples.
        planned: The steps.
        tokens: Store that keeps tokens from run to run; None for no store.
        budget: Memory for tokens that are made as they are needed; None to keep none.

    Raises:
        DataError: a step fails on a sample, or the result is not finite numbers of one shape.
    """
    # A deterministic step behind a random one depends on its result, and cannot run now.
    now = list(takewhile(lambda step: not step.random, planned))
    drawn = [each.step for each in planned[len(now) :]]
    columns = typed_columns(table, [each.step for each in planned])
    left = [each.step for each in now]
    keeping = TokenKeeping(tokens, budget)
    while left:
        columns, done = at_once(table, columns, left, keeping)
        if done:
            left = left[done:]
            continue
        if any(isinstance(column, DECODED) for column in columns.values()):
            columns, left = _texts_first(table, columns, left, keeping)
            return _with_finished(Outcome(columns, left, drawn), table)
        # Steps on single samples run together: nothing is stored between two of them.
        run = list(takewhile(lambda step: not isinstance(step, _OF_COLUMNS), left))
        try:
            columns = mapped(table, columns, run)
        # A random step, such as a crop, may still bring samples to one shape.
        except UnequalShapesError:
            if not drawn:
                raise
            return _with_finished(Outcome(columns, left, drawn), table)
        left = left[len(run) :]
    return _with_finished(Outcome(columns, [], drawn), table)


def _with_finished(outcome: Outcome, table: Table) -> Outcome:
    """Return an outcome whose columns are finished, but for those that are made at every fetch."""
    made = outcome.made
    finished = {
        name: column if name in made else _finished(name, column, table)
        for name, column in outcome.columns.items()
    }
    return outcome._replace(columns=finished)


def _texts_first(
    table: Table, columns: Columns, steps: Sequence[Step], keeping: TokenKeeping
) -> tuple[Columns, list[Step]]:
    """Do those of `steps` that take whole columns and come after steps on other columns alone."""
    left: list[Step] = []
    touched: set[str] = set()
    for number, step in enumerate(steps):
        if isinstance(step, _OF_COLUMNS) and touched.isdisjoint(step.columns):
            columns, _ = at_once(table, columns, [step], keeping)
        elif isinstance(step, Vision):
            touched.add(step.column)
            left.append(step)
        else:
            # a step of the user's own may read and write any column
            return columns, [*left, *steps[number:]]
    return columns, left


def stacked(
    samples: Sequence[Sample],
    waiting: Collection[str] = (),
    place: Callable[[int], str] | None = None,
) -> dict[str, Tensor]:
    """Bring samples into one tensor a column, ragged ones padded.

    Images of bytes stay bytes, and columns in `waiting` as they are: `finished_batch` does the rest
    on whole batches.

    Args:
        samples: At least one.
        waiting: Columns for which steps on whole batches are left.
        place: Names a sample for a message, by its position among `samples`.

    Raises:
        DataError: samples differ in shape, or hold something else than finite numbers.
    """
    rows = torch.arange(len(samples))
    values = ({name: as_value(value) for name, value in sample.items()} for sample in samples)
    table = Table({}, rows, "the batch")
    found: dict[str, Tensor] = {}
    for name, column in build_columns(values, len(samples), place).items():
        if isinstance(column, Numbers) and (name in waiting or _is_image(column.values)):
            refuse_gaps(name, column, place or table.place)
            found[name] = column.values
        else:
            found[name] = _finished(name, column, table, place).gather(rows)
    return found


def finished_batch(
    inputs: Mapping[str, Tensor], batched: Sequence[Vision] = ()
) -> dict[str, Tensor]:
    """Return the columns of a batch after the steps that work on whole batches.

    uint8 images become float32, divided by 255; other columns become float32 or int64. The work is
    done on the device of `inputs`, and the results are equal bit for bit on every device.

    Args:
        inputs: What `stacked` returned, on any device.
        batched: The steps, each of which replaces its column.

    Raises:
        DataError: a step fails.
    """
    found = dict(inputs)
    for step in batched:
        name = step.column
        # A column that an earlier step has made anew may be overwritten: memory that is new to the
        # process costs several times what the numbers in it do.
        is_own = found[name].data_ptr() != inputs[name].data_ptr()
        found[name] = transform_batch(found[name], [step.overwriting() if is_own else step])
    return {name: _final_on_device(values) for name, values in found.items()}


def as_value(value: Any) -> Any:
    """Return arrays, numbers and PIL images as plain tensors; anything else unchanged."""
    if isinstance(value, Tensor):
        # torchvision's own classes of tensor slow every operation down.
        return value.as_subclass(Tensor)
    if is_image(value):
        return image_tensor(value)
    if isinstance(value, np.ndarray):
        return as_tensor(value, "of a transform")
    if isinstance(value, bool | int | float | np.number):
        try:
            return torch.tensor(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{in_short(value)} fits no number of 64 bits") from error
    return value


def typed_columns(table: Table, steps: Sequence[Step]) -> Columns:
    """Return the columns with csv cells as numbers, unless they are tokenized; refuse gaps.

    Raises:
        FinetuneError: cells are empty in columns that no step fills; all are reported at once.
    """
    texts = {name for step in steps if isinstance(step, Tokenize) for name in step.columns}
    filled = filled_by(step.node for step in steps if isinstance(step, FittedStep))
    columns: Columns = {}
    faults = Faults()
    for name, column in table.columns.items():
        columns[name] = typed = read_cells(column, as_text=name in texts)
        if isinstance(typed, Numbers):
            with faults.noted():
                refuse_gaps(name, typed, table.place, column, allows_empty=name in filled)
    faults.raise_if_any()
    return columns


def at_once(
    table: Table, columns: Columns, steps: Sequence[Step], keeping: TokenKeeping
) -> tuple[Columns, int]:
    """Run the first steps that take whole columns; return the columns and how many steps ran."""
    if isinstance(step := steps[0], Tokenize):
        return step.whole(columns, *keeping), 1
    if isinstance(step, Stack):
        faults = Faults()
        faults.add(
            no_number(name, column, table.place, step.key)
            for name in step.columns
            if isinstance(column := columns[name], Images | Audio | Listed)
        )
        faults.raise_if_any()
        return step.whole(columns), 1
    if isinstance(step, FittedStep):
        return step.whole(columns, table.place), 1
    if whole := _steps_of_batches(columns, steps):
        return {**columns, whole[0].column: _transformed(table, columns, whole)}, len(whole)
    return columns, 0


def _steps_of_batches(columns: Columns, steps: Sequence[Step]) -> list[Vision]:
    """Return the leading steps that can take all images of one column at once."""
    whole: list[Vision] = []
    for step in steps:
        if not isinstance(step, Vision) or not step.takes_batches:
            break
        column = columns.get(step.column)
        is_fit = isinstance(column, Numbers) and column.values.ndim in (3, 4) and len(column) > 0
        if not is_fit or (whole and step.column != whole[0].column):
            break
        whole.append(step)
    return whole


def _transformed(table: Table, columns: Columns, steps: Sequence[Vision]) -> Numbers:
    """Return a column of arrays after `steps` on all its images."""
    column = columns[steps[0].column]
    assert isinstance(column, Numbers)
    try:
        return Numbers(transform_all(column.values, steps, allocate))
    except DataError as error:
        error.message += f", in {table.place(0)}"
        raise


def mapped(table: Table, columns: Columns, steps: Sequence[Step]) -> Columns:
    """Return the columns after `steps` on each sample."""

    def samples() -> Iterator[Sample]:
        for row in range(len(table)):
            sample = {name: column[row] for name, column in columns.items()}
            try:
                for step in steps:
                    sample = step(sample)
            except DataError as error:
                error.message += f", in {table.place(row)}"
                raise
            yield {name: as_value(value) for name, value in sample.items()}

    return build_columns(samples(), len(table), table.place)


def _finished(
    name: str,
    column: Prepared,
    table: Table,
    place: Callable[[int], str] | None = None,
) -> Numbers | Vectors | Ragged | LazyColumn:
    """Turn a column into what a batch holds, all its floats finite."""
    if isinstance(column, Images | Audio | Listed):
        values = (column[row] for row in range(len(column)))
        one = ({name: as_value(value)} for value in values)
        column = build_columns(one, len(column), place or table.place)[name]
    if isinstance(column, Images | Audio | Listed):
        key = ("data", "inputs")
        # A text that cannot be a number is most often the name of a file.
        raise no_such_image(name, column, table, key) or no_number(name, column, table.place, key)
    if isinstance(column, Numbers):
        column = Numbers(_final(column.values))
    parts = column.numbers if isinstance(column, Vectors) else [column]
    for part in parts:
        if isinstance(part, Numbers):
            refuse_gaps(name, part, place or table.place)
    return column


def _final(values: Tensor) -> Tensor:
    """Return numbers as float32 or int64; images of bytes become 0..1."""
    if _is_image(values):
        # Written straight into its place: four times the bytes of the images, maybe beyond memory.
        scaled = allocate(tuple(values.shape), torch.float32)
        return torch.div(values, 255, out=scaled)
    return values.float() if values.is_floating_point() else values.long()


def _is_image(values: Tensor) -> bool:
    """Tell whether samples `(B, ...)` are images of bytes, which become 0..1."""
    return values.dtype == torch.uint8 and values.ndim > _LEAST_IMAGE_AXES


def _final_on_device(values: Tensor) -> Tensor:
    """Return a batch as float32 or int64, images of bytes as 0..1; equal bits on CPU and GPU."""
    if _is_image(values):
        # By a tensor: CUDA divides by a plain number as a product, which rounds otherwise.
        return values.float().div_(torch.tensor(255.0, device=values.device))
    return values.float() if values.is_floating_point() else values.long()
