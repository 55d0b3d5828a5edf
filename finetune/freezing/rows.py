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
from finetune.errors import Faults, Key, SelectorError, did_you_mean
from finetune.models.inventory import ParamInfo

_MOST_SLICES = 64
"""Upper bound on the slices of a parameter: each is a tensor that the optimizer steps."""


def split_inventory(
    inventory: Sequence[ParamInfo], selectors: Iterable[Selector], *, key: Key = ()
) -> tuple[ParamInfo, ...]:
    """Cut each parameter with a rows selector into slices that are wholly selected or not.

    Args:
        inventory: The model's parameters.
        selectors: All selectors of a run, those of later phases too, as slices never change. What
            is cut already stays as it is.
        key: Config key of the list of selectors, for error messages.

    Returns:
        The rows of `inventory`, a cut parameter replaced by its slices, named
        `embed.weight[0:32000]`.

    Raises:
        SelectorError: there is no such parameter, it has no such rows, or they scatter too much.
    """
    cuts: dict[str, dict[range, None]] = {}
    faults = Faults()
    for number, selector in enumerate(map(_positive, selectors)):
        if isinstance(selector, ByRows):
            with faults.noted():
                param = _find(selector, inventory, key=(*key, number))
                if param.slice_of is None:
                    taken = _indices(selector, param, key=(*key, number))
                    cuts.setdefault(param.name, {})[taken] = None
    faults.raise_if_any()
    rows: list[ParamInfo] = []
    for param in inventory:
        is_cut = param.name in cuts
        rows += _slices(param, list(cuts[param.name]), key=key) if is_cut else [param]
    return tuple(rows)


def fits(selector: Selector, inventory: Sequence[ParamInfo]) -> bool:
    """Tell whether the rows of a selector exist; True for a selector that is not of rows."""
    try:
        split_inventory(inventory, [selector])
    except SelectorError:
        return False
    return True


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
        """Return a parameter for each of `names` that is a slice of rows: `embed.weight[:10]`.

        Each shares its memory with rows of the model's own parameter. Moving the model to another
        device gives its parameters other memory, so slices are made after that.
        """
        parameters = dict(model.named_parameters())
        cut = [name for name in names if rows_of(name)[1] is not None]
        wholes = {rows_of(name)[0]: parameters[rows_of(name)[0]] for name in cut}
        # A view shares the memory: an update of the slice is one of the parameter's rows.
        views = {name: tensor_of(parameters, name).detach() for name in cut}
        return cls(wholes, {name: nn.Parameter(view) for name, view in views.items()})

    def clear_gradients(self) -> None:
        """Drop the gradients of the cut parameters: `zero_grad` of the optimizer misses them."""
        for whole in self.wholes.values():
            whole.grad = None

    def hand_over_gradients(self, frozen: AbstractSet[str]) -> None:
        """Give each trained slice its rows of the gradient, and each frozen one none."""
        for name, part in self.slices.items():
            parameter, rows = rows_of(name)
            gradient = self.wholes[parameter].grad
            # None, not zeros: the optimizer skips such a slice, so decay and momentum cannot move
            # it.
            part.grad = None if gradient is None or name in frozen else gradient[rows]


def _positive(selector: Selector) -> Selector:
    """Return the selector below any number of `not`."""
    return _positive(selector.not_) if isinstance(selector, Not) else selector


def _find(selector: ByRows, inventory: Sequence[ParamInfo], *, key: Key) -> ParamInfo:
    """Return the parameter of a rows selector; raise if there is none."""
    for param in inventory:
        if selector.name in {rows_of(name)[0] for name in (param.name, *param.aliases)}:
            return param
    names = [param.name for param in inventory]
    raise SelectorError(
        f"rows of {selector.name!r}: no such parameter",
        hint=did_you_mean(selector.name, names),
        key=key,
    )


def _indices(selector: ByRows, param: ParamInfo, *, key: Key) -> range:
    """Return the rows that a selector takes of a parameter; raise if there are none."""
    try:
        taken = selector.indices(param.shape[0] if param.shape else 0)
    except ValueError as error:
        raise SelectorError(str(error), key=key) from error
    if not taken:
        message = f"{selector.rows!r} takes no row: {param.name} has the shape {param.shape}"
        raise SelectorError(message, key=key)
    return taken


def _slices(param: ParamInfo, cuts: Sequence[range], *, key: Key) -> list[ParamInfo]:
    """Cut a parameter into slices, none of which lies partly inside one of `cuts`."""
    pieces = [np.arange(param.shape[0])]
    # Each cut splits every piece in two: the rows inside it, and the rest.
    for cut in cuts:
        inside = np.zeros(param.shape[0], dtype=bool)
        inside[np.asarray(cut)] = True
        halves = [half for p in pieces for half in (p[inside[p]], p[~inside[p]])]
        pieces = [half for half in halves if len(half)]
    parts = [run for piece in pieces for run in _even_runs(piece)]
    # Scattered rows would make thousands of tensors, each with its own state and update.
    if len(parts) > _MOST_SLICES:
        message = (
            f"the rows of {param.name} fall into {len(parts)} pieces, more than {_MOST_SLICES}"
        )
        raise SelectorError(message, key=key)
    return [_as_slice(param, part) for part in sorted(parts, key=lambda part: part.start)]


def _even_runs(rows: np.ndarray) -> list[range]:
    """Return evenly spaced rows as one range, others as ranges of neighbours."""
    # Rows at an even distance are one strided view, so every second row needs one slice only.
    steps = np.diff(rows)
    if len(steps) == 0 or (steps == steps[0]).all():
        step = int(steps[0]) if len(steps) else 1
        return [range(int(rows[0]), int(rows[-1]) + 1, step)]
    # Each run of neighbours is a slice of its own; one tensor cannot skip rows unevenly.
    runs = np.split(rows, np.flatnonzero(steps != 1) + 1)
    return [range(int(run[0]), int(run[-1]) + 1) for run in runs]


def _as_slice(param: ParamInfo, part: range) -> ParamInfo:
    """Return the inventory row of a slice, named `weight[start:stop:step]`."""
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
    # `apply_mask` goes by names of parameters, and knows no slices.
    trained = {rows_of(param.name)[0] for param in inventory if param.name not in frozen}
    cut = {rows_of(param.name)[0] for param in inventory}
    return frozenset(frozen) | (cut - trained)
