"""How a pretrained network wants its input: read from its files or tables, no model is built."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.model import (
    Layer,
    ModelConfig,
    SequentialLayer,
    TimmLayer,
    TorchvisionLayer,
    TransformersLayer,
)
from finetune.errors import FinetuneError, Key, ModelError, did_you_mean
from finetune.importing import package_path, require
from finetune.models.shapes import first_line
from finetune.reading import read_json_object

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ELSEWHERE = ("hf-hub:", "local-dir:")
"""ActivationCache of names of networks that timm loads from elsewhere than its own tables."""
_UNNAMED = re.compile(r"LABEL_\d+")
"""What `transformers` calls the outputs of a head that nobody has given names."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """Size and normalisation of the images that a network was pretrained on."""

    height: int
    width: int
    mean: tuple[float, ...]
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...]
    """Per channel."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the pretrained layers of a model were pretrained with."""

    tokenizer: str | None
    """Folder or hub id of the tokenizer."""
    image: ImagePreprocessing | None
    """Of the first layer that takes images."""
    head: tuple[str, ...] = ()
    """Names that the pretrained head at the network's end gives its outputs, in their order; none
    where there is no such head, or nobody has named them."""
    no_tokenizer: str | None = field(default=None, compare=False)
    """Folder or hub id of the first network of `transformers`, where none brings a tokenizer."""


@dataclass(frozen=True, slots=True)
class PretrainedPlace:
    """Where a pretrained network lies."""

    name: str
    """A folder, or a hub id."""
    local: bool
    """Whether it is a folder, so that nothing is asked of the hub."""


def read_preprocessing(config: ModelConfig) -> Preprocessing:
    """Return tokenizer and image settings of the first layers that have them.

    Raises:
        ModelError: a folder or an architecture named by the config does not exist, or the hub
            cannot be reached.
    """
    tokenizer: str | None = None
    places: list[str] = []
    image: ImagePreprocessing | None = None
    head: tuple[str, ...] = ()
    for layer, key in _walk(config.layers, ("model", "layers")):
        match layer:
            case TransformersLayer():
                label = _label(layer, key)
                place = pretrained_place(layer.path, label=label, key=(*key, "path"))
                _check_place(place, label=label, key=(*key, "path"))
                find = file_finder(place)
                places.append(place.name)
                tokenizer = tokenizer or _tokenizer(place, find)
                if layer is config.layers[-1] and layer.output == "logits" and layer.pretrained:
                    head = _names_of_head(find("config.json"), (*key, "path"))
                image = image or _from_processor_file(
                    find("preprocessor_config.json"), (*key, "path")
                )
            case TimmLayer():
                image = image or _of_timm(layer, key)
            case TorchvisionLayer():
                image = image or _of_torchvision(layer, key)
            case _:
                continue
    lacking = places[0] if places and tokenizer is None else None
    return Preprocessing(tokenizer, image, head, lacking)


def pretrained_place(path: str, *, label: str, key: Key) -> PretrainedPlace:
    """Tell a folder from a hub id.

    Raises:
        ModelError: it can only be a folder, and there is none.
    """
    folder = package_path(path, key=key)
    if folder.is_dir():
        return PretrainedPlace(str(folder), local=True)
    if path.startswith(("package:", "~")) or not _HUB_ID.fullmatch(path) or folder.exists():
        raise ModelError(f"{label}: no folder {str(folder)!r}", key=key)
    return PretrainedPlace(path, local=False)


def _walk(layers: Sequence[Layer], key: Key) -> Iterator[tuple[Layer, Key]]:
    """Yield every layer, also those inside `sequential`."""
    for position, layer in enumerate(layers):
        yield layer, (*key, position)
        if isinstance(layer, SequentialLayer):
            yield from _walk(layer.layers, (*key, position, "layers"))


