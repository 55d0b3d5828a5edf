"""Build one layer of the config as an `nn.Module`, with sizes taken from its input."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from torch import nn

from finetune.config.layer_keys import WeightedLayer
from finetune.config.model import (
    AddLayer,
    AffineLayer,
    ConcatLayer,
    ImportLayer,
    Layer,
    SequentialLayer,
    SharedLayer,
    StackLayer,
    TimmLayer,
    TorchLayer,
    TorchvisionLayer,
    TransformersLayer,
)
from finetune.errors import Key, ModelError
from finetune.importing import import_trusted, package_path
from finetune.models.architectures import is_detector, part_of_torchvision
from finetune.models.heads import HeadWanted
from finetune.models.huggingface import build_transformers
from finetune.models.parts import (
    Add,
    Affine,
    Chain,
    Concat,
    SideBySide,
    check_affine,
    check_merge,
    first_of,
)
from finetune.models.pretrained import build_timm, build_torchvision
from finetune.models.shapes import (
    check_call,
    check_form,
    check_tensors,
    constructor_parameters,
    first_line,
    infer_sizes,
    is_too_large,
    try_out,
)
from finetune.models.weights import load_weights
from finetune.models.weights_report import WeightsReport

_CONSTRUCTOR_FAULTS = (
    TypeError, ValueError, RuntimeError, AssertionError, MemoryError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is needed to build a layer, besides its node in the config."""

    classes: int | None
    """Number that the text `classes` stands for; None if the data has none."""
    trust: Collection[str]
    """Packages whose code may be imported."""
    head: HeadWanted = field(default_factory=HeadWanted)
    """Head of a whole network whose output is `logits`."""
    reports: list[WeightsReport] = field(default_factory=list)
    """Gets a report for each layer that loads weights."""
    categories: int | None = None
    """Number that the text `categories` stands for; None if the layer takes no such column."""

    def note(self, report: WeightsReport | None, name: str) -> None:
        """Add the report on layer `name`, if there is one."""
        self.reports.extend([] if report is None else [replace(report, module=name)])


def layer_label(name: str, node: Layer) -> str:
    """Return a layer's name in messages: `layer 'head' (Linear)`."""
    return f"layer {name!r} ({node.type})"


def build_layer(
    node: Layer, name: str, incoming: Sequence[object], around: Surroundings, *, key: Key
) -> nn.Module:
    """Return the module of one layer, with the layer's own weights loaded into it.

    Args:
        node: The layer.
        name: Its full name, for messages.
        incoming: Its input for an example batch: tensors, or anything if user code made it.
        around: Values that the node refers to; receives reports.
        key: Its position in the config.

    Raises:
        ModelError: it cannot be built, or cannot take its input.
    """
    label = layer_label(name, node)
    module = _build(node, name, label, incoming, around, key)
    if isinstance(node, WeightedLayer) and node.weights is not None:
        around.note(load_weights(module, node.weights, key=(*key, "weights")), name)
    return module


def _build(
    node: Layer,
    name: str,
    label: str,
    incoming: Sequence[object],
    around: Surroundings,
    key: Key,
) -> nn.Module:
    """Return the module of one layer; only whole networks have pretrained weights already."""
    match node:
        case TransformersLayer() | TimmLayer() | TorchvisionLayer():
            module, report = _build_whole(node, incoming, around, label, key)
            around.note(report, name)
            return module
        case ImportLayer():
            return _build_import(node, label, around, key)
        case SequentialLayer():
            return _build_chain(node, name, incoming, around, key)
        case AddLayer() | ConcatLayer() | StackLayer():
            merge = _merge(node)
            tensors = check_tensors(incoming, label=label, key=key)
            check_merge(merge, tensors, label=label, key=key)
            return merge
        case AffineLayer():
            tensors = check_tensors(incoming, label=label, key=key)
            check_affine((node.scale, node.shift), tensors, label=label, key=key)
            return Affine(node.scale, node.shift)
        case TorchLayer():
            return _build_torch(node, label, incoming, around, key)
        case SharedLayer():
            raise AssertionError("a shared layer is one that is there already")
        case _:
            assert_never(node)


def _merge(node: AddLayer | ConcatLayer | StackLayer) -> Add | Concat | SideBySide:
    """Return the module that makes one tensor of several."""
    match node:
        case AddLayer():
            return Add()
        case ConcatLayer():
            return Concat(node.dim)
        case StackLayer():
            return SideBySide()
        case _:
            assert_never(node)


def _build_whole(
    node: TransformersLayer | TimmLayer | TorchvisionLayer,
    incoming: Sequence[object],
    around: Surroundings,
    label: str,
    key: Key,
) -> tuple[nn.Module, WeightsReport | None]:
    """Return a whole network of a library, and a report if weights were loaded into it."""
    _refuse_no_width(node, around.head, label, key)
    match node:
        case TransformersLayer():
            return build_transformers(node, around.head, incoming, label=label, key=key)
        case TimmLayer():
            return build_timm(node, around.head.width, label=label, key=key)
        case TorchvisionLayer():
            return build_torchvision(node, around.head.width, label=label, key=key)
        case _:
            assert_never(node)


