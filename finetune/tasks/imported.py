"""Tasks of the user's own: an object with `loss`, and with `metrics` and `read` if it has any."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from finetune.config.task_keys import ImportTask
from finetune.errors import FinetuneError, ModelError
from finetune.importing import call_trusted
from finetune.models.shapes import describe
from finetune.tasks.classification import read_classes
from finetune.tasks.losses import own_loss
from finetune.tasks.metrics import imported_metric, measure_of, own_feed
from finetune.tasks.records import Asked, OwnRecord, Reader
from finetune.tasks.regression import read_numbers
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts


def imported(config: ImportTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: the object has not what a task needs.
    """
    made = call_trusted(config.path, config.args, facts.trust, key=("task",))
    function, metrics = getattr(made, "loss", None), getattr(made, "metrics", {})
    if not callable(function) or not isinstance(metrics, Mapping):
        raise FinetuneError(
            f"{config.path!r} returns {type(made).__name__!r}, which needs a method "
            "'loss(outputs, batch)' and a mapping 'metrics'",
            key=("task", "path"),
        )
    own = {name: imported_metric(name, metric, ("task",)) for name, metric in metrics.items()}
    # A direction without its metric would take no effect, so it is an error.
    if strange := sorted(set(config.better) - set(metrics)):
        known = ", ".join(repr(name) for name in metrics) or "none"
        raise FinetuneError(
            f"the task has no metric {strange[0]!r}; there are: {known}", key=("task", "better")
        )
    return Task(
        # The task or its loss may say what it needs.
        losses=(own_loss("loss", 1.0, function, (made, function)),),
        metrics=tuple(
            measure_of(name, metric, config.better.get(name), facts, own_feed(name, metric))
            for name, metric in own.items()
        ),
        reader=_reader(made, facts),
    )


def _reader(made: object, facts: TaskFacts) -> Reader:
    """Return the task's own reader, or the one of classes or numbers if it has none."""
    read = getattr(made, "read", None)
    if callable(read):
        return partial(_read_own, read)
    return partial(read_classes, facts.classes) if facts.classes else read_numbers


def _read_own(read: Any, outputs: Any, asked: Asked | None = None) -> list[OwnRecord]:
    """Return the records of a task that reads them itself.

    Raises:
        ModelError: it gives something else than plain values by name for each sample, or a name
            that each row has already.
    """
    rows = read(outputs)
    is_list = isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows)
    if not is_list or (asked is not None and len(rows) != len(asked.batch)):
        wanted = "" if asked is None else f" for each of {len(asked.batch)} samples"
        raise ModelError(
            f"the task's own 'read' gives {describe(rows)}, needs a list with one dict{wanted}",
            key=("task", "path"),
        )
    if any("input" in row for row in rows):
        raise ModelError(
            "the task's own 'read' gives a value called 'input', which is the sample's name in "
            "each row",
            key=("task", "path"),
        )
    return [OwnRecord({str(name): _plain(value) for name, value in row.items()}) for row in rows]


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: tensors and arrays become lists.

    Raises:
        ModelError: JSON has no such value.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    # Tensors, arrays and single numbers of numpy all have it, and nothing has to be imported.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ModelError(
        f"the task's own 'read' gives {describe(value)}, needs numbers, texts, lists or dicts",
        key=("task", "path"),
    )