def check_timm(node: TimmLayer, *, label: str, key: Key) -> None:
    """Check that timm knows an architecture.

    Raises:
        ModelError: there is none of that name, or no weights of that tag.
    """
    timm, name = require("timm", extra="vision"), node.architecture
    if name.startswith(_ELSEWHERE):
        return
    key = (*key, "architecture")
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ModelError(f"{label}: timm has no architecture {name!r}", hint=hint, key=key)
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of an architecture that it has, it does not know the tag
        hint = did_you_mean(name, timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ModelError(f"{label}: timm has no weights {name!r}", hint=hint, key=key) from error


def check_torchvision(node: TorchvisionLayer, *, label: str, key: Key) -> None:
    """Check that torchvision knows an architecture.

    Raises:
        ModelError: there is no classification network of that name.
    """
    models = require("torchvision.models", extra="vision")
    known = models.list_models(module=models)
    if node.architecture not in known:
        raise ModelError(
            f"{label}: torchvision has no classification network {node.architecture!r}",
            hint=did_you_mean(node.architecture, known),
            key=(*key, "architecture"),
        )


def file_finder(place: PretrainedPlace) -> Callable[[str], Path | None]:
    """Return a function that finds a file of the network by name, on the hub if it is not local."""

    def in_folder(name: str) -> Path | None:
        path = Path(place.name, name)
        return path if path.is_file() else None

    def on_hub(name: str) -> Path | None:
        hub = require("transformers.utils", extra="text")
        found = hub.cached_file(
            place.name,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    return in_folder if place.local else on_hub


def _check_place(place: PretrainedPlace, *, label: str, key: Key) -> None:
    """Look for the config of a network, which none is without.

    Without this, a tokenizer or an image size that nobody can find would be told in its place.

    Raises:
        ModelError: it is not there, or the hub cannot be reached.
    """
    if place.local:
        if not Path(place.name, "config.json").is_file():
            raise ModelError(
                f"{label}: the folder {place.name!r} holds no config.json",
                hint="a network of transformers is a folder made by save_pretrained",
                key=key,
            )
        return
    hub = require("transformers.utils", extra="text")
    try:
        hub.cached_file(place.name, "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{label}: cannot load {place.name!r} from the hub: {first_line(error)}",
            hint="offline, give a folder that holds config.json and the weights; with "
            "pretrained: false config.json is enough",
            key=key,
        ) from error


def _tokenizer(place: PretrainedPlace, find: Callable[[str], Path | None]) -> str | None:
    return place.name if any(find(name) for name in _TOKENIZER_FILES) else None


def _names_of_head(path: Path | None, key: Key) -> tuple[str, ...]:
    """Return the names of a head's outputs in their order; none where nobody has named them.

    Raises:
        ModelError: the file cannot be read.
    """
    if path is None:
        return ()
    try:
        id2label = read_json_object(path).get("id2label")
    except FinetuneError as error:
        raise ModelError(f"{str(path)!r}: {error.message}", key=key) from error
    if not isinstance(id2label, dict):
        return ()
    names = [id2label.get(str(place)) for place in range(len(id2label))]
    texts = tuple(name for name in names if isinstance(name, str))
    is_named = len(set(texts)) == len(names) and not all(map(_UNNAMED.fullmatch, texts))
    return texts if is_named else ()


def _from_processor_file(path: Path | None, key: Key) -> ImagePreprocessing | None:
    """Read the image processor settings of `transformers`, which have several forms of a size.

    Raises:
        ModelError: the file does not hold such settings.
    """
    if path is None:
        return None
    try:
        return _image_settings(read_json_object(path))
    except FinetuneError as error:
        raise ModelError(f"{str(path)!r}: {error.message}", key=key) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{str(path)!r} holds no size, mean and std", key=key) from error


def _image_settings(settings: dict[str, Any]) -> ImagePreprocessing | None:
    size = settings.get("crop_size") or settings.get("size")
    if not size or "image_mean" not in settings or "image_std" not in settings:
        return None
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    shortest = sides.get("shortest_edge")
    height, width = sides.get("height", shortest), sides.get("width", shortest)
    if height is None or width is None:
        return None
    return ImagePreprocessing(
        int(height), int(width), _floats(settings["image_mean"]), _floats(settings["image_std"])
    )


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _of_timm(layer: TimmLayer, key: Key) -> ImagePreprocessing | None:
    timm = require("timm", extra="vision")
    label = _label(layer, key)
    check_timm(layer, label=label, key=key)
    found = _pretrained_config_of_timm(timm, layer.architecture, label, key)
    if found is None:
        return None
    _, height, width = found["input_size"]
    sides: Any = layer.args.get("img_size", (height, width))
    height, width = (sides, sides) if isinstance(sides, int) else sides
    channels = layer.args.get("in_chans", len(found["mean"]))
    return ImagePreprocessing(
        height, width, _per_channel(found["mean"], channels), _per_channel(found["std"], channels)
    )


def _pretrained_config_of_timm(
    timm: Any, name: str, label: str, key: Key
) -> Mapping[str, Any] | None:
    """Return what timm knows of the images of a network, from its tables or from the hub.

    Raises:
        ModelError: the hub cannot be reached, or has no such network.
    """
    if not name.startswith(_ELSEWHERE):
        found = timm.get_pretrained_cfg(name, allow_unregistered=True)
        return None if found is None else asdict(found)
    if not name.startswith(_ELSEWHERE[0]):
        return None
    try:
        config, _, _ = timm.models.load_model_config_from_hf(name.removeprefix(_ELSEWHERE[0]))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{label}: cannot load {name!r} from the hub: {first_line(error)}",
            hint="offline, name an architecture of timm, with pretrained: false or weights: of it",
            key=(*key, "architecture"),
        ) from error
    return config if {"input_size", "mean", "std"} <= config.keys() else None


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: their mean for another number of channels than was trained."""
    same = len(values) == channels
    return tuple(values) if same else (sum(values) / len(values),) * channels


def _of_torchvision(layer: TorchvisionLayer, key: Key) -> ImagePreprocessing | None:
    models = require("torchvision.models", extra="vision")
    check_torchvision(layer, label=_label(layer, key), key=key)
    transforms = models.get_model_weights(layer.architecture).DEFAULT.transforms()
    side = transforms.crop_size[0]
    return ImagePreprocessing(side, side, tuple(transforms.mean), tuple(transforms.std))


def _label(layer: TransformersLayer | TimmLayer | TorchvisionLayer, key: Key) -> str:
    """Return how a layer is told to the user, as `layer_label` tells it."""
    return f"layer {layer.name or str(key[-1])!r} ({layer.type})"
