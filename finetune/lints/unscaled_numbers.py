"""Note on numbers that reach a network, or a loss, far from the size that networks begin at.

Letters: B samples, C numbers of a sample.
"""

from collections.abc import Iterable, Iterator, Set as AbstractSet
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.config.model import AffineLayer, Layer
from finetune.config.run import RunConfig
from finetune.config.source_keys import ArraysSource
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.config.transform_keys import (
    ImportTransform,
    StackTransform,
    Transform,
    VisionTransform,
)
from finetune.data.batches import Batch, Samples
from finetune.errors import Key
from finetune.freezing.lints import Lint
from finetune.tasks.views import View

_LOOKED_AT = 1000
"""Number of samples whose numbers are measured."""
_ARRAYS_LOOKED_AT = 64
"""Number of arrays, such as images, whose numbers are measured."""
_FILES_LOOKED_AT = 8
"""Number of image files whose numbers are measured."""
_FAR = 100
"""A mean or deviation beyond this is told. New layers give numbers around 1."""
_SENSITIVE = frozenset({"Linear", "Bilinear", "Conv1d", "Conv2d", "Conv3d", "RNN", "LSTM", "GRU"})
"""Layers that multiply what they are given; an embedding looks it up, a norm scales it."""
_WHOLE = frozenset({"torchvision", "timm", "transformers"})
"""Whole networks: those for images were trained on pixels around 1."""
_PASSING_ON = frozenset({"Flatten", "Identity", "Dropout"})
"""Layers that leave the size of numbers as it is."""


class _Size(NamedTuple):
    """Mean and standard deviation of one number over some samples."""

    column: str
    place: int | None
    """Position in a vector; None for a column of single numbers."""
    mean: float
    deviation: float

    @property
    def far(self) -> float:
        """How far from 0 its values are."""
        return max(abs(self.mean), self.deviation)


def unscaled_numbers(config: RunConfig, samples: Samples) -> tuple[Lint, ...]:
    """Return notes on input columns and a target of numbers whose usual size is far from 1.

    They are measured as the network gets them: after all transforms. Files of images are left
    alone, and so is what a lookup, a norm, a whole network or a user's own layer takes.

    Args:
        config: The run config.
        samples: The training samples, or some of them.
    """
    names = [name for name in samples.inputs if _is_multiplied(name, config.model.layers)]
    is_asked = bool(names) or bool(_of_numbers(config.task))
    # One sample has no deviation.
    if len(samples) < 2:
        return ()
    # To make large samples, such as images, only to measure a target would take long.
    if any(len(spec.shape) > 1 for spec in samples.specs.values()):
        taken = (n for n in samples.inputs if _is_multiplied(n, config.model.layers, _WHOLE))
        return tuple(_of_arrays(config, samples, taken))
    if not is_asked:
        return ()
    batch = samples.fetch(torch.arange(min(len(samples), _LOOKED_AT)))
    sizes = [size for name in names for size in _sizes(name, batch.inputs[name])]
    layers = config.model.layers
    found = [lint for each in _of_numbers(config.task) for lint in _of_target(each, batch, layers)]
    far = [size for size in sizes if size.far > _FAR]
    return (*_of_inputs(config, far), *found)


def _of_inputs(config: RunConfig, far: list[_Size]) -> Iterator[Lint]:
    """Yield a note that names the worst of some columns, if there are any."""
    if not far:
        return
    worst = max(far, key=lambda size: size.far)
    name = column_behind(config, worst.column, worst.place)
    others = f" and {len(far) - 1} more" if len(far) > 1 else ""
    known = "..." if name is None else name
    what = f"number {worst.place} of {worst.column!r}" if name is None else f"column {name!r}"
    yield Lint(
        ("data", "inputs"),
        f"{what}{others}: numbers are far from 1 (mean {worst.mean:,.4g}, standard deviation "
        f"{worst.deviation:,.4g}) and nothing scales them, which makes learning slow or unstable",
        f"data.transforms: [{{type: standardize, columns: [{known}]}}] brings them to mean 0 and "
        "deviation 1",
    )


def _of_arrays(config: RunConfig, samples: Samples, names: Iterable[str]) -> Iterator[Lint]:
    """Yield a note on each column of arrays, such as images, of numbers far from 1.

    Those of files need none: their pixels are 0..1 whatever the file holds, unless a step keeps
    them from 0 to 255.
    """
    is_kept = any(map(_keeps_size, config.data.transforms or ()))
    if not is_kept and not isinstance(config.data.source or config.data.train, ArraysSource):
        return
    # Files take some time to decode, and are alike in what is asked here.
    most = _FILES_LOOKED_AT if is_kept else _ARRAYS_LOOKED_AT
    batch = samples.fetch(torch.arange(min(len(samples), most)))
    for name in names:
        values = batch.inputs[name]
        if values.ndim < 3 or values.dtype == torch.bool:
            continue
        mean, deviation = values.double().mean().item(), values.double().std().item()
        if max(abs(mean), deviation) <= _FAR:
            continue
        size = f"(mean {mean:,.4g}, standard deviation {deviation:,.4g})"
        cause, key = "nothing scales them", ("data", "source")
        hint = (
            f"columns: {{{name}: {{dtype: uint8}}}} of the source reads 0..255 as 0..1; "
            f"data.transforms: [{{type: Normalize, mean: [{mean:.4g}], std: "
            f"[{deviation:.4g}]}}] scales any"
        )
        if is_kept:
            cause, key = "ToDtype leaves bytes from 0 to 255", ("data", "transforms")
            hint = "{type: ToDtype, dtype: float32, scale: true} brings them to 0..1"
        yield Lint(
            key,
            f"column {name!r}: numbers are far from 1 {size} and {cause}, which makes learning "
            "slow or unstable",
            hint,
        )


