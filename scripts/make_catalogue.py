"""Write `finetune/config/catalogue.json`: what torch, torchvision and torchmetrics offer by name.

The config is checked without importing torch, so the names and arguments of its classes are kept
in a file. Run this after a change of torch's version; a test compares the file with what it makes.
"""

import importlib.metadata
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from numbers import Number
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import nn, optim
from torchmetrics import classification, regression
from torchvision.transforms import v2

TARGET = Path(__file__).parents[1] / "finetune" / "config" / "catalogue.json"

# Classes that are built of modules or hold them, need more than tensors to be called, or are made
# of another one by a wrapper (SyncBatchNorm).
_NO_LAYERS = {
    *("Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList"),
    *("ParameterDict", "DataParallel", "TransformerEncoder", "TransformerDecoder"),
    *("RNNBase", "RNNCellBase", "SyncBatchNorm", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"),
}
_LOSS_OR_LAZY = re.compile(r"^Lazy|Loss(2d|WithLoss)?$|WithLoss$")

# SparseAdam wants sparse gradients, LBFGS a closure that it may call several times a step.
_NO_OPTIMIZERS = {"Optimizer", "SparseAdam", "LBFGS"}

# Classes that take functions, other transforms, labels, boxes or matrices, that give anything but
# one image tensor, or that torchvision is about to remove (JPEG).
_NO_TRANSFORMS = {
    *("Transform", "Compose", "Lambda", "RandomApply", "RandomChoice", "RandomOrder"),
    *("CutMix", "MixUp", "ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat"),
    *("SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode", "RandomIoUCrop"),
    *("LinearTransformation", "FiveCrop", "TenCrop", "ToPILImage", "ToTensor"),
    *("UniformTemporalSubsample", "JPEG"),
}

# What finetune sets itself (device, number format, rate), what only a loop other than its own can
# use (capturable, differentiable), and what makes outputs or gradients that nothing here can take.
_NO_ARGUMENTS = {
    *("device", "dtype", "params", "lr", "capturable", "differentiable", "sparse"),
    *("return_indices", "custom_encoder", "custom_decoder"),
}

# Metrics that do not return one number, that take more than outputs and targets, or vectors. The
# ranking loss of torchmetrics 1.9 counts a batch without a pair to rank as one sample, so that it
# depends on how samples are batched.
_NO_METRICS = re.compile(
    r"(ConfusionMatrix|(?<!AU)ROC|PrecisionRecallCurve|StatScores|Fairness|GroupStatRates)$|AtFixed"
    r"|At(Specificity|Sensitivity)$|^MulticlassExactMatch$|^MultilabelEER$|RankingLoss$|^ContinuousRanked|^CosineSimilarity$"
    r"|^JensenShannon|^KLDivergence$"
)

# What the task knows (how many classes, its threshold), what would give several numbers, and what
# is for targets or probabilities of other forms.
_TASKS_OWN = {
    *("num_classes", "num_labels", "num_outputs", "multidim_average", "ignore_index"),
    *("validate_args", "keep_sequence_dim", "t_test", "alternative"),
}

_DRAWS = {
    *("rand", "randint", "randperm", "multinomial", "uniform_", "normal_", "gaussian_noise"),
    "uniform_sample",
}
# The argument that is drawn from a range, where a single number leaves nothing to chance.
_RANGES = {"GaussianBlur": "sigma"}

# What the signature of MultiheadAttention leaves unsaid.
_UNANNOTATED = {"embed_dim": int, "num_heads": int, "kdim": int, "vdim": int}

# What the annotation leaves out, and the code takes: see the class's own documentation.
_MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("RandomErasing", "value"): {"kinds": ["float", "list", "str"], "choices": ["random"]},
}

_DTYPES = ("bfloat16", "float16", "float32", "float64", "int16", "int32", "int64", "uint8")
_KINDS: dict[Any, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    Number: "float",
    str: "str",
    type(None): "null",
    v2.InterpolationMode: "str",
    torch.Size: "list",
}


def make_catalogue() -> dict[str, Any]:
    """Return the whole catalogue as plain data."""
    return {
        "versions": {name: _version(name) for name in ("torch", "torchmetrics", "torchvision")},
        "layers": {
            name: {"arguments": _arguments(name, cls)}
            for name, cls in _classes(nn, nn.Module, _NO_LAYERS)
            if not _LOSS_OR_LAZY.search(name)
        },
        "metrics_of_classes": {
            **_metrics(classification, "Binary", keeps_prefix=True),
            **_metrics(classification, "Multiclass"),
        },
        "metrics_of_labels": _metrics(classification, "Multilabel"),
        "metrics_of_numbers": _metrics(regression, ""),
        "optimizers": {
            name: {"arguments": _arguments(name, cls)}
            for name, cls in _classes(optim, optim.Optimizer, _NO_OPTIMIZERS)
        },
        "transforms": {
            name: {"arguments": _arguments(name, cls, skip=set()), **_randomness(name, cls)}
            for name, cls in _classes(v2, v2.Transform, _NO_TRANSFORMS)
        },
    }


