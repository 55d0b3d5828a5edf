"""Load networks of `transformers` as layers, and report which weights were loaded."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finetune.config.model import TransformersLayer
from finetune.errors import FinetuneError, Key, ModelError
from finetune.models.heads import HeadWanted, auto_with_head
from finetune.models.hub_cache import refuse_damaged_cache
from finetune.models.loaded_values import (
    conversion,
    not_finite,
    nothing_but_zeros,
    refuse_other_numbers,
)
from finetune.models.pretrained_place import PretrainedPlace, file_finder, pretrained_place
from finetune.models.renaming import in_yaml, mending, renamed
from finetune.models.shapes import first_line
from finetune.models.transformers_package import load_transformers
from finetune.models.weights import read_tensors, refuse_old_torch
from finetune.models.weights_report import WeightsReport, misfit
from finetune.process import collector_off
from finetune.reading import check_safetensors, read_json_object

_FAULTS_OF_FILES = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError,
    UnpicklingError, SafetensorError,
)  # fmt: skip
"""Exceptions that `transformers` raises on damaged or malicious files."""

_FILES_OF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Weight files that `transformers` tries, in order; `.index.json` after the name lists parts."""


def build_transformers(
    node: TransformersLayer,
    wanted: HeadWanted,
    incoming: Sequence[object],
    *,
    label: str,
    key: Key,
) -> tuple[nn.Module, WeightsReport | None]:
    """Return a network of `transformers` and a report of what was loaded into it, or None.

    All tensors are float32, whatever the file holds. The pooler is left out where the class allows
    it: its output is not used, so its parameters would be trained without ever getting a gradient.

    Args:
        node: Names the network and its output.
        wanted: The head for the output `logits`; its width is known then.
        incoming: Inputs of the layer for an example batch.
        label: The layer's name in messages.
        key: Position of the layer in the config.

    Raises:
        ModelError: the network does not exist, or its weights do not fit and `strict` is set.
    """
    place = pretrained_place(node.path, label=label, key=(*key, "path"))
    # Before transformers opens any of them: it reads pickles and follows indexes by itself.
    if place.local and node.pretrained:
        _check_files(Path(place.name), label=label, key=(*key, "path"))
    elif node.pretrained:
        refuse_damaged_cache(place.name, label=label, key=(*key, "path"), weights=True)
    transformers = load_transformers()
    options = _options_of_head(node, wanted)
    # Code that comes with a network is never run; asked about on a terminal, somebody would say
    # yes.
    where = {"local_files_only": place.local, "trust_remote_code": False}
    with quiet_transformers(transformers), _faults_told(node, label, key):
        config = transformers.AutoConfig.from_pretrained(place.name, **where, **options)
        auto = transformers.AutoModel
        if node.output == "logits":
            auto = auto_with_head(config, wanted, incoming, label=label, key=key)
        model_class = _class_of(config, auto, node, label=label, key=key)
        poolerless = _without_pooler(model_class)
        if not node.pretrained:
            return auto.from_config(config, dtype=torch.float32, **poolerless), None
        # With `ignore_mismatched_sizes`, what does not fit is reported below, all at once.
        settings = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **poolerless}
        settings |= {"config": config, "output_loading_info": True}
        if node.rename:
            tensors = _renamed_tensors(node, place, key)
            model, info = model_class.from_pretrained(None, state_dict=tensors, **settings)
        else:
            # From the hub only safetensors: its files may be changed by others, and a pickle can
            # run code.
            safe = None if place.local else True
            settings |= {"use_safetensors": safe, **where}
            model, info = auto.from_pretrained(place.name, **settings)
        if strange := _of_another_head(model, info, node):
            kept = _renamed_tensors(node, place, key)
            kept = {name: tensor for name, tensor in kept.items() if name not in strange}
            settings = {
                n: value for n, value in settings.items() if n not in (*where, "use_safetensors")
            }
            model, info = model_class.from_pretrained(None, state_dict=kept, **settings)
    return model, _judged(node, place, model, info, key)


@contextmanager
def _faults_told(node: TransformersLayer, label: str, key: Key) -> Iterator[None]:
    """Turn exceptions of `transformers` about files into a `ModelError` that names the layer."""
    try:
        yield
    except _FAULTS_OF_FILES as error:
        message = f"{label}: cannot load {node.path!r}: {first_line(error)}"
        raise ModelError(message, key=(*key, "path")) from error


def _options_of_head(node: TransformersLayer, wanted: HeadWanted) -> dict[str, Any]:
    """Return settings of the network's config that its head needs."""
    if node.output != "logits":
        return {}
    width = 2 if wanted.kind == "span" else wanted.width
    # An auxiliary head has a loss of its own, which no task asks for: its parameters would be
    # trained without ever getting a gradient. Networks without one ignore the setting.
    return {"num_labels": width, "use_auxiliary_head": False}


def _class_of(config: Any, auto: Any, node: TransformersLayer, *, label: str, key: Key) -> Any:
    """Return the class of network that `auto` creates for a config.

    Raises:
        ModelError: it has none for this architecture.
    """
    if type(config) not in auto._model_mapping:
        message = f"{label}: transformers has no bare network for {config.model_type!r}"
        raise ModelError(message, key=(*key, "output"))
    with collector_off():  # the module of this architecture is loaded by the look-up
        found = auto._model_mapping[type(config)]
    if not isinstance(found, tuple | list):
        return found
    named = {one.__name__: one for one in found}
    # Several classes for one config: the file says which of them was saved.
    wanted = (name for name in config.architectures or () if name in named)
    return named[next(wanted, found[0].__name__)]


