"""A network declared as a list of named layers → one `nn.Module`, shapes checked as it builds."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from finetune.config.model import ImportLayer, Layer, ModelConfig, TransformersLayer
from finetune.errors import Key, ModelError, did_you_mean
from finetune.models.layers import Surroundings, build_layer, layer_label
from finetune.models.network import (
    ChildCall,
    Network as Network,
    Source,
    TensorSpec as TensorSpec,
)
from finetune.models.parts import FirstToken, MeanPooling
from finetune.models.shapes import try_out
from finetune.models.weights import load_weights
from finetune.randomness import random_state_kept, seed_all

_EXAMPLES = 2
"""Samples of the batch by which shapes are found. One alone would hide what mixes up samples."""
_TOKENIZER_EXTRAS = frozenset({"attention_mask", "token_type_ids", "special_tokens_mask"})
"""Columns that come with the tokens, and that a network may leave unread."""


def build_network(
    config: ModelConfig,
    inputs: Mapping[str, TensorSpec],
    *,
    classes: int | None,
    seed: int,
    trust: Collection[str],
) -> Network:
    """Build the network that `config` declares, in training mode, on the CPU.

    Each layer runs once on an example batch as soon as it is built, so that the next one can read
    its input sizes and a misfit is told at the layer where it arises. Initial weights depend on
    `seed` alone; the caller's random state is left as it was.

    Args:
        config: The layers.
        inputs: Input columns of the data, in the order of positional arguments of `forward`.
        classes: What the value `classes` stands for; None if the data has none.
        seed: Where the initial weights begin.
        trust: Packages whose code may be imported.

    Raises:
        ModelError: a layer cannot be built, or does not fit what comes into it.
        TrustError: a layer asks for code that is not trusted.
    """
    with random_state_kept():
        seed_all(seed)
        assembly = _Assembly(inputs, Surroundings(classes, trust))
        for position, node in enumerate(config.layers):
            assembly.add(node, node.name or str(position), ("model", "layers", position))
        network = assembly.finished()
    if config.weights is not None:
        report = load_weights(network, config.weights, key=("model", "weights"))
        network.weights_reports += (report,)
    return network.train()


class _Assembly:
    """A network under construction: its layers so far and what each gives for the example."""

    def __init__(self, inputs: Mapping[str, TensorSpec], around: Surroundings) -> None:
        self.around = around
        self.columns = tuple(Source("column", name) for name in inputs)
        self.values: dict[Source, Any] = {
            Source("column", name): spec.example(_EXAMPLES) for name, spec in inputs.items()
        }
        self.layers: dict[str, nn.Module] = {}
        self.steps: list[ChildCall] = []
        self.given_by: dict[str, Source] = {}
        self.last_is_foreign = False

    def add(self, node: Layer, name: str, key: Key) -> None:
        """Build the next layer and run it on the example."""
        self._refuse_taken(name, key)
        takes, label = self._sources(node, key), layer_label(name, node)
        keywords = self._keywords(node, takes, label, key)
        incoming = [self.values[source] for source in takes]
        module = build_layer(node, name, incoming, self.around, key=key)
        self.last_is_foreign = isinstance(node, ImportLayer)
        if isinstance(node, TransformersLayer):
            self._add_transformers(node, module, name, takes, label, key)
        else:
            self._append(ChildCall(name, takes, keywords), module, label, key)
        self.given_by[name] = Source("layer", self.steps[-1].child)

    def finished(self) -> Network:
        """Return the network.

        Raises:
            ModelError: an input column goes into no layer.
        """
        used = {source for step in self.steps for source in step.takes}
        for column in self.columns:
            if column not in used and column.name not in _TOKENIZER_EXTRAS:
                raise ModelError(
                    f"input column {column.name!r} goes into no layer",
                    hint="name it in the inputs of a layer, or leave it out of data.inputs",
                    key=("model", "layers"),
                )
        if self.last_is_foreign:
            self.steps[-1] = replace(self.steps[-1], unpack=False)
        names = [column.name for column in self.columns]
        return Network(names, self.layers, self.steps, self.around.reports)

    def _append(self, step: ChildCall, module: nn.Module, label: str, key: Key) -> None:
        arguments, keywords = step.arguments(self.values)
        foreign = self.last_is_foreign
        output = try_out(module, arguments, keywords, label=label, key=key, foreign=foreign)
        if step.part is not None and getattr(output, step.part, None) is None:
            raise ModelError(f"{label}: its output has no {step.part!r}", key=(*key, "output"))
        self.layers[step.child] = module
        self.steps.append(step)
        self.values[Source("layer", step.child)] = step.part_of(output)

    def _refuse_taken(self, name: str, key: Key) -> None:
        if name in self.layers or hasattr(Network((), {}, ()), name):
            raise ModelError(f"layer name {name!r} is taken", key=(*key, "name"))

    def _add_transformers(
        self,
        node: TransformersLayer,
        model: nn.Module,
        name: str,
        takes: tuple[Source, ...],
        label: str,
        key: Key,
    ) -> None:
        """Add the bare network, and behind it the pooling as a child of its own."""
        named = _named_inputs(node, model, takes, label, key)
        part = "logits" if node.output == "logits" else "last_hidden_state"
        step = ChildCall(name, tuple(named.values()), tuple(named), part)
        self._append(step, model, label, key)
        if node.output not in ("mean", "cls"):
            return
        self._refuse_taken(f"{name}_{node.output}", key)
        pooling, child = (
            (MeanPooling(), f"{name}_mean")
            if node.output == "mean"
            else (FirstToken(), f"{name}_cls")
        )
        mask = named.get("attention_mask") if node.output == "mean" else None
        pooled = (Source("layer", name),) if mask is None else (Source("layer", name), mask)
        self._append(ChildCall(child, pooled), pooling, label, key)

    def _sources(self, node: Layer, key: Key) -> tuple[Source, ...]:
        """Return what a layer takes: what it names, else the layer before, else every column."""
        if node.inputs is not None:
            return tuple(
                self._source(name, (*key, "inputs", position))
                for position, name in enumerate(node.inputs)
            )
        return (Source("layer", self.steps[-1].child),) if self.steps else self.columns

    def _source(self, name: str, key: Key) -> Source:
        column = Source("column", name)
        if name in self.given_by:
            return self.given_by[name]
        if column in self.values:
            return column
        known = [*self.given_by, *(column.name for column in self.columns)]
        raise ModelError(
            f"no earlier layer and no input column {name!r}; "
            f"known: {', '.join(repr(word) for word in known)}",
            hint=did_you_mean(name, known),
            key=key,
        )

    def _keywords(
        self, node: Layer, takes: tuple[Source, ...], label: str, key: Key
    ) -> tuple[str, ...]:
        """Return the argument names of a layer that takes all columns, if there are several."""
        settled = node.inputs is not None or bool(self.steps) or len(takes) == 1
        if settled or isinstance(node, TransformersLayer):
            return ()
        names = tuple(source.name for source in takes)
        if not isinstance(node, ImportLayer):
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


def _named_inputs(
    node: TransformersLayer, model: nn.Module, takes: tuple[Source, ...], label: str, key: Key
) -> dict[str, Source]:
    """Return what a network of `transformers` takes, by the names of its own arguments.

    A single column or layer that has another name is its main input (`input_ids`, `pixel_values`).
    """
    accepted = inspect.signature(model.forward).parameters
    named = {
        source.name: source
        for source in takes
        if source.kind == "column" and source.name in accepted
    }
    if not named and len(takes) == 1:
        return {str(model.main_input_name): takes[0]}
    strange = [source.name for source in takes if source not in named.values()]
    if strange and (node.inputs is not None or not named):
        raise ModelError(
            f"{label}: has no input {strange[0]!r}",
            hint=f"its main input is {model.main_input_name!r}",
            key=(*key, "inputs"),
        )
    return named