def _build_torch(
    node: TorchLayer, label: str, incoming: Sequence[object], around: Surroundings, key: Key
) -> nn.Module:
    """Return a module of `torch.nn`, with the input sizes that its arguments leave out."""
    cls: type[nn.Module] = getattr(nn, node.type)
    arguments = {
        name: _filled_in(value, around, label, (*key, name))
        for name, value in node.arguments.items()
    }
    tensors = check_tensors(incoming, label=label, key=key)
    check_form(node.type, tensors, label=label, key=key)
    _check_samples_first(cls, arguments, label, key)
    arguments |= infer_sizes(cls, arguments, tensors, label=label, key=key)
    # Only the attempt tells whether memory suffices.
    try:
        return cls(**arguments)
    except _CONSTRUCTOR_FAULTS as error:
        if is_too_large(error):
            raise ModelError(
                f"{label}: needs more memory than there is, with {_sizes(arguments)}",
                key=(*key, _largest(arguments)),
            ) from error
        raise ModelError(f"{label}: {first_line(error)}", key=key) from error


def _largest(arguments: Mapping[str, Any]) -> str:
    """Return the name of the argument with the largest number; `type` if there is no number."""
    sizes = {name: value for name, value in arguments.items() if type(value) is int}
    return max(sizes, key=lambda name: sizes[name], default="type")


def _sizes(arguments: Mapping[str, Any]) -> str:
    """Return arguments as text for a message."""
    return ", ".join(f"{name}: {value}" for name, value in arguments.items())


def _check_samples_first(
    cls: type[nn.Module], arguments: dict[str, Any], label: str, key: Key
) -> None:
    """Raise if torch's default would take the second axis for the samples.

    A batch has its samples on the first axis. With `batch_first` left at False, the layer would
    take them for steps of one sequence, and samples would influence each other without an error.
    """
    default = constructor_parameters(cls).get("batch_first")
    if default is not None and "batch_first" not in arguments:
        raise ModelError(
            f"{label}: would take the samples for the steps of one sequence",
            hint="add batch_first: true (torch's own default is false)",
            key=key,
        )


def _build_import(node: ImportLayer, label: str, around: Surroundings, key: Key) -> nn.Module:
    """Return the module that the user's function makes; what it prints goes to standard error."""
    arguments = {
        name: _filled_in(value, around, label, (*key, "args", name), paths=True)
        for name, value in node.args.items()
    }
    # Standard output is for results: a program may be reading JSON from it.
    with redirect_stdout(sys.stderr):
        function = import_trusted(node.path, around.trust, key=key)
        # Checked before the call: a class of another kind may do anything when it is made.
        if isinstance(function, type) and not issubclass(function, nn.Module):
            raise ModelError(
                f"{label}: {node.path!r} is a class, but no nn.Module", key=(*key, "path")
            )
        check_call(function, (), arguments, label=label, key=(*key, "args"))
        module = function(**arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{label}: {node.path!r} gives a {type(module).__name__}, needs an nn.Module",
            key=(*key, "path"),
        )
    return module


def _build_chain(
    node: SequentialLayer, name: str, incoming: Sequence[object], around: Surroundings, key: Key
) -> nn.Module:
    """Return layers in sequence, each built for the output of the one before."""
    chain = Chain()
    for position, inner in enumerate(node.layers):
        inner_name = inner.name or str(position)
        full_name, inner_key = f"{name}.{inner_name}", (*key, "layers", position)
        if hasattr(chain, inner_name):
            raise ModelError(f"layer name {inner_name!r} is taken", key=(*inner_key, "name"))
        if isinstance(inner, TorchvisionLayer) and _has_own_output(inner):
            kind = "detector" if is_detector(inner) else "segmentation network"
            raise ModelError(
                f"{layer_label(full_name, inner)}: no {kind} inside sequential",
                hint="put it among the model's own layers",
                key=(*inner_key, "type"),
            )
        module = build_layer(inner, full_name, incoming, around, key=inner_key)
        chain.add_module(inner_name, module)
        label, foreign = layer_label(full_name, inner), isinstance(inner, ImportLayer)
        output = try_out(module, incoming, label=label, key=inner_key, foreign=foreign)
        incoming = (first_of(output),)
    return chain


def _has_own_output(node: TorchvisionLayer) -> bool:
    """Tell whether a network gives something else than a plain tensor for each sample."""
    return is_detector(node) or part_of_torchvision(node) is not None


def _refuse_no_width(
    node: TransformersLayer | TimmLayer | TorchvisionLayer, head: HeadWanted, label: str, key: Key
) -> None:
    """Raise if the output is `logits` and nothing tells how many there are."""
    other = "mean" if isinstance(node, TransformersLayer) else "features"
    if node.output in ("logits", "boxes") and head.width is None and head.kind != "span":
        raise ModelError(
            f"{label}: output {node.output!r} needs a number of classes, and the data has none",
            hint=f"output: {other} and a Linear layer behind it",
            key=(*key, "output"),
        )


def _filled_in(
    value: Any, around: Surroundings, label: str, key: Key, *, paths: bool = False
) -> Any:
    """Return an argument for the constructor: `classes` as a number, a list as a tuple."""
    match value:
        case "classes" if around.classes is None:
            raise ModelError(
                f"{label}: asks for the number of classes, and the data has none",
                hint="give the number itself",
                key=key,
            )
        case "classes":
            return around.classes
        case "categories" if not paths and around.categories is None:
            raise ModelError(
                f"{label}: asks for the number of categories, and takes no column that has one",
                hint="name one by its inputs: [...], and make it by data.transforms: "
                "[{type: categories, columns: [...], as: index}]",
                key=key,
            )
        case "categories" if not paths:
            return around.categories
        case str() if paths and value.startswith("package:"):
            return str(package_path(value, key=key))
        # torch wants tuples for sizes such as `kernel_size`, and YAML has only lists.
        case list() | tuple():
            return tuple(_filled_in(item, around, label, key, paths=paths) for item in value)
        case dict():
            return {k: _filled_in(v, around, label, key, paths=paths) for k, v in value.items()}
        case _:
            return value