def write(value: Any, indent: str = "") -> str:
    """Return plain data as JSON, a mapping that holds no other mapping on one line."""
    if not isinstance(value, Mapping) or not any(isinstance(v, Mapping) for v in value.values()):
        return json.dumps(value, sort_keys=True)
    inner = f"{indent} "
    entries = [f"{inner}{json.dumps(key)}: {write(value[key], inner)}" for key in sorted(value)]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]


def _classes(module: types.ModuleType, base: type, refused: set[str]) -> Iterator[tuple[str, type]]:
    """Yield the public classes of `module` below `base`, by name."""
    for name, value in sorted(vars(module).items()):
        is_class = inspect.isclass(value) and issubclass(value, base)
        if is_class and not name.startswith("_") and name not in refused:
            yield name, value


def _metrics(
    module: types.ModuleType, prefix: str, *, keeps_prefix: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the metrics of `module` whose names begin with `prefix`, which is left out of them."""
    # Of classes and labels the task has the threshold, and feeds probabilities.
    skip = _TASKS_OWN | ({"threshold", "normalization"} if prefix else set())
    return {
        name if keeps_prefix else name.removeprefix(prefix): {
            "arguments": _arguments(name, cls, skip)
        }
        for name, cls in _classes(module, torchmetrics.Metric, set())
        if name.startswith(prefix) and not _NO_METRICS.search(name)
    }


def _arguments(name: str, cls: type, skip: set[str] = _NO_ARGUMENTS) -> dict[str, Any]:
    arguments = {}
    for parameter in _parameters(name, cls):
        is_plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_plain and parameter.name not in skip and not parameter.name.startswith("_"):
            more = _MORE.get((name, parameter.name), {})
            arguments[parameter.name] = _argument(parameter) | more
    return arguments


def _parameters(name: str, cls: type) -> Sequence[inspect.Parameter]:
    """Return the parameters of the constructor; those of RNN, GRU and LSTM stand in their base."""
    if not issubclass(cls, nn.RNNBase):
        return list(inspect.signature(cls, eval_str=True).parameters.values())
    found = dict(inspect.signature(nn.RNNBase, eval_str=True).parameters)
    del found["mode"]
    if name != "LSTM":
        del found["proj_size"]
    if name == "RNN":
        nonlinearity = inspect.signature(nn.RNNCell, eval_str=True).parameters["nonlinearity"]
        found["nonlinearity"] = nonlinearity
    return list(found.values())


def _argument(parameter: inspect.Parameter) -> dict[str, Any]:
    """Return what YAML may give the argument, and whether it must."""
    is_required = parameter.default is parameter.empty
    annotation = parameter.annotation
    if annotation is parameter.empty:
        annotation = _UNANNOTATED.get(parameter.name, type(parameter.default))
    kinds, choices = _kinds(annotation)
    if parameter.default is None:
        kinds.add("null")
    argument: dict[str, Any] = {"kinds": sorted(kinds)}
    if choices:
        argument["choices"] = choices
    return argument | ({"required": True} if is_required else {})


def _kinds(annotation: Any) -> tuple[set[str], list[str]]:
    """Return the kinds of YAML value that fit a type, and the words that a text is confined to."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(annotation)]
        kinds = {kind for some, _ in parts for kind in some}
        return kinds, [word for _, words in parts for word in words]
    if origin is typing.Literal:
        return {"str"}, list(typing.get_args(annotation))
    if annotation is torch.dtype:
        return {"str"}, list(_DTYPES)
    if inspect.isclass(annotation) and issubclass(annotation, Enum) and annotation not in _KINDS:
        return {"str"}, [member.value for member in annotation]
    if annotation in _KINDS:
        return {_KINDS[annotation]}, []
    made = origin or annotation
    is_list = inspect.isclass(made) and issubclass(made, Sequence)
    return ({"list"} if is_list else set()), []


def _randomness(name: str, cls: type) -> dict[str, Any]:
    """Tell whether two calls may differ, from what the methods of the class call."""
    own = cls.__mro__[: cls.__mro__.index(v2.Transform)]
    methods = [value for part in own for value in vars(part).values()]
    is_random = any(_DRAWS & _called(method) for method in methods)
    return {"random": is_random} | ({"drawn": _RANGES[name]} if name in _RANGES else {})


def _called(method: Any) -> set[str]:
    function: Callable[..., Any] | None = getattr(method, "__func__", method)
    code = getattr(function, "__code__", None)
    return set() if code is None else set(code.co_names)


if __name__ == "__main__":
    TARGET.write_text(write(make_catalogue()) + "\n", encoding="utf-8")
