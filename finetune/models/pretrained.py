"""Build networks of timm and torchvision as layers, and report which weights were loaded."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn

from finetune.config.model import TimmLayer, TorchvisionLayer
from finetune.errors import Key, ModelError
from finetune.importing import require
from finetune.models.architectures import (
    check_timm,
    check_torchvision,
    is_detector,
    part_of_torchvision,
    refuse_damaged_timm,
)
from finetune.models.detectors import Detector, with_heads_of
from finetune.models.loaded_values import not_finite
from finetune.models.preprocessing import (
    ImagePreprocessing as ImagePreprocessing,
    Preprocessing as Preprocessing,
    read_preprocessing as read_preprocessing,
)
from finetune.models.shapes import first_line
from finetune.models.weights import load_weights as load_weights
from finetune.models.weights_report import WeightsReport as WeightsReport, misfit

_FAULTS_OF_BUILDERS = (
    OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError,
    MemoryError, ArithmeticError, SafetensorError, UnpicklingError,
)  # fmt: skip
"""Exceptions that `timm` and `torchvision` raise for arguments that do not make a network,
and for damaged files of weights."""

_OFFLINE = "pretrained: false starts from random weights, and weights: {path: ...} takes a file"
_BY_FILE = "download the file: weights: {path: ..., rename: ..., strict: false}"
_MISSING = re.compile(r"Missing keys \((.*?)\)")
_HEADS = ("fc", "classifier", "heads", "head")
"""Attribute names of the classification head in networks of torchvision."""


def build_timm(
    node: TimmLayer, classes: int | None, *, label: str, key: Key
) -> tuple[nn.Module, WeightsReport | None]:
    """Return a network of `timm`, headless or with a head of `classes` outputs, and a report.

    The report tells what was loaded; it is None if no weights were asked for.

    Raises:
        ModelError: there is no such architecture, it does not take the arguments, or its weights
            do not fit.
    """
    timm = require("timm", extra="vision")
    name = node.architecture
    check_timm(node, label=label, key=key)
    if node.pretrained:
        refuse_damaged_timm(node, label=label, key=key, weights=True)
    with _told_missing() as missing:
        try:
            model: Any = timm.create_model(
                name, pretrained=node.pretrained, **_output_of_timm(node, classes), **node.args
            )
        except _FAULTS_OF_BUILDERS as error:
            raise _cannot_load(error, name, label, key) from error
    if not node.pretrained:
        return model, None
    # A new head is always missing among the weights, and the only thing that may be.
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    new = tuple(one for one in missing if one.startswith(tuple(f"{head}." for head in heads)))
    report = _report(model, name, missing, key)
    if len(new) < len(missing) or report.not_finite:
        raise misfit(report, {}, _BY_FILE, key=(*key, "architecture"))
    return model, report


def _output_of_timm(node: TimmLayer, classes: int | None) -> dict[str, Any]:
    """Return the arguments of `create_model` that give the network its output."""
    if node.output != "maps":
        return {"num_classes": 0 if node.output == "features" else classes}
    indices = {} if node.out_indices is None else {"out_indices": node.out_indices}
    return {"features_only": True, **indices}


def build_torchvision(
    node: TorchvisionLayer, classes: int | None, *, label: str, key: Key
) -> tuple[nn.Module, WeightsReport | None]:
    """Return a network of `torchvision`, without last linear map or with a new one, and a report.

    The report tells what was loaded; it is None if no weights were asked for.

    Raises:
        ModelError: there is no such classification network, it does not take the arguments, or its
            weights do not fit.
    """
    check_torchvision(node, label=label, key=key)
    if is_detector(node):
        return _detector(node, classes, label, key)
    arguments: dict[str, Any] = {"weights": "DEFAULT" if node.pretrained else None}
    if part_of_torchvision(node) is not None and not node.pretrained:
        # Otherwise torchvision would download weights for the part below the head.
        arguments["weights_backbone"] = None
    model = _of_torchvision(node, arguments, label, key)
    _drop_auxiliary_heads(model)
    width = None if node.output == "features" else classes
    heads = [_replaced_map(model, name, width) for name in _last_maps(model)]
    if not node.pretrained:
        return model, None
    return model, _report_but(model, node, heads, key)


def _of_torchvision(
    node: TorchvisionLayer, arguments: dict[str, Any], label: str, key: Key
) -> nn.Module:
    """Return a network as torchvision builds it.

    Raises:
        ModelError: it does not take the arguments, or its weights cannot be loaded.
    """
    models = require("torchvision.models", extra="vision")
    try:
        model: nn.Module = models.get_model(node.architecture, **arguments | node.args)
    except _FAULTS_OF_BUILDERS as error:
        raise _cannot_load(error, node.architecture, label, key) from error
    return model


def _report_but(
    model: nn.Module, node: TorchvisionLayer, new: Iterable[str], key: Key
) -> WeightsReport:
    """Return a report by which all tensors were loaded, but those of modules that are new.

    Raises:
        ModelError: a tensor that was loaded is not finite.
    """
    # torchvision loads all tensors or none: only what was replaced is new.
    begins = tuple(f"{module}." for module in new)
    lacking = [name for name in model.state_dict() if name.startswith(begins)]
    report = _report(model, node.architecture, lacking, key)
    if report.not_finite:
        raise misfit(report, {}, _BY_FILE, key=(*key, "architecture"))
    return report


def _detector(
    node: TorchvisionLayer, classes: int | None, label: str, key: Key
) -> tuple[nn.Module, WeightsReport | None]:
    """Return a detector with outputs for the classes and the background, and a report.

    Raises:
        ModelError: it does not take the arguments, or its weights cannot be loaded.
    """
    assert classes is not None  # refused before
    # No weights of the part below the heads either: torchvision would download them.
    random = {"weights": None, "weights_backbone": None, "num_classes": classes + 1}
    model = _of_torchvision(node, random, label, key)
    if not node.pretrained:
        return Detector(model), None
    loaded = _of_torchvision(node, {"weights": "DEFAULT"}, label, key)
    new = with_heads_of(loaded, model)
    return Detector(loaded), _report_but(loaded, node, new, key)


def _cannot_load(error: Exception, name: str, label: str, key: Key) -> ModelError:
    """Return the error for a network that a library did not build."""
    # Both libraries raise it only for downloads; all else is about the arguments.
    if isinstance(error, OSError):
        message = f"{label}: cannot download the weights of {name!r}: {first_line(error)}"
        return ModelError(message, hint=_OFFLINE, key=key)
    return ModelError(f"{label}: {name}: {first_line(error)}", key=key)


def _report(model: nn.Module, name: str, new: Iterable[str], key: Key) -> WeightsReport:
    """Return a report by which all tensors but `new` were loaded."""
    lacking = set(new)
    loaded = tuple(name for name in model.state_dict() if name not in lacking)
    return WeightsReport(
        path=name,
        loaded=loaded,
        not_finite=not_finite(model, loaded),
        missing=tuple(sorted(lacking)),
        unexpected=(),
        mismatched=(),
        key=(*key, "architecture"),
    )


@contextmanager
def _told_missing() -> Iterator[list[str]]:
    """Yield a list that collects missing names from timm's log; timm returns no such list."""
    names, logger = list[str](), logging.getLogger("timm.models._builder")

    def note(record: logging.LogRecord) -> bool:
        if found := _MISSING.match(record.getMessage()):
            names.extend(found[1].split(", "))
        return record.levelno >= level

    level, own = logger.getEffectiveLevel(), logger.level
    # Missing names are logged at level INFO, which nobody shows by default; `note` hides them
    # again.
    logger.setLevel(min(level, logging.INFO))
    logger.addFilter(note)
    try:
        yield names
    finally:
        logger.removeFilter(note)
        logger.setLevel(own)


