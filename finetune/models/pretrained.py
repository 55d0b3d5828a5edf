"""Networks of transformers, timm and torchvision as layers, and weights into any model."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from finetune.config.model import TimmLayer, TorchvisionLayer, TransformersLayer
from finetune.errors import FinetuneError, Key, ModelError, did_you_mean
from finetune.importing import require
from finetune.models.preprocessing import (
    ImagePreprocessing as ImagePreprocessing,
    Preprocessing as Preprocessing,
    pretrained_place,
    read_preprocessing as read_preprocessing,
)
from finetune.models.shapes import first_line
from finetune.models.weights import (
    WeightsReport as WeightsReport,
    load_weights as load_weights,
    refuse_old_torch,
)
from finetune.reading import check_safetensors, read_json_object

_FAULTS_OF_FILES = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError,
    UnpicklingError, SafetensorError,
)  # fmt: skip
"""What `transformers` raises over files that are not what they should be."""

_FAULTS_OF_BUILDERS = (
    OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError,
    MemoryError, ArithmeticError,
)  # fmt: skip
"""What `timm` and `torchvision` raise over arguments that make no network."""

_HEADS = ("fc", "classifier", "heads", "head")
"""Where the networks of torchvision keep their classification head."""


def build_transformers(
    node: TransformersLayer, classes: int | None, *, label: str, key: Key
) -> tuple[nn.Module, WeightsReport | None]:
    """Return the bare network of `transformers` and a report if some of its tensors are new.

    Tensors are float32 whatever the file holds. The network has no pooler where its class lets us
    leave it out: nobody would read it, so it would be trained without ever getting a gradient.

    Args:
        node: Which network, and which of its outputs.
        classes: Width of the head when the output is `logits`, which then is not None.
        label: How the layer is told to the user.
        key: Where it stands in the config.

    Raises:
        ModelError: there is no such network.
    """
    place = pretrained_place(node.path, label=label, key=(*key, "path"))
    if place.local and node.pretrained:
        _check_files(Path(place.name), label=label, key=(*key, "path"))
    transformers = require("transformers", extra="text")
    logits = node.output == "logits"
    auto = transformers.AutoModelForSequenceClassification if logits else transformers.AutoModel
    options: dict[str, Any] = {"num_labels": classes} if logits else {}
    where = {"local_files_only": place.local, "trust_remote_code": False}
    with _quiet_transformers(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(place.name, **where, **options)
            model_class = auto._model_mapping[type(config)]
            poolerless = _without_pooler(model_class)
            if not node.pretrained:
                model = auto.from_config(config, dtype=torch.float32, **poolerless)
                return model, None
            model, info = auto.from_pretrained(
                place.name,
                config=config,
                dtype=torch.float32,
                use_safetensors=None if place.local else True,
                ignore_mismatched_sizes=logits,
                output_loading_info=True,
                **where,
                **poolerless,
            )
        except _FAULTS_OF_FILES as error:
            raise ModelError(
                f"{label}: cannot load {node.path!r}: {first_line(error)}", key=(*key, "path")
            ) from error
    return model, _new_tensors(model, info, place.name)


def _check_files(folder: Path, *, label: str, key: Key) -> None:
    """Look at the weights in a folder before `transformers` opens them.

    Raises:
        ModelError: one is made to do harm, or an index names files outside the folder.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            check_safetensors(path)
        except FinetuneError as error:
            raise ModelError(f"{label}: {str(path)!r} {error.message}", key=key) from error
    for path in sorted(folder.glob("*.bin")):
        refuse_old_torch(torch.__version__, path, key=key)
    for path in sorted(folder.glob("*.index.json")):
        _check_index(path, label=label, key=key)


