"""The calls that a layer needs: its own, and those of small helpers around it.

A helper is a child of its own without parameters, so that the frozen prefix can end behind it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, assert_never

from torch import Tensor, nn

from finetune.config.model import TorchLayer, TransformersLayer
from finetune.errors import Key, ModelError
from finetune.models.heads import HeadWanted, token_of_padding
from finetune.models.network import ChildCall, Source
from finetune.models.parts import (
    FilledPadding,
    FirstToken,
    LastToken,
    MeanPooling,
    PaddingMask,
    ResizedLogits,
    SpanLogits,
)

_POOLINGS = {"mean": MeanPooling, "cls": FirstToken, "last": LastToken}
_READ_MASK = ("mean", "last")
"""Poolings that leave padding out."""
_HELPERS = (*_POOLINGS, "padded", "padding", "span", "resized")
"""Ends of the names of helpers, which begin with the name of their layer."""
TOKENIZER_EXTRAS = frozenset({"attention_mask", "token_type_ids", "special_tokens_mask"})
"""Columns that a tokenizer produces and that a network need not use."""


_WITH_PADDING = {
    "TransformerEncoderLayer": ("src", "src_key_padding_mask"),
    "MultiheadAttention": ("query", "key", "value", "key_padding_mask"),
}
"""Arguments of attention layers of torch, the last of them for padding."""


class PlannedCall(NamedTuple):
    """A call, and the module that it calls."""

    step: ChildCall
    module: nn.Module


def is_helper_of(layer: str, child: str) -> bool:
    """Tell whether a child of the network is a helper of a layer."""
    return child in [f"{layer}_{end}" for end in _HELPERS]


def calls_of_transformers(
    node: TransformersLayer,
    model: nn.Module,
    call: ChildCall,
    head: HeadWanted,
    key: Key,
    *,
    are_named: bool,
) -> list[PlannedCall]:
    """Return the calls of a network of `transformers`, in order; the last gives its output.

    Args:
        node: The layer.
        model: Its network.
        call: The call of the network with all that the layer takes; only its names are used.
        head: The head that the output `logits` has.
        key: Position of the layer in the config.
        are_named: Whether the config names what the layer takes.

    Raises:
        ModelError: the network has no input of a name that the layer takes.
    """
    named = _named_inputs(node, model, call, key, are_named=are_named)
    if node.output == "logits":
        return _calls_with_head(model, call, named, head)
    main = _main(call, named, "last_hidden_state")
    return [PlannedCall(main, model), *_pooled(node, main, named)]


def _calls_with_head(
    model: nn.Module, call: ChildCall, named: dict[str, Source], head: HeadWanted
) -> list[PlannedCall]:
    """Return the calls of a network with a head, and those that bring its logits into one form."""
    match head.kind:
        case "sample":
            before = _padding_filled(model, call, named)
            if before:
                named["input_ids"] = before[0].step.source
            return [*before, PlannedCall(_main(call, named, "logits"), model)]
        case "token":
            return [PlannedCall(_main(call, named, "logits"), model)]
        case "span":
            ends = ("start_logits", "end_logits")
            main = replace(_main(call, named, ends[0]), picks=ends)
            after = _helper(call, "span", SpanLogits(), main.sources[1:])
            return [PlannedCall(main, model), after]
        case "pixel":
            main = _main(call, named, "logits")
            takes = (main.source, named[str(model.main_input_name)])
            return [PlannedCall(main, model), _helper(call, "resized", ResizedLogits(), takes)]
        case _:
            assert_never(head.kind)


def _padding_filled(
    model: nn.Module, call: ChildCall, named: dict[str, Source]
) -> list[PlannedCall]:
    """Return the call that lets a head find padding by its number; none if it looks at the mask."""
    if "input_ids" not in named or "attention_mask" not in named:
        return []
    token = token_of_padding(model)
    takes = (named["input_ids"], named["attention_mask"])
    return [] if token is None else [_helper(call, "padded", FilledPadding(token), takes)]


def calls_of_torch(
    node: TorchLayer, module: nn.Module, call: ChildCall, incoming: Sequence[object]
) -> list[PlannedCall]:
    """Return the calls of a layer of `torch.nn`, in order; the last gives its output.

    An attention layer that takes a mask of whole numbers as its last input leaves padding out.

    Args:
        node: The layer.
        module: Its module.
        call: Its call.
        incoming: What it takes, for an example batch.
    """
    arguments = _WITH_PADDING.get(node.type, ())
    last = incoming[-1] if len(incoming) == len(arguments) else None
    # A mask of a tokenizer is whole numbers (B, L); a third input of numbers is the value of the
    # attention.
    if not isinstance(last, Tensor) or last.is_floating_point() or last.ndim != 2:
        return [PlannedCall(call, module)]
    padding = _helper(call, "padding", PaddingMask(), call.takes[-1:])
    takes = (*call.takes[:-1], padding.step.source)
    return [padding, PlannedCall(replace(call, takes=takes, keywords=arguments), module)]


def _main(call: ChildCall, named: dict[str, Source], part: str) -> ChildCall:
    """Return the call of the network itself."""
    return replace(call, takes=tuple(named.values()), keywords=tuple(named), part=part)


def _helper(call: ChildCall, end: str, module: nn.Module, takes: Sequence[Source]) -> PlannedCall:
    """Return the call of a helper; a shared network shares it too."""
    name = f"{call.source.name}_{end}"
    return PlannedCall(ChildCall(f"{call.child}_{end}", tuple(takes), name=name), module)


def _pooled(
    node: TransformersLayer, main: ChildCall, named: dict[str, Source]
) -> list[PlannedCall]:
    """Return the call that pools hidden states; none if all of them are the output."""
    if node.output not in _POOLINGS:
        return []
    mask = named.get("attention_mask") if node.output in _READ_MASK else None
    takes = (main.source,) if mask is None else (main.source, mask)
    return [_helper(main, node.output, _POOLINGS[node.output](), takes)]


def _named_inputs(
    node: TransformersLayer, model: nn.Module, call: ChildCall, key: Key, *, are_named: bool
) -> dict[str, Source]:
    """Return the inputs of a network of `transformers`, by the names of its own arguments.

    A single column or layer of any other name becomes its main input (`input_ids`,
    `pixel_values`). Tokens of a text that is named by a layer have its name in front.
    """
    accepted = inspect.signature(model.forward).parameters
    named: dict[str, Source] = {}
    for source in call.takes:
        argument = source.name.rpartition(".")[2]
        if source.kind != "column" or argument not in accepted:
            continue
        # Silently the second text would replace the first: both have `input_ids`.
        if argument in named:
            raise ModelError(
                f"{_label(node, call)}: takes one text, and gets "
                f"{named[argument].name!r} and {source.name!r}",
                hint="name one text by inputs: [...], and take the other by a layer of "
                "{type: shared}",
                key=key,
            )
        named[argument] = source
    # One input cannot be meant for anything else, whatever its column is called.
    if not named and len(call.takes) == 1:
        return {str(model.main_input_name): call.takes[0]}
    # Columns that the network does not know are left out only if the config did not ask for them.
    # A text's own columns are asked for together.
    strange = [
        source.name
        for source in call.takes
        if source not in named.values() and not _is_extra(source.name)
    ]
    if strange and (are_named or not named):
        raise ModelError(
            f"{_label(node, call)}: has no input {strange[0]!r}",
            hint=f"its main input is {model.main_input_name!r}",
            key=(*key, "inputs"),
        )
    return named


def _is_extra(column: str) -> bool:
    """Tell whether a column is of a text that a layer names, and one that a network may ignore."""
    text, _, output = column.rpartition(".")
    return bool(text) and output in TOKENIZER_EXTRAS


def _label(node: TransformersLayer, call: ChildCall) -> str:
    """Return the layer's name in messages, as `layer_label` does."""
    return f"layer {call.source.name!r} ({node.type})"
