"""The network that declared layers become: the layers, and how their calls are wired."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from finetune.models.misfits import misfit
from finetune.models.parts import first_of, picked
from finetune.models.weights_report import WeightsReport


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of one input column, without the batch axis."""

    shape: tuple[int, ...]
    dtype: str

    def example(self, batch: int) -> Tensor:
        """Return a batch of zeros, or of ones for integers, which every table has as an index."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        value = 0 if dtype.is_floating_point else 1
        return torch.full((batch, *self.shape), value, dtype=dtype)


class Source(NamedTuple):
    """Where a value comes from: an input column, or the output of a layer."""

    kind: Literal["column", "layer"]
    name: str


@dataclass(frozen=True, slots=True)
class ChildCall:
    """One call of a child module."""

    child: str
    takes: tuple[Source, ...]
    keywords: tuple[str, ...] = ()
    """Argument names for the inputs; they are passed by position if empty."""
    part: str | None = None
    """Key of the output to use; None uses the output itself."""
    unpack: bool = True
    """Whether a tuple is replaced by its first element (LSTM, attention)."""
    name: str = ""
    """Name of the output for later calls; the child's own if empty. A shared child has several."""
    picks: tuple[str, ...] = ()
    """Places of single outputs that later calls take, such as `2`."""
    source: Source = field(init=False, repr=False, compare=False)
    """Source of its output for later calls. It is made once: each step reads it for each layer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", Source("layer", self.name or self.child))

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that later calls can take: the output, then the single ones."""
        whole = self.source
        return (whole, *(Source("layer", f"{whole.name}.{place}") for place in self.picks))

    def run(self, module: nn.Module, values: dict[Source, Any]) -> Any:
        """Return the output of `module` for its inputs in `values`; put it into `values`."""
        arguments, keywords = self.arguments(values)
        return self.put(module(*arguments, **keywords), values)

    def put(self, output: Any, values: dict[Source, Any]) -> Any:
        """Put the child's output, and single ones, into `values`; return what later layers use."""
        values[self.source] = part = self.part_of(output)
        for place in self.picks:
            values[Source("layer", f"{self.source.name}.{place}")] = picked(output, place)
        return part

    def arguments(self, values: Mapping[Source, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call: positional ones, and ones by name."""
        taken = tuple(map(values.__getitem__, self.takes))
        return ((), dict(zip(self.keywords, taken, strict=True))) if self.keywords else (taken, {})

    def part_of(self, output: Any) -> Any:
        """Return the part of the child's output that later layers use."""
        if self.part is None and isinstance(output, Tensor):  # the usual case
            return output
        part = output if self.part is None else output[self.part]
        return first_of(part) if self.unpack else part


class Network(nn.Module):
    """A network of named layers, which are its children under their own names.

    Args:
        columns: Names of the input columns, in the order of positional arguments.
        layers: The children.
        steps: Their calls in order. The output of the last is the network's.
        outputs: Outputs by name, if the network gives several: a dict with each of them.
        reports: Reports on the pretrained tensors that were loaded.
    """

    def __init__(
        self,
        columns: Sequence[str],
        layers: Mapping[str, nn.Module],
        steps: Sequence[ChildCall],
        reports: Sequence[WeightsReport] = (),
        outputs: Mapping[str, Source] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.weights_reports = tuple(reports)
        """Reports on pretrained tensors: which were loaded, and which did not fit."""
        self._columns = tuple(columns)
        self._steps = tuple(steps)
        self._outputs = dict(outputs)
        self._done = _last_uses(self._steps, self._outputs.values())

    @property
    def last_layer(self) -> nn.Module | None:
        """The layer whose output is the network's; None for a network with several outputs."""
        return None if self._outputs else self.get_submodule(self._steps[-1].child)

    @property
    def unread(self) -> list[str]:
        """Names of the calls whose output goes nowhere: to no later call, and not out."""
        taken = {source for step in self._steps for source in step.takes}
        taken.update(self._outputs.values())
        steps = self._steps if self._outputs else self._steps[:-1]
        return [step.source.name for step in steps if taken.isdisjoint(step.sources)]

    def forward(self, *args: Tensor, **columns: Tensor) -> Any:
        """Return the network's output for a batch, given as columns by position or name.

        It is that of the last layer, or a dict of several if the network was made with names.

        Raises:
            ModelError: a layer cannot take the shapes, types or values of its input.
        """
        values = self._bound(args, columns)
        try:
            return self._run(values)
        except Exception as error:
            # Every forward pass comes through here: training, evaluation, prediction, plan.
            if (told := misfit(error, self, self._bound_names(args, columns))) is None:
                raise
            raise told from error

    def _bound_names(
        self, args: Sequence[Tensor], columns: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the batch as columns by name."""
        return {source.name: value for source, value in self._bound(args, columns).items()}

    def _run(self, values: dict[Source, Any]) -> Any:
        """Return the output of the last layer, or those with a name; mutates `values`."""
        output: Any = None
        # By `get_submodule` the look-up of a child would cost as much as a small layer.
        children = cast("dict[str, nn.Module]", self._modules)
        for step, done in zip(self._steps, self._done, strict=True):
            output = step.run(children[step.child], values)
            # Kept to the end, outputs that no later layer reads would add up to a multiple of the
            # memory.
            for source in done:
                del values[source]
        if self._outputs:
            return {name: values[source] for name, source in self._outputs.items()}
        return output

    def _bound(self, args: Sequence[Tensor], columns: Mapping[str, Tensor]) -> dict[Source, Any]:
        """Return the batch by source; raise `TypeError` unless each column is given once."""
        given = {**dict(zip(self._columns, args, strict=False)), **columns}
        if len(args) + len(columns) != len(self._columns) or set(given) != set(self._columns):
            got = [*(f"#{position}" for position, _ in enumerate(args)), *columns]
            raise TypeError(f"takes the columns {list(self._columns)}, got {got}")
        return {Source("column", name): tensor for name, tensor in given.items()}


def _last_uses(
    steps: Sequence[ChildCall], kept: Iterable[Source]
) -> tuple[tuple[Source, ...], ...]:
    """Return, for each step, the values that no later step uses, so that they can be freed.

    Those that are `kept` are outputs of the network.
    """
    last: dict[Source, int] = {}
    for position, step in enumerate(steps):
        last.update(dict.fromkeys((*step.takes, *step.sources), position))
    last.update(dict.fromkeys(kept, len(steps)))
    return tuple(
        tuple(source for source, position in last.items() if position == step)
        for step in range(len(steps))
    )
