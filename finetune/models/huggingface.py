"""Networks of `transformers` as layers, and what of their weights was loaded."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finetune.config.model import TransformersLayer
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import require
from finetune.models.preprocessing import PretrainedPlace, file_finder, pretrained_place
from finetune.models.renaming import in_yaml, mending, renamed
from finetune.models.shapes import first_line
from finetune.models.weights import WeightsReport, misfit, read_tensors, refuse_old_torch
from finetune.reading import check_safetensors, read_json_object

_FAULTS_OF_FILES = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError,
    UnpicklingError, SafetensorError,
)  # fmt: skip
"""Exceptions that `transformers` raises for damaged or hostile files."""

_FILES_OF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights that `transformers` tries, in order; `.index.json` after either lists parts."""


def build_transformers(
    node: TransformersLayer, classes: int | None, *, label: str, key: Key
) -> tuple[nn.Module, WeightsReport | None]:
    """Return the bare network of `transformers` and a report of what was loaded into it.

    Tensors are float32 whatever the file holds. The network has no pooler where its class lets us
    leave it out: nobody would read it, so it would be trained without ever getting a gradient.

    Args:
        node: Which network, and which of its outputs.
        classes: Width of the head when the output is `logits`, which then is not None.
        label: How the layer is told to the user.
        key: Where it stands in the config.

    Raises:
        ModelError: there is no such network, or its weights do not fit and `strict` is set.
    """
    place = pretrained_place(node.path, label=label, key=(*key, "path"))
    if place.local and node.pretrained:
        _check_files(Path(place.name), label=label, key=(*key, "path"))
    transformers = require("transformers", extra="text")
    logits = node.output == "logits"
    auto = transformers.AutoModelForSequenceClassification if logits else transformers.AutoModel
    options: dict[str, Any] = {"num_labels": classes} if logits else {}
    where = {"local_files_only": place.local, "trust_remote_code": False}
    with _quiet_transformers(transformers), _faults_told(node, label, key):
        config = transformers.AutoConfig.from_pretrained(place.name, **where, **options)
        model_class = _class_of(config, auto, node, label=label, key=key)
        poolerless = _without_pooler(model_class)
        if not node.pretrained:
            return auto.from_config(config, dtype=torch.float32, **poolerless), None
        # Whatever does not fit is judged below, in words of ours and all at once.
        settings = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **poolerless}
        settings |= {"config": config, "output_loading_info": True}
        if node.rename:
            tensors = _renamed_tensors(node, place, key)
            model, info = model_class.from_pretrained(None, state_dict=tensors, **settings)
        else:
            safe = None if place.local else True
            settings |= {"use_safetensors": safe, **where}
            model, info = auto.from_pretrained(place.name, **settings)
    return model, _judged(node, place, model, info, key)


@contextmanager
def _faults_told(node: TransformersLayer, label: str, key: Key) -> Iterator[None]:
    """Turn what `transformers` raises over files into one line that names the layer."""
    try:
        yield
    except _FAULTS_OF_FILES as error:
        message = f"{label}: cannot load {node.path!r}: {first_line(error)}"
        raise ModelError(message, key=(*key, "path")) from error


def _class_of(config: Any, auto: Any, node: TransformersLayer, *, label: str, key: Key) -> Any:
    """Return the class of network that `auto` makes of a config.

    Raises:
        ModelError: it makes none of this kind.
    """
    if type(config) not in auto._model_mapping:
        what = "head for output 'logits'" if node.output == "logits" else "bare network"
        raise ModelError(
            f"{label}: transformers has no {what} for {config.model_type!r}",
            hint="use output: cls, mean or hidden and a Linear layer behind it"
            if node.output == "logits"
            else None,
            key=(*key, "output"),
        )
    found = auto._model_mapping[type(config)]
    if not isinstance(found, tuple | list):
        return found
    named = {one.__name__: one for one in found}
    wanted = (name for name in config.architectures or () if name in named)
    return named[next(wanted, found[0].__name__)]


def _judged(
    node: TransformersLayer,
    place: PretrainedPlace,
    model: nn.Module,
    info: Mapping[str, Any],
    key: Key,
) -> WeightsReport:
    """Report what was loaded, by the word of `transformers`, which renames much by itself.

    Raises:
        ModelError: nothing was loaded, or something but a new head is missing and `strict` is set.
    """
    shapes = {str(name): (tuple(file), tuple(own)) for name, file, own in info["mismatched_keys"]}
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    lacking = {*missing, *shapes}
    faults = sorted(name for name in lacking if not _is_of_head(name, model, node))
    report = WeightsReport(
        path=place.name,
        loaded=tuple(name for name in model.state_dict() if name not in lacking),
        missing=tuple(missing),
        unexpected=tuple(unexpected) if faults else (),
        mismatched=tuple(sorted(shapes)),
        unread=() if faults else tuple(unexpected),
        key=(*key, "path"),
    )
    if faults and (node.strict or not report.loaded):
        raise misfit(report, shapes, _hint(node, place, report, key), key=(*key, "path"))
    return report


def _is_of_head(name: str, model: nn.Module, node: TransformersLayer) -> bool:
    """Tell whether a tensor is of the classification head, or of the pooler that feeds it.

    The head is new unless the weights hold one of that width, and few networks are published with
    a pooler.
    """
    if node.output != "logits":
        return False
    body = f"{getattr(model, 'base_model_prefix', '')}."
    return not name.startswith(body) or name.startswith(f"{body}pooler.")


def _hint(
    node: TransformersLayer, place: PretrainedPlace, report: WeightsReport, key: Key
) -> str | None:
    """Name the rename that makes more of the weights fit, else how to load what fits already."""
    theirs = report.unexpected
    if place.local and not node.rename and Path(place.name, _FILES_OF_WEIGHTS[1]).is_file():
        theirs = tuple(_tensors(place, {}, key))
    entries = {} if node.rename else mending(report.not_loaded, theirs)
    if entries:
        return f"try {in_yaml(entries)}"
    return "strict: false loads what fits" if report.loaded else "pretrained: false does without"


def _renamed_tensors(
    node: TransformersLayer, place: PretrainedPlace, key: Key
) -> dict[str, Tensor]:
    """Return the tensors of a folder or of the hub under the names that `rename` gives them."""
    return renamed(_tensors(place, node.rename, key), node.rename, (*key, "rename"))


def _tensors(place: PretrainedPlace, rename: Mapping[str, str], key: Key) -> dict[str, Tensor]:
    """Read the tensors that `transformers` would read, from one file or several.

    Raises:
        ModelError: there are none, or a file holds more than tensors.
    """
    find, tensors = file_finder(place), dict[str, Tensor]()
    for name in _FILES_OF_WEIGHTS if place.local else _FILES_OF_WEIGHTS[:1]:
        if (index := find(f"{name}.index.json")) is not None and find(name) is None:
            _check_index(index, label=place.name, key=(*key, "path"))
            parts = sorted(set(read_json_object(index)["weight_map"].values()))
        else:
            parts = [name]
        for path in filter(None, map(find, parts)):
            # To transformers a container is one strange name: none is opened unasked.
            tensors |= read_tensors(path, rename, (*key, "path"), unasked=()).tensors
        if tensors:
            return tensors
    raise ModelError(f"{place.name!r} holds no weights", key=(*key, "path"))


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


def _without_pooler(model_class: type[nn.Module]) -> dict[str, bool]:
    accepted = inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


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
