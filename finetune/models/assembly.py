"""A network under construction: each layer is built, wired to its inputs, and tried at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import nn

from finetune.config.model import (
    ImportLayer,
    Layer,
    SharedLayer,
    TorchLayer,
    TorchvisionLayer,
    TransformersLayer,
)
from finetune.errors import Key, ModelError, did_you_mean
from finetune.models.architectures import part_of_torchvision
from finetune.models.heads import HeadWanted, OutputWanted
from finetune.models.layer_calls import (
    TOKENIZER_EXTRAS,
    PlannedCall,
    calls_of_torch,
    calls_of_transformers,
)
from finetune.models.layers import Surroundings, build_layer, layer_label
from finetune.models.network import ChildCall, Network, Source, TensorSpec
from finetune.models.parts import picked
from finetune.models.shapes import try_out

_EXAMPLES = 2
"""Samples in the example batch: with only one, a layer that mixes up samples goes unnoticed."""


class Assembly:
    """The layers so far, and their outputs for the example batch.

    Args:
        inputs: Input columns of the data, in order.
        around: What layers need besides their nodes.
        categories: Number of categories by column of positions.
        wanted: The outputs by the name of their layer, if the network gives several.
    """

    def __init__(
        self,
        inputs: Mapping[str, TensorSpec],
        around: Surroundings,
        categories: Mapping[str, int],
        wanted: Mapping[str, OutputWanted] = MappingProxyType({}),
    ) -> None:
        self._around, self._categories, self._wanted = around, categories, wanted
        self._columns = tuple(Source("column", name) for name in inputs)
        self._values: dict[Source, Any] = {
            Source("column", name): spec.example(_EXAMPLES) for name, spec in inputs.items()
        }
        self._children: dict[str, nn.Module] = {}
        self._steps: list[ChildCall] = []
        # By name of a layer: its node, the source that others read, and its main call with its
        # whole output.
        self._nodes: dict[str, Layer] = {}
        self._given_by: dict[str, Source] = {}
        self._outputs: dict[str, tuple[int, Any]] = {}
        self._last_is_foreign = False

    def add(self, node: Layer, name: str, key: Key) -> None:
        """Build the next layer, run it on the example batch, and keep its output.

        Raises:
            ModelError: it cannot be built, or cannot take its input.
        """
        self._refuse_taken(name, key)
        label, child = layer_label(name, node), name
        # What is shared has a node of its own; what it does is told by the one it names.
        origin = node
        if isinstance(node, SharedLayer):
            child, origin = node.layer, self._nodes[node.layer]
        takes = self._sources(node, origin, label, key)
        keywords = self._keywords(node, origin, takes, label, key)
        around = self._surroundings(name, takes)
        module = self._children.get(child) or build_layer(
            node, name, [self._values[source] for source in takes], around, key=key
        )
        self._last_is_foreign = isinstance(origin, ImportLayer)
        match origin:
            case TransformersLayer():
                calls = calls_of_transformers(
                    origin,
                    module,
                    ChildCall(child, takes, name=name),
                    around.head,
                    key,
                    are_named=node.inputs is not None,
                )
            case TorchvisionLayer():
                part = part_of_torchvision(origin)
                calls = [PlannedCall(ChildCall(child, takes, keywords, part, name=name), module)]
            case TorchLayer():
                incoming = [self._values[source] for source in takes]
                call = ChildCall(child, takes, keywords, name=name)
                calls = calls_of_torch(origin, module, call, incoming)
            case _:
                calls = [PlannedCall(ChildCall(child, takes, keywords, name=name), module)]
        for step, called in calls:
            self._append(step, called, label, key, new=not isinstance(node, SharedLayer))
        self._nodes[name] = origin
        # Not `name`: pooling behind a network is a call of its own, and others read from it.
        self._given_by[name] = self._steps[-1].source

    def finished(self) -> Network:
        """Return the network made of all layers added.

        Raises:
            ModelError: an input column is used by no layer.
        """
        used = {source for step in self._steps for source in step.takes}
        for column in self._columns:
            if column not in used and column.name.rpartition(".")[2] not in TOKENIZER_EXTRAS:
                raise ModelError(
                    f"input column {column.name!r} goes into no layer",
                    hint="name it in the inputs of a layer, or leave it out of data.inputs",
                    key=("model", "layers"),
                )
        # What the user's own code returns last may be a tuple that the user's own loss wants whole.
        if self._last_is_foreign:
            self._steps[-1] = replace(self._steps[-1], unpack=False)
        names = [column.name for column in self._columns]
        outputs = {name: self._layer(name, one.key) for name, one in self._wanted.items()}
        return Network(names, self._children, self._steps, self._around.reports, outputs)

    def _surroundings(self, name: str, takes: Sequence[Source]) -> Surroundings:
        """Return what a layer needs besides its node."""
        names = [source.name for source in takes if source.kind == "column"]
        categories = self._categories.get(names[0]) if len(names) == 1 else None
        around = replace(self._around, categories=categories)
        if not self._wanted:
            return around
        # Of several outputs each has its own number of classes, and other layers have none.
        head = self._wanted[name].head if name in self._wanted else HeadWanted()
        return replace(around, classes=head.width, head=head)

    def _layer(self, name: str, key: Key) -> Source:
        """Return the layer, or the single output of one, that is an output of the network."""
        source = self._source(name, key)
        if source.kind != "layer":
            known = ", ".join(map(repr, self._given_by))
            raise ModelError(f"{name!r} is an input column; there are layers {known}", key=key)
        return source

    def _append(
        self, step: ChildCall, module: nn.Module, label: str, key: Key, *, new: bool
    ) -> None:
        """Run a module on the example batch; add it with its call and its output."""
        name = step.source.name
        if new and step.child not in self._children:
            self._refuse_taken(step.child, key)
        elif step.source in self._values:
            raise ModelError(f"layer name {name!r} is taken", key=(*key, "name"))
        arguments, keywords = step.arguments(self._values)
        foreign = self._last_is_foreign
        output = try_out(module, arguments, keywords, label=label, key=key, foreign=foreign)
        # Some classes of transformers return no hidden states, or only if asked by their config.
        if step.part is not None and output.get(step.part) is None:
            raise ModelError(f"{label}: its output has no {step.part!r}", key=(*key, "output"))
        self._children.setdefault(step.child, module)
        self._outputs[name] = len(self._steps), output
        self._steps.append(step)
        step.put(output, self._values)

    def _refuse_taken(self, name: str, key: Key) -> None:
        """Raise if a name is a layer's already, or an attribute of every `Network`."""
        is_taken = name in self._children or Source("layer", name) in self._values
        if is_taken or hasattr(Network((), {}, ()), name):
            raise ModelError(f"layer name {name!r} is taken", key=(*key, "name"))

    def _sources(self, node: Layer, origin: Layer, label: str, key: Key) -> tuple[Source, ...]:
        """Return the sources that a layer names, else the layer before, else all columns."""
        if node.inputs is None:
            return (self._steps[-1].source,) if self._steps else self._columns
        found: list[Source] = []
        for position, name in enumerate(node.inputs):
            tokens = [one for one in self._columns if one.name.startswith(f"{name}.")]
            if name in self._given_by or not tokens:
                found.append(self._source(name, (*key, "inputs", position)))
                continue
            if not isinstance(origin, TransformersLayer | ImportLayer):
                named = ", ".join(repr(one.name) for one in tokens)
                raise ModelError(
                    f"{label}: takes one column, and the tokens of {name!r} are {named}",
                    hint=f"inputs: [{tokens[0].name}]",
                    key=(*key, "inputs", position),
                )
            found += tokens
        return tuple(found)

    def _source(self, name: str, key: Key) -> Source:
        """Return the earlier layer, the single output of one, or the input column of that name."""
        column = Source("column", name)
        # A layer wins over a column of the same name: it is the one declared in the config.
        if name in self._given_by:
            return self._given_by[name]
        if column in self._values:
            return column
        layer, _, place = name.partition(".")
        if place and layer in self._given_by:
            return self._single(layer, place, key)
        known = [*self._given_by, *(column.name for column in self._columns)]
        raise ModelError(
            f"no earlier layer and no input column {name!r}; "
            f"known: {', '.join(repr(word) for word in known)}",
            hint=did_you_mean(name, known),
            key=key,
        )

    def _single(self, layer: str, place: str, key: Key) -> Source:
        """Return one of several outputs of an earlier layer; its call hands it on from now on."""
        source = Source("layer", f"{layer}.{place}")
        if source in self._values:
            return source
        position, output = self._outputs[layer]
        try:
            self._values[source] = picked(output, place)
        except LookupError as error:
            raise ModelError(f"layer {layer!r} {error.args[0]}, not {place!r}", key=key) from error
        step = self._steps[position]
        self._steps[position] = replace(step, picks=(*step.picks, place))
        return source

    def _keywords(
        self, node: Layer, origin: Layer, takes: tuple[Source, ...], label: str, key: Key
    ) -> tuple[str, ...]:
        """Return the argument names of a layer that takes several columns; else nothing."""
        settled = node.inputs is not None or bool(self._steps) or len(takes) == 1
        if settled or isinstance(origin, TransformersLayer):
            return ()
        names = tuple(source.name for source in takes)
        # Only code of the user's own can be expected to know the names of the columns.
        if not isinstance(origin, ImportLayer):
            known = ", ".join(repr(name) for name in names)
            raise ModelError(
                f"{label}: takes one input, and the data has {known or 'none'}",
                hint=f"choose by inputs: [{names[0]}], or make one column of several numbers "
                "by data.transforms: [{type: stack}]"
                if names
                else None,
                key=key,
            )
        return names
