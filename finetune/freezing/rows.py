"""Exact freezing of rows: a parameter is cut into slices, each its own tensor for the optimizer.

A slice is a view: its memory is that of the parameter's rows. The optimizer holds the trained
slices in place of the parameter, so no decay, momentum or rounding of its own can reach a frozen
row, and state exists for trained rows alone. Masking the gradient would not do: weight decay and
momentum move rows whose gradient is zero.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from finetune.config.selectors import ByRows, Not, Selector
from finetune.errors import SelectorError, did_you_mean
from finetune.models.inventory import ParamInfo

_MOST_SLICES = 64


def split_inventory(
    inventory: Sequence[ParamInfo], selectors: Iterable[Selector]
) -> tuple[ParamInfo, ...]:
    """Cut every parameter that a rows selector names into slices, so that each is wholly in or out.

    Args:
        inventory: The model's parameters.
        selectors: All selectors of a run, those of later phases too: slices never change, and
            what is cut already stays as it is.

    Returns:
        The rows of `inventory`, a cut parameter replaced by its slices, named
        `embed.weight[0:32000]`.

    Raises:
        SelectorError: there is no such parameter, it has no such rows, or they scatter too much.
    """
    cuts: dict[str, list[range]] = {}
    for selector in map(_positive, selectors):
        if isinstance(selector, ByRows):
            param = _find(selector, inventory)
            if param.slice_of is not None:
                continue
            cuts.setdefault(param.name, []).append(_indices(selector, param))
    rows: list[ParamInfo] = []
    for param in inventory:
        rows += _slices(param, cuts[param.name]) if param.name in cuts else [param]
    return tuple(rows)


def rows_of(name: str) -> tuple[str, slice | None]:
    """Split the name of a slice into parameter and rows; the name of a parameter has no rows."""
    parameter, bracket, text = name.partition("[")
    if not bracket:
        return name, None
    return parameter, slice(*(int(part) for part in text.removesuffix("]").split(":")))


def tensor_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the tensor, or the view of a tensor's rows, that `name` stands for.

    Raises:
        KeyError: there is no tensor of that name.
    """
    parameter, rows = rows_of(name)
    return tensors[parameter] if rows is None else tensors[parameter][rows]


@dataclass(frozen=True, slots=True)
class RowSlices:
    """The cut parameters of a model, and the slices that the optimizer holds in their place."""

    wholes: dict[str, nn.Parameter]
    """Each cut parameter by its name."""
    slices: dict[str, nn.Parameter]
    """Each slice by its own name: a view of its parameter's rows."""

    @classmethod
    def of(cls, model: nn.Module, names: Collection[str]) -> "RowSlices":
        """Make the slices among `names`. Moving the model to another device would part them."""
        parameters = dict(model.named_parameters())
        cut = [name for name in names if rows_of(name)[1] is not None]
        wholes = {rows_of(name)[0]: parameters[rows_of(name)[0]] for name in cut}
        views = {name: tensor_of(parameters, name).detach() for name in cut}
        return cls(wholes, {name: nn.Parameter(view) for name, view in views.items()})

    def clear_gradients(self) -> None:
        """Drop the gradients of the cut parameters, which no optimizer holds."""
        for whole in self.wholes.values():
            whole.grad = None

    def hand_over_gradients(self, frozen: AbstractSet[str]) -> None:
        """Give each trained slice its rows of the gradient, and each frozen one none."""
        for name, part in self.slices.items():
            parameter, rows = rows_of(name)
            gradient = self.wholes[parameter].grad
            part.grad = None if gradient is None or name in frozen else gradient[rows]


def _positive(selector: Selector) -> Selector:
    return _positive(selector.not_) if isinstance(selector, Not) else selector


def _find(selector: ByRows, inventory: Sequence[ParamInfo]) -> ParamInfo:
    for param in inventory:
        if selector.name in {rows_of(name)[0] for name in (param.name, *param.aliases)}:
            return param
    names = [param.name for param in inventory]
    raise SelectorError(
        f"rows of {selector.name!r}: no such parameter", hint=did_you_mean(selector.name, names)
    )


def _indices(selector: ByRows, param: ParamInfo) -> range:
    try:
        taken = selector.indices(param.shape[0] if param.shape else 0)
    except ValueError as error:
        raise SelectorError(str(error)) from error
    if not taken:
        raise SelectorError(f"{selector.rows!r} takes no row: {param.name} is {param.shape}")
    return taken


def _slices(param: ParamInfo, cuts: Sequence[range]) -> list[ParamInfo]:
    """Part the rows by which of `cuts` they belong to, and each part into even slices."""
    total = param.shape[0]
    signature = np.zeros(total, dtype=np.int64)
    for number, cut in enumerate(cuts):
        signature[np.asarray(cut)] |= 1 << min(number, 62)
    parts: list[range] = []
    for value in dict.fromkeys(signature.tolist()):
        parts += _even_runs(np.flatnonzero(signature == value))
    if len(parts) > _MOST_SLICES:
        raise SelectorError(f"the rows of {param.name} fall into {len(parts)} pieces, too many")
    return [_as_slice(param, part) for part in sorted(parts, key=lambda part: part.start)]


def _even_runs(rows: np.ndarray) -> list[range]:
    """Return evenly spaced rows as one range, others as ranges of neighbours."""
    steps = np.diff(rows)
    if len(steps) == 0 or (steps == steps[0]).all():
        step = int(steps[0]) if len(steps) else 1
        return [range(int(rows[0]), int(rows[-1]) + 1, step)]
    runs = np.split(rows, np.flatnonzero(steps != 1) + 1)
    return [range(int(run[0]), int(run[-1]) + 1) for run in runs]


def _as_slice(param: ParamInfo, part: range) -> ParamInfo:
    stride = f":{part.step}" if part.step > 1 else ""
    label = f"[{part.start}:{part.stop}{stride}]"
    return replace(
        param,
        name=f"{param.name}{label}",
        aliases=tuple(f"{alias}{label}" for alias in param.aliases),
        shape=(len(part), *param.shape[1:]),
        slice_of=param.shape[0],
        size_bytes=param.size_bytes // param.shape[0] * len(part),
    )


def whole_when_all_frozen(
    inventory: Sequence[ParamInfo], frozen: AbstractSet[str]
) -> frozenset[str]:
    """Add to `frozen` the name of every cut parameter whose slices are all in it."""
    trained = {rows_of(param.name)[0] for param in inventory if param.name not in frozen}
    cut = {rows_of(param.name)[0] for param in inventory}
    return frozenset(frozen) | (cut - trained)
