"""Python code that builds a run's layers anew by the libraries that they come from."""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from finetune.config.dumping import as_plain
from finetune.config.model import (
    ImportLayer,
    Layer,
    SequentialLayer,
    TimmLayer,
    TorchLayer,
    TorchvisionLayer,
    TransformersLayer,
)
from finetune.config.secrets import MASK
from finetune.export.layer_names import layers_with_tensors
from finetune.export.source import ExportSource
from finetune.models.architectures import part_of_torchvision


def code_of_layers(
    source: ExportSource, folder: Path, *, with_base: bool = False
) -> list[str] | None:
    """Return lines that put a network of the same layers into `network`.

    Its tensors have the exported names. None if a layer cannot be built by one call.

    Args:
        source: The network.
        folder: Gets the configs of networks of transformers that the lines read.
        with_base: Whether it has the weights that the run began with; else it is untrained.
    """
    config = source.run.config.model
    nodes = {node.name or str(place): node for place, node in enumerate(config.layers)}
    # As written, with secrets masked: the lines go into files that are handed on.
    plain = as_plain(source.run.config)["model"]["layers"]
    said = dict(zip(nodes, plain, strict=True))
    layers = layers_with_tensors(source.network)
    calls = dict[str, str]()
    for name, module in layers.items():
        if with_base:
            call = _with_base(nodes[name], module, said[name], source)
        else:
            call = _call(nodes[name], module, folder / name, said[name], source)
        if call is None:
            return None
        calls[name] = call
    whole = next(iter(calls.values()), "torch.nn.Identity()")
    if len(calls) > 1:
        entries = "".join(f"    {name!r}: {call},\n" for name, call in calls.items())
        whole = f"torch.nn.ModuleDict({{\n{entries}}})"
    return [*_imports(whole, nodes, layers), "", *f"network = {whole}".splitlines()]


def _imports(code: str, nodes: Mapping[str, Layer], layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the lines that import what code uses."""
    lines = [
        f"import {name}"
        for name in ("timm", "torch", "torchvision", "transformers")
        if f"{name}." in code
    ]
    if "resources." in code:
        lines.append("from importlib import resources")
    paths = [node.path for name in layers if isinstance(node := nodes[name], ImportLayer)]
    parts = (path.partition(":") for path in paths)
    return lines + [f"from {home} import {name.partition('.')[0]}" for home, _, name in parts]


def _call(
    node: Layer, module: nn.Module, place: Path, said: Mapping[str, Any], source: ExportSource
) -> str | None:
    """Return the call that makes a layer; None if there is no such call."""
    match node:
        case TransformersLayer():
            return _of_transformers(module, place)
        case TimmLayer():
            return _of_timm(node, module)
        case TorchvisionLayer():
            return _of_torchvision(node, source)
        case ImportLayer():
            return _of_import(node, said, source)
        case SequentialLayer():
            return _of_sequence(node, module, place, source)
        case TorchLayer():
            return _of_torch(module)
        case _:
            return None


def _of_torchvision(node: TorchvisionLayer, source: ExportSource) -> str | None:
    """Return the call for a network of torchvision; None if it is changed after it is made."""
    if node.output != "logits" or node.args or part_of_torchvision(node) is not None:
        return None
    classes = source.run.facts.classes or ()
    return f"torchvision.models.get_model({node.architecture!r}, num_classes={len(classes)})"


def _of_sequence(
    node: SequentialLayer, module: nn.Module, place: Path, source: ExportSource
) -> str | None:
    """Return the call for layers in sequence; None if one of them has no call, or has a name."""
    # torch's `Sequential` numbers its layers, so tensors of a named one would be named otherwise.
    if any(isinstance(one, ImportLayer) or one.name is not None for one in node.layers):
        return None
    children = zip(node.layers, module.named_children(), strict=True)
    calls = [_call(one, child, place / name, {}, source) for one, (name, child) in children]
    inner = [call for call in calls if call is not None]
    return f"torch.nn.Sequential({', '.join(inner)})" if len(inner) == len(calls) else None


def _with_base(
    node: Layer, module: nn.Module, said: Mapping[str, Any], source: ExportSource
) -> str | None:
    """Return the call that makes a layer with the weights it began with; None if there is none."""
    if source.run.config.model.weights is not None or getattr(node, "weights", None) is not None:
        return None
    match node:
        case TransformersLayer() if node.pretrained and not node.rename and node.strict:
            kind = type(module)
            # A folder of this machine is none where the lines will run.
            place = _place(node.path)
            if place is None or not kind.__module__.startswith("transformers."):
                return None
            more = _pooler(kind)
            if node.output == "logits":
                config: Any = module.config
                more += f", num_labels={config.num_labels}"
            return f"transformers.{kind.__name__}.from_pretrained({place}{more})"
        case TimmLayer() if node.pretrained:
            call = _of_timm(node, module)
            return None if call is None else f"{call[:-1]}, pretrained=True)"
        case TorchLayer():
            return _of_torch(module)
        case _:
            return None


def _place(path: str) -> str | None:
    """Return code for the place of weights; None for a folder of this machine."""
    if path.startswith("package:"):
        package, _, inner = path.removeprefix("package:").partition("/")
        return f"resources.files({package!r}) / {inner!r}"
    # What is there as a folder was read from it; any other name is one of the hub.
    return None if Path(path).expanduser().exists() else repr(path)


def _pooler(kind: type) -> str:
    """Return the argument that leaves the pooler out, as the run did, if a class has it."""
    has_one = "add_pooling_layer" in inspect.signature(kind).parameters
    return ", add_pooling_layer=False" if has_one else ""


def _of_torch(module: nn.Module) -> str | None:
    """Return the call for a plain module of torch, which is what it prints itself as."""
    text = repr(module)
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return None
    # A module that has others inside prints them in words of its own.
    return None if any(True for _ in module.children()) else f"torch.nn.{text}"


def _of_transformers(module: nn.Module, place: Path) -> str | None:
    """Return the call for a network of transformers, whose config is written beside."""
    kind = type(module)
    if not kind.__module__.startswith("transformers."):
        return None
    config: Any = module.config
    config.save_pretrained(place)
    more = _pooler(kind)
    read = f"transformers.AutoConfig.from_pretrained({place.name!r})"
    return f"transformers.{kind.__name__}({read}{more})"


def _of_timm(node: TimmLayer, module: Any) -> str | None:
    """Return the call for a network of timm."""
    arguments = dict(node.args)
    if node.output == "maps":
        arguments |= {"features_only": True}
        arguments |= {} if node.out_indices is None else {"out_indices": node.out_indices}
    else:
        arguments["num_classes"] = int(module.num_classes)
    return f"timm.create_model({node.architecture!r}{_written(arguments)})"


def _of_import(node: ImportLayer, said: Mapping[str, Any], source: ExportSource) -> str | None:
    """Return the call of the user's own function; None if an argument is a secret or a path."""
    classes = source.run.facts.classes
    arguments = {
        name: len(classes) if value == "classes" and classes is not None else value
        for name, value in said.get("args", {}).items()
    }
    written = _written(arguments).removeprefix(", ")
    # A masked secret, or what finetune alone resolves: the call would be another one.
    if MASK in written or "package:" in written or "${" in written:
        return None
    return f"{node.path.partition(':')[2]}({written})"


def _written(arguments: Mapping[str, Any]) -> str:
    """Return keyword arguments as code, with a comma in front."""
    return "".join(f", {name}={value!r}" for name, value in arguments.items())
