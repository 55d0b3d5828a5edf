"""Read `data.json` of a run: columns, classes and sample shapes, checked before use."""

from math import prod
from pathlib import Path
from typing import Any, get_args

import torch

from finetune.data.column_kinds import Kind
from finetune.data.opening import DataFacts
from finetune.data.steps.learnt import read_learnt
from finetune.data.targets.listed_targets import TargetClasses
from finetune.errors import CheckpointError
from finetune.models.declared import TensorSpec

_MAX_NUMBERS = 2**31
"""Upper bound on the numbers of one sample: the network is built with an example of it."""


def read_facts(document: dict[str, Any], path: Path) -> tuple[DataFacts, dict[str, TensorSpec]]:
    """Return the facts about the data and the shapes of a sample.

    Args:
        document: The JSON object.
        path: Its file, for messages.

    Raises:
        CheckpointError: the document is not what a run writes.
    """
    try:
        specs = {str(name): _spec(spec) for name, spec in document["specs"].items()}
        classes = document["classes"]
        facts = DataFacts(
            inputs=_texts(document["inputs"]),
            target=None if document["target"] is None else _text(document["target"]),
            classes=None if classes is None else _texts(classes),
            notes=_texts(document["notes"]),
            sizes={_text(part): _count(size) for part, size in document["sizes"].items()},
            kinds={_text(name): _kind(kind) for name, kind in document["kinds"].items()},
            # Runs of earlier versions have none.
            fitted=read_learnt(document.get("fitted", [])),
            counts=_counts(document.get("counts"), classes),
            by_target=_by_target(document.get("by_target", {})),
            of_bytes=_texts(document.get("of_bytes") or []),
        )
        if not facts.inputs or not facts.kinds.keys() >= set(facts.inputs):
            raise ValueError(f"inputs {facts.inputs}, of which known: {[*facts.kinds]}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            # Cut: a forged file can make the text of the error as long as it likes.
            f"does not describe the data of a run: {type(error).__name__}: {str(error)[:200]}",
            where=str(path),
            hint="train the run anew with --fresh",
        ) from error
    return facts, specs


def _spec(entry: Any) -> TensorSpec:
    """Return shape and dtype of an input column from JSON; raise ValueError if they are none."""
    shape = tuple(_count(size) for size in entry["shape"])
    dtype = _text(entry["dtype"])
    # The name is looked up in torch, which has more than dtypes.
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"no kind of number {dtype!r}")
    if prod(shape) > _MAX_NUMBERS:
        raise ValueError(f"a sample of shape {shape}")
    return TensorSpec(shape, dtype)


def _kind(value: Any) -> Kind:
    for kind in get_args(Kind):
        if value == kind:
            return kind  # type: ignore[no-any-return]
    raise ValueError(f"no kind of column {value!r}")


def _counts(values: Any, classes: Any) -> tuple[int, ...] | None:
    """Return the training samples of each class; None where a run has not kept them."""
    if values is None:
        return None
    if not isinstance(values, list) or not isinstance(classes, list) or len(values) != len(classes):
        raise ValueError("counts that are not one for each class")
    return tuple(map(_count, values))


def _by_target(values: Any) -> dict[str, TargetClasses]:
    """Return the classes of each target of a list of tasks, with their training samples."""
    found = {}
    for name, one in values.items():
        names, counts = _texts(one["names"]), _counts(one["counts"], one["names"])
        if counts is None:
            raise ValueError(f"no counts of {name!r}")
        found[_text(name)] = TargetClasses(names, counts, _count(one["samples"]))
    return found


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"needs a list, got {type(values).__name__}")
    return tuple(_text(value) for value in values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"needs text, got {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    # `isinstance` would take true and false of JSON for counts.
    if type(value) is not int or value < 0:
        raise ValueError(f"needs a whole number, got {value!r}")
    return value