def _keeps_size(node: Transform) -> bool:
    """Tell whether a step makes floats of bytes and leaves them from 0 to 255."""
    if not isinstance(node, VisionTransform) or node.type != "ToDtype":
        return False
    return not node.arguments.get("scale", False)


class _Learnt(NamedTuple):
    """A task that learns numbers."""

    key: Key
    """Position in the config of its target."""
    view: View | None
    """What it sees of a batch, as one of a list."""


def _of_numbers(task: AnyTask) -> list[_Learnt]:
    """Return the tasks that learn numbers."""
    # A loss of the user's own may scale them.
    if not isinstance(task, TaskList):
        is_plain = task.learns == "numbers" and not task.has_own_loss
        return [_Learnt(("data", "target"), None)] if is_plain else []
    return [
        _Learnt(("task", "tasks", n, "target"), View(one.label, one.output, one.target))
        for n, one in enumerate(task.tasks)
        if one.learns == "numbers" and not one.has_own_loss
    ]


def _of_target(learnt: _Learnt, batch: Batch, layers: tuple[Layer, ...]) -> Iterator[Lint]:
    """Yield a note on targets that are numbers far from 1, before any unit."""
    target = (batch if learnt.view is None else learnt.view.of_batch(batch)).target
    if target is None or not len(target):
        return
    target = _before_unit(target, _unit_of(learnt, layers))
    worst = max(_sizes("", target), key=lambda size: size.far, default=None)
    if worst is None or worst.far <= _FAR:
        return
    yield Lint(
        learnt.key,
        f"the numbers to learn are far from 1 (mean {worst.mean:,.4g}, standard deviation "
        f"{worst.deviation:,.4g}), and a network begins near 0",
        f"a last layer brings outputs there: {{type: affine, scale: {worst.deviation or 1:.4g}, "
        f"shift: {worst.mean:.4g}}}; or give the numbers in other units, such as thousands",
    )


def _unit_of(learnt: _Learnt, layers: tuple[Layer, ...]) -> AffineLayer | None:
    """Return the layer `affine` that a task reads, if it is one."""
    names = [_label(layers, place) for place in range(len(layers))]
    output = names[-1] if learnt.view is None else learnt.view.output
    layer = layers[names.index(output)] if output in names else None
    return layer if isinstance(layer, AffineLayer) else None


def _before_unit(target: Tensor, unit: AffineLayer | None) -> Tensor:
    """Return what the layer before a unit must give to hit the target."""
    if unit is None:
        return target
    scale, shift = (torch.as_tensor(one, dtype=torch.float64) for one in (unit.scale, unit.shift))
    # With scale 0 the layer gives its shift alone, whatever comes before it.
    return (target.double() - shift) / torch.where(scale == 0, 1.0, scale)


def _sizes(name: str, values: Tensor) -> list[_Size]:
    """Return the size of each number of a column `(B,)` or `(B, C)`; nothing for other shapes."""
    if values.ndim not in (1, 2) or values.dtype == torch.bool:
        return []
    numbers = values.double().reshape(len(values), -1)
    pairs = zip(numbers.mean(0).tolist(), numbers.std(0).tolist(), strict=True)
    return [
        _Size(name, None if values.ndim == 1 else place, mean, deviation)
        for place, (mean, deviation) in enumerate(pairs)
    ]


def _is_multiplied(
    column: str, layers: tuple[Layer, ...], more: AbstractSet[str] = frozenset()
) -> bool:
    """Tell whether a layer that multiplies its input, or one of `more`, takes a column as it is."""
    names = {column}
    for position, layer in enumerate(layers):
        # Without `inputs` a layer takes the one before it; the first one takes the columns.
        taken = layer.inputs is not None and names & set(layer.inputs)
        follows = layer.inputs is None and (position == 0 or _label(layers, position - 1) in names)
        if not (taken or follows):
            continue
        if layer.type in _SENSITIVE | more:
            return True
        if layer.type in _PASSING_ON or layer.type in ("concat", "stack"):
            names.add(_label(layers, position))
    return False


def _label(layers: tuple[Layer, ...], position: int) -> str:
    """Return the name by which other layers take the output of a layer."""
    return layers[position].name or str(position)


def column_behind(config: RunConfig, column: str, place: int | None) -> str | None:
    """Return the column of the data that a number of the network's input comes from.

    None where nobody knows.

    Args:
        config: The run config.
        column: Column of the network's input.
        place: Position in its vectors; None for a column of single numbers.
    """
    if place is None:
        return column
    nodes = config.data.transforms or ()
    stacks = [node for node in nodes if isinstance(node, StackTransform)]
    # Code of the user's own may order columns as it likes.
    if any(isinstance(node, ImportTransform) for node in nodes):
        return None
    if not stacks:
        return column if column in (config.data.inputs or ()) else None
    columns = stacks[-1].columns or config.data.inputs or ()
    # Categories and flags come in between, so that places are known only without them.
    widths = {node.type for node in nodes} & {"categories", "fill"}
    return columns[place] if not widths and place < len(columns) else None
