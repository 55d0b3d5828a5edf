"""Find cells that are no numbers where numbers are needed, in all columns before one is refused.

The steps find them too, each in the column that it takes, so that a table with several faults
would cost a start for each of them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeGuard

from finetune.config.data import DataConfig
from finetune.config.fitted_keys import ClipTransform, FillTransform, StandardizeTransform
from finetune.config.task_list_keys import AnyTask as Task
from finetune.config.transform_keys import (
    ImportTransform,
    MaskTokensTransform,
    StackTransform,
    Transform,
    named_columns,
)
from finetune.data.cells import no_number
from finetune.data.gaps import filled_columns, refuse_gaps
from finetune.data.images import Images
from finetune.data.sources.named_images import no_such_image
from finetune.data.table import Column, Listed, Numbers, Table
from finetune.data.targets.encode import refuse_no_numbers
from finetune.errors import Faults, Key
from finetune.models.preprocessing import Preprocessing


def refuse_gaps_in(
    table: Table,
    inputs: Sequence[str],
    filled: Collection[str],
    read: Mapping[str, Column] | None = None,
) -> None:
    """Raise for each input with an infinite number, or with NaN if no step fills it.

    Args:
        table: The samples.
        inputs: The input columns.
        filled: Columns whose empty cells a step fills.
        read: The inputs with cells read as numbers or texts; None to look at no cells of a csv.

    Raises:
        FinetuneError: there is such an input. Faults of several are reported at once.
    """
    faults = Faults()
    for name in inputs:
        raw = table.columns[name]
        if isinstance(column := raw if read is None else read[name], Numbers):
            with faults.noted():
                refuse_gaps(name, column, table.place, raw, allows_empty=name in filled)
    faults.raise_if_any()


def refuse_unfit_cells(
    config: DataConfig,
    task: Task,
    tables: Mapping[str, Table],
    read: Mapping[str, Mapping[str, Column]],
    target: str | None,
    preprocessing: Preprocessing | None,
) -> None:
    """Raise for all inputs and a target of numbers that have gaps, or words for numbers.

    Args:
        config: `data:` of the config.
        task: Decides what the target is.
        tables: Settled tables, by part.
        read: The inputs of each part, with cells read as numbers or texts.
        target: The target column, if there is one.
        preprocessing: What the network was pretrained with, if that is known.

    Raises:
        FinetuneError: there is such a column. All faults are reported at once.
    """
    faults = Faults()
    for part, table in tables.items():
        # Cells of a text column may all be digits in one part: they are read as training's are.
        inputs = [n for n in read[part] if part == "train" or not _is_text(read["train"][n])]
        with faults.noted():
            refuse_gaps_in(table, inputs, filled_columns(config), read[part])
        # The steps in sight are those of training; evaluation may have its own.
        is_in_sight = part == "train" or config.evaluation_transforms is None
        names = tuple(inputs) if is_in_sight else ()
        for name, key in _taken_as_numbers(config, task, names, preprocessing):
            column = read[part][name]
            # A column without any value is neither: the step that takes it says more.
            if _is_text(column) and any(column.values):
                image = no_such_image(name, column, table, key)
                faults.add([image or no_number(name, column, table.place, key)])
        # Masks are refused where targets are encoded, with the tasks that learn them.
        if task.learns == "numbers" and target and not isinstance(table.columns[target], Images):
            with faults.noted():
                refuse_no_numbers(table, target)
    faults.raise_if_any()


def _is_text(column: Column) -> TypeGuard[Listed]:
    return isinstance(column, Listed) and column.kind == "text"


def _taken_as_numbers(
    config: DataConfig, task: Task, inputs: tuple[str, ...], preprocessing: Preprocessing | None
) -> Iterator[tuple[str, Key]]:
    """Yield the inputs whose raw cells have to be numbers, each with the key that takes them so."""
    nodes = _steps_in_sight(config, task, preprocessing)
    if nodes is None:
        return
    left = list(inputs)
    for position, node in enumerate(nodes):
        # One that names none may take any of them.
        for name in [name for name in left if name in (named_columns(node) or left)]:
            if isinstance(node, StackTransform | StandardizeTransform | ClipTransform):
                yield name, ("data", "transforms", position)
            # It leaves words to the steps behind it; with a mean or a number it refuses them.
            if not (isinstance(node, FillTransform) and node.with_ == "most_frequent"):
                left.remove(name)
    yield from ((name, ("data", "inputs")) for name in left)


def _steps_in_sight(
    config: DataConfig, task: Task, preprocessing: Preprocessing | None
) -> Sequence[Transform] | None:
    """Return the steps of the samples; None if it is not known what becomes of texts."""
    nodes = config.transforms
    if task.learns in ("tags", "span"):
        return None  # the inputs are words and texts
    if nodes is not None:
        # A step of the user's own may make anything of any column; masking says what it lacks.
        unsure = ImportTransform | MaskTokensTransform
        return None if any(isinstance(node, unsure) for node in nodes) else nodes
    if preprocessing is None or preprocessing.tokenizer or preprocessing.no_tokenizer:
        return None
    return ()