def _last_maps(model: nn.Module) -> list[str]:
    """Return the names of the linear maps whose outputs are the classes, in most networks one."""
    # LR-ASPP adds the logits of two of them.
    branches = [f"classifier.{name}" for name in ("low_classifier", "high_classifier")]
    if all(name in dict(model.named_modules()) for name in branches):
        return branches
    root = next(name for name in _HEADS if hasattr(model, name))
    # The heads of some networks have several layers; the classes are the outputs of the last one.
    maps = [
        name
        for name, module in model.named_modules()
        if name.partition(".")[0] == root and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return maps[-1:]


def _replaced_map(model: nn.Module, name: str, classes: int | None) -> str:
    """Replace a linear map by a new one or the identity; return its name."""
    last, new = model.get_submodule(name), cast("nn.Module", nn.Identity())
    if classes is not None and isinstance(last, nn.Linear):
        new = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    elif classes is not None and isinstance(last, nn.Conv2d):
        new = nn.Conv2d(last.in_channels, classes, kernel_size=1)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    return name


def _drop_auxiliary_heads(model: nn.Module) -> None:
    """Remove auxiliary classifiers, whose outputs are not used.

    Inception, GoogLeNet and the networks for segmentation have them.
    """
    if getattr(model, "aux_classifier", None) is not None:
        setattr(model, "aux_classifier", None)  # noqa: B010 - as below
    if getattr(model, "aux_logits", False):
        setattr(model, "aux_logits", False)  # noqa: B010 - a plain flag, which nn.Module's types deny
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, name):
                setattr(model, name, None)
