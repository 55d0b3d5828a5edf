"""How a pretrained network wants its input: read from its files or tables, no model is built."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import package_path, require
from finetune.reading import read_json_object

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
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
        ModelError: a folder named by the config does not exist.
    """
    tokenizer: str | None = None
    image: ImagePreprocessing | None = None
    for layer, key in _walk(config.layers, ("model", "layers")):
        match layer:
            case TransformersLayer():
                place = pretrained_place(
                    layer.path, label=f"layer {layer.name!r} (transformers)", key=(*key, "path")
                )
                find = _finder(place)
                tokenizer = tokenizer or _tokenizer(place, find)
                image = image or _from_processor_file(
                    find("preprocessor_config.json"), (*key, "path")
                )
            case TimmLayer():
                image = image or _of_timm(layer)
            case TorchvisionLayer():
                image = image or _of_torchvision(layer)
            case _:
                continue
    return Preprocessing(tokenizer, image)


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


def _finder(place: PretrainedPlace) -> Callable[[str], Path | None]:
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


def _tokenizer(place: PretrainedPlace, find: Callable[[str], Path | None]) -> str | None:
    return place.name if any(find(name) for name in _TOKENIZER_FILES) else None


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


def _of_timm(layer: TimmLayer) -> ImagePreprocessing | None:
    timm = require("timm", extra="vision")
    found = timm.get_pretrained_cfg(layer.architecture, allow_unregistered=True)
    if found is None:
        return None
    _, height, width = found.input_size
    sides: Any = layer.args.get("img_size", (height, width))
    height, width = (sides, sides) if isinstance(sides, int) else sides
    channels = layer.args.get("in_chans", len(found.mean))
    return ImagePreprocessing(
        height, width, _per_channel(found.mean, channels), _per_channel(found.std, channels)
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: their mean for another number of channels than was trained."""
    same = len(values) == channels
    return tuple(values) if same else (sum(values) / len(values),) * channels


def _of_torchvision(layer: TorchvisionLayer) -> ImagePreprocessing | None:
    models = require("torchvision.models", extra="vision")
    if layer.architecture not in models.list_models(module=models):
        return None
    transforms = models.get_model_weights(layer.architecture).DEFAULT.transforms()
    side = transforms.crop_size[0]
    return ImagePreprocessing(side, side, tuple(transforms.mean), tuple(transforms.std))
