"""The network that declared layers become: its layers, and the order and wiring of their calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from finetune.models.misfits import misfit
from finetune.models.parts import first_of
from finetune.models.weights import WeightsReport


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input column of a batch, without the batch axis."""

    shape: tuple[int, ...]
    dtype: str

    def example(self, batch: int) -> Tensor:
        """Return a batch of zeros, or of ones for integers: an index that every table has."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        value = 0 if dtype.is_floating_point else 1
        return torch.full((batch, *self.shape), value, dtype=dtype)


class Source(NamedTuple):
    """Where a value comes from: an input column, or what a layer gives."""

    kind: Literal["column", "layer"]
    name: str


@dataclass(frozen=True, slots=True)
class ChildCall:
    """One call of a child of the network."""

    child: str
    takes: tuple[Source, ...]
    keywords: tuple[str, ...] = ()
    """Argument names of what it takes; by position if empty."""
    part: str | None = None
    """Attribute of the output to go on with; the output itself if None."""
    unpack: bool = True
    """Whether the first element stands for a tuple (LSTM, attention)."""

    def run(self, module: nn.Module, values: Mapping[Source, Any]) -> Any:
        """Call `module` on what the step takes out of `values`."""
        arguments, keywords = self.arguments(values)
        return self.part_of(module(*arguments, **keywords))

    def arguments(self, values: Mapping[Source, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call, by position and by name."""
        taken = tuple(values[source] for source in self.takes)
        return ((), dict(zip(self.keywords, taken, strict=True))) if self.keywords else (taken, {})

    def part_of(self, output: Any) -> Any:
        """Return the part of the child's output that the network goes on with."""
        part = output if self.part is None else getattr(output, self.part)
        return first_of(part) if self.unpack else part


class Network(nn.Module):
    """A network of named layers. Its children are the layers, under their own names.

    Args:
        columns: Names of the input columns, in the order of positional arguments.
        layers: The children.
        steps: Their calls in order. The last one's output is the network's.
        reports: Which pretrained tensors were loaded.
    """

    def __init__(
        self,
        columns: Sequence[str],
        layers: Mapping[str, nn.Module],
        steps: Sequence[ChildCall],
        reports: Sequence[WeightsReport] = (),
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.weights_reports = tuple(reports)
        """What pretrained tensors were loaded, and what found no place."""
        self._columns = tuple(columns)
        self._steps = tuple(steps)
        self._done = _last_uses(self._steps)

    def forward(self, *args: Tensor, **columns: Tensor) -> Any:
        """Run the layers on a batch, its columns given by position or by name.

        Raises:
            ModelError: a layer cannot take the shapes, types or values that come into it.
        """
        values = self._bound(args, columns)
        try:
            return self._run(values)
        except Exception as error:
            # All forward passes come by here: training, evaluation, prediction, probing, plan.
            if (told := misfit(error, self, self._bound_names(args, columns))) is None:
                raise
            raise told from error

    def _bound_names(
        self, args: Sequence[Tensor], columns: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the batch by the names of its columns."""
        return {source.name: value for source, value in self._bound(args, columns).items()}

    def _run(self, values: dict[Source, Any]) -> Any:
        """Run the layers one after another; `values` is used up."""
        output: Any = None
        # Looking a child up by its path costs as much as a small layer does.
        children = cast("dict[str, nn.Module]", self._modules)
        for step, done in zip(self._steps, self._done, strict=True):
            output = step.run(children[step.child], values)
            values[Source("layer", step.child)] = output
            for source in done:
                del values[source]
        return output

    def _bound(self, args: Sequence[Tensor], columns: Mapping[str, Tensor]) -> dict[Source, Any]:
        given = {**dict(zip(self._columns, args, strict=False)), **columns}
        if len(args) + len(columns) != len(self._columns) or set(given) != set(self._columns):
            got = [*(f"#{position}" for position, _ in enumerate(args)), *columns]
            raise TypeError(f"takes the columns {list(self._columns)}, got {got}")
        return {Source("column", name): tensor for name, tensor in given.items()}


def _last_uses(steps: Sequence[ChildCall]) -> tuple[tuple[Source, ...], ...]:
    """Return, for each step, the values that no later one takes: they can be let go."""
    last: dict[Source, int] = {}
    for position, step in enumerate(steps):
        last.update(dict.fromkeys((*step.takes, Source("layer", step.child)), position))
    return tuple(
        tuple(source for source, position in last.items() if position == step)
        for step in range(len(steps))
    )