def _of_another_head(
    model: nn.Module, info: Mapping[str, Any], node: TransformersLayer
) -> set[str]:
    """Return the parameters of a head whose loaded weights were trained for another task.

    The head that labels tokens and the one that labels whole texts often have one name and, with as
    many classes, one shape, so that `transformers` loads either. Empty if the saved network had the
    head that is wanted.
    """
    config: Any = model.config
    saved = [name for name in config.architectures or () if "For" in name]
    if node.output != "logits" or not saved or type(model).__name__ in saved:
        return set()
    body = f"{getattr(model, 'base_model_prefix', '')}."
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return {n for n in model.state_dict() if not n.startswith(body) and n not in lacking}


def _judged(
    node: TransformersLayer,
    place: PretrainedPlace,
    model: nn.Module,
    info: Mapping[str, Any],
    key: Key,
) -> WeightsReport:
    """Return a report of what was loaded, from the lists of `transformers`, which renames much.

    Raises:
        ModelError: nothing was loaded, or whole numbers as floats; or `strict` is set and more
            than a new head is missing, or a parameter is not finite.
    """
    shapes = {str(name): (tuple(file), tuple(own)) for name, file, own in info["mismatched_keys"]}
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    lacking = {*missing, *shapes}
    loaded = tuple(name for name in model.state_dict() if name not in lacking)
    broken = not_finite(model, loaded)
    faults = sorted(name for name in lacking if not _is_of_head(name, model, node))
    report = WeightsReport(
        path=place.name,
        loaded=loaded,
        missing=tuple(missing),
        unexpected=tuple(unexpected) if faults else (),
        mismatched=tuple(sorted(shapes)),
        not_finite=broken,
        # Without a fault, what the file has beyond the network is a pooler or head that is not
        # used.
        unread=() if faults else tuple(unexpected),
        key=(*key, "path"),
    )
    if (faults or broken) and (node.strict or not report.loaded):
        raise misfit(report, shapes, _hint(node, place, report, key), key=(*key, "path"))
    values = {n: p.detach() for n, p in model.named_parameters() if n not in lacking}
    told = _conversion(node, place, model, key) + nothing_but_zeros(values)
    return replace(report, remark=told)


def _conversion(node: TransformersLayer, place: PretrainedPlace, model: nn.Module, key: Key) -> str:
    """Return a text on the tensors that `transformers` converted to float32, which it never says.

    Raises:
        ModelError: it made floats of whole numbers.
    """
    own, body = model.state_dict(keep_vars=True), f"{getattr(model, 'base_model_prefix', '')}."
    theirs = dict[str, Tensor]()
    for name, tensor in _renamed_tensors(node, place, key).items():
        # A network with a head calls its body's tensors otherwise than the body alone does.
        names = (name, body + name, name.removeprefix(body))
        theirs |= {one: tensor for one in names if one in own}
    refuse_other_numbers(theirs, own, Path(place.name).name, key=(*key, "path"))
    return conversion((tensor, own[name]) for name, tensor in theirs.items())


def _is_of_head(name: str, model: nn.Module, node: TransformersLayer) -> bool:
    """Tell whether a tensor belongs to the classification head, or to the pooler in front of it.

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
    """Return a hint: the rename that makes more of the weights fit, else how to load what fits."""
    theirs = report.unexpected
    # A `.bin` may hold its tensors in a container, of which transformers reports only the name.
    if place.local and not node.rename and Path(place.name, _FILES_OF_WEIGHTS[1]).is_file():
        theirs = tuple(_tensors(place, {}, key))
    entries = {} if node.rename else mending(report.not_loaded, theirs)
    if entries:
        return f"try {in_yaml(entries)}"
    return report.way_out or "pretrained: false does without"


def _renamed_tensors(
    node: TransformersLayer, place: PretrainedPlace, key: Key
) -> dict[str, Tensor]:
    """Return all pretrained tensors of a layer by the network's names for them.

    The files name them as whoever saved them did; `rename` of the config replaces parts of those
    names, and a name in which nothing is replaced stays.

    Raises:
        ModelError: there are no tensors, two would get one name, or `rename` replaces nothing.
    """
    return renamed(_tensors(place, node.rename, key), node.rename, (*key, "rename"))


def _tensors(place: PretrainedPlace, rename: Mapping[str, str], key: Key) -> dict[str, Tensor]:
    """Return the tensors that `transformers` would read, from one file or several parts.

    Raises:
        ModelError: there are none, or a file holds more than tensors.
    """
    find, tensors = file_finder(place), dict[str, Tensor]()
    for name in _FILES_OF_WEIGHTS if place.local else _FILES_OF_WEIGHTS[:1]:
        # In the order of transformers: a single file is preferred to parts.
        if (index := find(f"{name}.index.json")) is not None and find(name) is None:
            _check_index(index, label=place.name, key=(*key, "path"))
            parts = sorted(set(read_json_object(index)["weight_map"].values()))
        else:
            parts = [name]
        for path in filter(None, map(find, parts)):
            # Like transformers, which sees a container as one strange name: none is opened here.
            tensors |= read_tensors(path, rename, (*key, "path"), unasked=()).tensors
        if tensors:
            return tensors
    raise ModelError(f"{place.name!r} holds no weights", key=(*key, "path"))


def _check_files(folder: Path, *, label: str, key: Key) -> None:
    """Check the weight files of a folder before `transformers` opens them.

    Raises:
        ModelError: one could do harm, or an index names files outside the folder.
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
    """Raise unless an index of several files names only files beside it."""
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
    """Return the argument that leaves the pooler out, if the class has it."""
    accepted = inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


@contextmanager
def quiet_transformers(transformers: Any) -> Iterator[None]:
    """Silence progress bar, loading report and torch's advice on pickles during the block."""
    logging = transformers.utils.logging
    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Global settings of the library: a program that uses it beside us gets them back.
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