def _check_index(path: Path, *, label: str, key: Key) -> None:
    """Refuse an index of several files that is none, or that names anything but files beside it."""
    try:
        names = read_json_object(path).get("weight_map")
    except FinetuneError as error:
        raise ModelError(f"{label}: {str(path)!r} {error.message}", key=key) from error
    strange = [
        name
        for name in (names.values() if isinstance(names, dict) else [names, None])
        if not isinstance(name, str) or Path(name).name != name
    ]
    if strange:
        raise ModelError(
            f"{label}: {str(path)!r} names {strange[0]!r}, which is no file beside it", key=key
        )


def build_timm(node: TimmLayer, classes: int | None, *, label: str, key: Key) -> nn.Module:
    """Return a network of `timm` without its head, or with a new one of `classes` outputs.

    Raises:
        ModelError: there is no such architecture, or it does not take the arguments.
    """
    timm = require("timm", extra="vision")
    name = node.architecture
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ModelError(
            f"{label}: timm has no architecture {name!r}", hint=hint, key=(*key, "architecture")
        )
    width = 0 if node.output == "features" else classes
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=node.pretrained, num_classes=width, **node.args
        )
    except _FAULTS_OF_BUILDERS as error:
        raise ModelError(f"{label}: {name}: {first_line(error)}", key=key) from error
    return model


def build_torchvision(
    node: TorchvisionLayer, classes: int | None, *, label: str, key: Key
) -> nn.Module:
    """Return a network of `torchvision` without its last linear map, or with a new one.

    Raises:
        ModelError: there is no such classification network, or it does not take the arguments.
    """
    models = require("torchvision.models", extra="vision")
    known = models.list_models(module=models)
    if node.architecture not in known:
        raise ModelError(
            f"{label}: torchvision has no classification network {node.architecture!r}",
            hint=did_you_mean(node.architecture, known),
            key=(*key, "architecture"),
        )
    weights = "DEFAULT" if node.pretrained else None
    try:
        model: nn.Module = models.get_model(node.architecture, weights=weights, **node.args)
    except _FAULTS_OF_BUILDERS as error:
        raise ModelError(f"{label}: {node.architecture}: {first_line(error)}", key=key) from error
    _drop_auxiliary_heads(model)
    _replace_head(model, None if node.output == "features" else classes)
    return model


def _replace_head(model: nn.Module, classes: int | None) -> None:
    """Put a new last map of `classes` outputs into the head, or the identity if None."""
    root = next(name for name in _HEADS if hasattr(model, name))
    maps = [
        (name, module)
        for name, module in model.named_modules()
        if name.partition(".")[0] == root and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    name, last = maps[-1]
    new: nn.Module = nn.Identity()
    if classes is not None and isinstance(last, nn.Linear):
        new = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    elif classes is not None and isinstance(last, nn.Conv2d):
        new = nn.Conv2d(last.in_channels, classes, kernel_size=1)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _drop_auxiliary_heads(model: nn.Module) -> None:
    """Drop the second classifiers of Inception and GoogLeNet, whose outputs nobody reads."""
    if getattr(model, "aux_logits", False):
        setattr(model, "aux_logits", False)  # noqa: B010 - a plain flag, which nn.Module's types deny
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, name):
                setattr(model, name, None)


def _without_pooler(model_class: type[nn.Module]) -> dict[str, bool]:
    accepted = inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def _new_tensors(model: nn.Module, info: dict[str, Any], place: str) -> WeightsReport | None:
    """Report the tensors that the checkpoint did not hold; None if it held all."""
    missing = tuple(sorted(info["missing_keys"]))
    mismatched = tuple(sorted(str(entry[0]) for entry in info["mismatched_keys"]))
    if not missing and not mismatched:
        return None
    new = {*missing, *mismatched}
    return WeightsReport(
        path=place,
        loaded=tuple(name for name in model.state_dict() if name not in new),
        missing=missing,
        unexpected=tuple(sorted(info["unexpected_keys"])),
        mismatched=mismatched,
    )


@contextmanager
def _quiet_transformers(transformers: Any) -> Iterator[None]:
    """Keep the progress bar, the loading report and torch's advice off the terminal."""
    logging = transformers.utils.logging
    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()
