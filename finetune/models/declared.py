"""Build a network from a list of named layers, checking shapes layer by layer."""

import inspect
from collections.abc import Collection, Mapping, Sequence
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
"""Samples in the example batch: with only one, a layer that mixes up samples goes unnoticed."""
_TOKENIZER_EXTRAS = frozenset({"attention_mask", "token_type_ids", "special_tokens_mask"})
"""Columns that a tokenizer produces and that a network need not use."""


def build_network(
    config: ModelConfig,
    inputs: Mapping[str, TensorSpec],
    *,
    classes: int | None,
    categories: Mapping[str, int] | None = None,
    seed: int,
    trust: Collection[str],
) -> Network:
    """Return the network that `config` declares, in training mode, on the CPU.

    Each layer runs once on an example batch as soon as it is built, so that the next layer can
    take its input sizes from it, and a misfit is reported at the layer that causes it. Initial
    weights depend only on `seed`; the random state of the caller is unchanged.

    Args:
        config: The layers.
        inputs: Input columns of the data, in the order of positional arguments of `forward`.
        classes: Number that the text `classes` stands for; None if the data has none.
        categories: Number that the text `categories` stands for, by column of positions.
        seed: Seed of the initial weights.
        trust: Packages whose code may be imported.

    Raises:
        ModelError: a layer cannot be built, or cannot take its input.
        TrustError: a layer asks for code that is not trusted.
    """
    with random_state_kept():
        seed_all(seed)
        assembly = _Assembly(inputs, Surroundings(classes, trust), categories or {})
        for position, node in enumerate(config.layers):
            assembly.add(node, node.name or str(position), ("model", "layers", position))
        network = assembly.finished()
    # After the layers' own weights, which it may replace.
    if config.weights is not None:
        report = load_weights(network, config.weights, key=("model", "weights"))
        network.weights_reports += (report,)
    return network.train()


class _Assembly:
    """A network under construction: its layers so far, and their outputs for the example batch."""

    def __init__(
        self,
        inputs: Mapping[str, TensorSpec],
        around: Surroundings,
        categories: Mapping[str, int],
    ) -> None:
        self.around = around
        self.categories = categories
        self.columns = tuple(Source("column", name) for name in inputs)
        self.values: dict[Source, Any] = {
            Source("column", name): spec.example(_EXAMPLES) for name, spec in inputs.items()
        }
        self.layers: dict[str, nn.Module] = {}
        self.steps: list[ChildCall] = []
        self.given_by: dict[str, Source] = {}
        self.last_is_foreign = False

    def add(self, node: Layer, name: str, key: Key) -> None:
        """Build the next layer, run it on the example batch, and keep its output."""
        self._refuse_taken(name, key)
        takes, label = self._sources(node, key), layer_label(name, node)
        keywords = self._keywords(node, takes, label, key)
        incoming = [self.values[source] for source in takes]
        around = replace(self.around, categories=self._num_categories(takes))
        module = build_layer(node, name, incoming, around, key=key)
        self.last_is_foreign = isinstance(node, ImportLayer)
        if isinstance(node, TransformersLayer):
            self._add_transformers(node, module, name, takes, label, key)
        else:
            self._append(ChildCall(name, takes, keywords), module, label, key)
        # Not `name`: a transformers layer is two children, and others read from the pooling.
        self.given_by[name] = Source("layer", self.steps[-1].child)

    def finished(self) -> Network:
        """Return the network made of all layers added.

        Raises:
            ModelError: an input column is used by no layer.
        """
        used = {source for step in self.steps for source in step.takes}
        for column in self.columns:
            if column not in used and column.name not in _TOKENIZER_EXTRAS:
                raise ModelError(
                    f"input column {column.name!r} goes into no layer",
                    hint="name it in the inputs of a layer, or leave it out of data.inputs",
                    key=("model", "layers"),
                )
        # What the user's own code returns last may be a tuple that the user's own loss wants whole.
        if self.last_is_foreign:
            self.steps[-1] = replace(self.steps[-1], unpack=False)
        names = [column.name for column in self.columns]
        return Network(names, self.layers, self.steps, self.around.reports)

    def _num_categories(self, takes: Sequence[Source]) -> int | None:
        """Return the number of positions in the column that a layer takes, if it takes one."""
        names = [source.name for source in takes if source.kind == "column"]
        return self.categories.get(names[0]) if len(names) == 1 else None

    def _append(self, step: ChildCall, module: nn.Module, label: str, key: Key) -> None:
        """Run a module on the example batch; add it with its call and its output."""
        arguments, keywords = step.arguments(self.values)
        foreign = self.last_is_foreign
        output = try_out(module, arguments, keywords, label=label, key=key, foreign=foreign)
        # Some classes of transformers return no hidden states, or only if asked by their config.
        if step.part is not None and getattr(output, step.part, None) is None:
            raise ModelError(f"{label}: its output has no {step.part!r}", key=(*key, "output"))
        self.layers[step.child] = module
        self.steps.append(step)
        self.values[Source("layer", step.child)] = step.part_of(output)

    def _refuse_taken(self, name: str, key: Key) -> None:
        """Raise if a name is a layer's already, or an attribute of every `Network`."""
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
        """Add a network of transformers, and its pooling as a child of its own."""
        named = _named_inputs(node, model, takes, label, key)
        part = "logits" if node.output == "logits" else "last_hidden_state"
        step = ChildCall(name, tuple(named.values()), tuple(named), part)
        self._append(step, model, label, key)
        # A child of its own: pooling has no parameters, so the frozen prefix can end behind it.
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
        """Return the sources that a layer names, else the layer before, else all columns."""
        if node.inputs is not None:
            return tuple(
                self._source(name, (*key, "inputs", position))
                for position, name in enumerate(node.inputs)
            )
        return (Source("layer", self.steps[-1].child),) if self.steps else self.columns

    def _source(self, name: str, key: Key) -> Source:
        """Return the earlier layer or input column of that name."""
        column = Source("column", name)
        # A layer wins over a column of the same name: it is the one declared in the config.
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
        """Return the argument names of a layer that takes several columns; else nothing."""
        settled = node.inputs is not None or bool(self.steps) or len(takes) == 1
        if settled or isinstance(node, TransformersLayer):
            return ()
        names = tuple(source.name for source in takes)
        # Only code of the user's own can be expected to know the names of the columns.
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
    """Return the inputs of a network of `transformers`, by the names of its own arguments.

    A single column or layer of any other name becomes its main input (`input_ids`,
    `pixel_values`).
    """
    accepted = inspect.signature(model.forward).parameters
    named = {
        source.name: source
        for source in takes
        if source.kind == "column" and source.name in accepted
    }
    if not named and len(takes) == 1:
        return {str(model.main_input_name): takes[0]}
    # Columns that the network does not know are left out only if the config did not ask for them.
    strange = [source.name for source in takes if source not in named.values()]
    if strange and (node.inputs is not None or not named):
        raise ModelError(
            f"{label}: has no input {strange[0]!r}",
            hint=f"its main input is {model.main_input_name!r}",
            key=(*key, "inputs"),
        )
    return named
