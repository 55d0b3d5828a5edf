"""Read how a pretrained network wants its input from files and tables; no model is built."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.model import (
    Layer,
    ModelConfig,
    SequentialLayer,
    SharedLayer,
    TimmLayer,
    TorchvisionLayer,
    TransformersLayer,
)
from finetune.errors import Faults, FinetuneError, Key, ModelError
from finetune.importing import require
from finetune.models.architectures import (
    ELSEWHERE,
    check_timm,
    check_torchvision,
    is_detector,
    refuse_damaged_timm,
)
from finetune.models.pretrained_place import (
    PretrainedPlace,
    check_place,
    file_finder,
    pretrained_place,
)
from finetune.models.shapes import first_line
from finetune.reading import read_json_object

_UNNAMED = re.compile(r"LABEL_\d+")
"""Names that `transformers` gives to the outputs of a head if nobody has named them."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
"""A folder with a tokenizer has one of them."""


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """Size and normalisation of the images a network was pretrained with."""

    height: int
    width: int
    mean: tuple[float, ...]
    """One value per channel, for pixel values in [0, 1]."""
    std: tuple[float, ...]
    """One value per channel."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Tokenizer, image settings and class names of a model's pretrained layers."""

    tokenizer: str | None
    """Folder or hub id of the tokenizer; None if no layer has one."""
    image: ImagePreprocessing | None
    """Image settings of the first layer that takes images."""
    head: tuple[str, ...] = ()
    """Names of the outputs of the pretrained head at the end of the network, in order; empty if
    there is no such head or its outputs are not named."""
    no_tokenizer: str | None = field(default=None, compare=False)
    """Folder or hub id of the first network of `transformers`, if none of them has a tokenizer."""
    pads_images: bool = False
    """Whether images of a batch may differ in size: a detector sees where each of them ends."""
    named: Mapping[str, str | None] = field(default_factory=dict, compare=False)
    """Names in the inputs of layers, each with the tokenizer of the layer if it has one. Of several
    texts, those among them are tokenized singly."""


def read_preprocessing(config: ModelConfig) -> Preprocessing:
    """Return tokenizer, image settings and head names of the first layers that have them.

    Raises:
        FinetuneError: a folder or architecture that the config names does not exist, or the hub
            cannot be reached. Faults of several layers are reported at once.
    """
    tokenizer: str | None = None
    places: list[str] = []
    image: ImagePreprocessing | None = None
    pads_images = False
    head: tuple[str, ...] = ()
    of_layers: dict[str, str | None] = {}
    faults = Faults()
    for layer, key in _walk(config.layers, ("model", "layers")):
        with faults.noted():
            match layer:
                case TransformersLayer():
                    place, find = _found(layer, key)
                    places.append(place.name)
                    own = _tokenizer(place, find)
                    tokenizer, of_layers[layer.name or str(key[-1])] = tokenizer or own, own
                    # Names of a head further inside, or of a new one, say nothing about the
                    # network's outputs.
                    if layer is config.layers[-1] and layer.output == "logits" and layer.pretrained:
                        head = _names_of_head(find("config.json"), (*key, "path"))
                    image = image or _from_processor_file(
                        find("preprocessor_config.json"), (*key, "path")
                    )
                case TimmLayer():
                    image = image or _of_timm(layer, key)
                case TorchvisionLayer():
                    image = image or _of_torchvision(layer, key)
                    pads_images = pads_images or is_detector(layer)
                case _:
                    continue
    faults.raise_if_any()
    lacking = places[0] if places and tokenizer is None else None
    named = _named_inputs(config.layers, of_layers)
    return Preprocessing(tokenizer, image, head, lacking, pads_images, named)


def _found(
    layer: TransformersLayer, key: Key
) -> tuple[PretrainedPlace, Callable[[str], Path | None]]:
    """Return where a network of transformers is, and what finds files there by name.

    Raises:
        ModelError: there is none.
    """
    label, at = _label(layer, key), (*key, "path")
    place = pretrained_place(layer.path, label=label, key=at)
    check_place(place, label=label, key=at)
    return place, file_finder(place)


def _named_inputs(
    layers: Sequence[Layer], tokenizers: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Return the names in the inputs of layers, each with the tokenizer of the layer, or None.

    Names of earlier layers are left out: a layer wins over a text of the same name.

    Args:
        layers: The layers.
        tokenizers: Tokenizers of networks by the name of their layer.
    """
    found: dict[str, str | None] = {}
    before = set[str]()
    for position, layer in enumerate(layers):
        name = layer.name or str(position)
        tokenizer = tokenizers.get(layer.layer if isinstance(layer, SharedLayer) else name)
        for taken in layer.inputs or ():
            # `text.input_ids` names a text too, by one column of its tokens.
            for text in {taken, taken.rpartition(".")[0]} - before:
                found[text] = found.get(text) or tokenizer
        before.add(name)
    return found


def _walk(layers: Sequence[Layer], key: Key) -> Iterator[tuple[Layer, Key]]:
    """Yield every layer with its key, also those inside `sequential`."""
    for position, layer in enumerate(layers):
        yield layer, (*key, position)
        if isinstance(layer, SequentialLayer):
            yield from _walk(layer.layers, (*key, position, "layers"))


def _tokenizer(place: PretrainedPlace, find: Callable[[str], Path | None]) -> str | None:
    """Return the name of the place if it has a tokenizer's files, else None."""
    return place.name if any(find(name) for name in TOKENIZER_FILES) else None


def _names_of_head(path: Path | None, key: Key) -> tuple[str, ...]:
    """Return the names of a head's outputs in order; empty if they are not named.

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
    # Only distinct names: two outputs of one name could not be matched with labels.
    is_named = len(set(texts)) == len(names) and not all(map(_UNNAMED.fullmatch, texts))
    return texts if is_named else ()


def _from_processor_file(path: Path | None, key: Key) -> ImagePreprocessing | None:
    """Return the image settings in a processor file of `transformers`, or None without a file.

    Raises:
        ModelError: the file has no such settings.
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
    """Return the settings of an image processor, which writes a size in several forms; or None."""
    # What the network sees is the crop; `size` is that of the image before it.
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
    """Return values as floats."""
    return tuple(float(value) for value in values)


def _of_timm(layer: TimmLayer, key: Key) -> ImagePreprocessing | None:
    """Return the image settings of a timm network, changed as the layer's arguments say."""
    timm = require("timm", extra="vision")
    label = _label(layer, key)
    check_timm(layer, label=label, key=key)
    refuse_damaged_timm(layer, label=label, key=key)
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
    """Return what timm knows about a network's images, from its tables or the hub, or None.

    Raises:
        ModelError: the hub cannot be reached or has no such network.
    """
    if not name.startswith(ELSEWHERE):
        found = timm.get_pretrained_cfg(name, allow_unregistered=True)
        return None if found is None else asdict(found)
    if not name.startswith(ELSEWHERE[0]):
        return None
    try:
        config, _, _ = timm.models.load_model_config_from_hf(name.removeprefix(ELSEWHERE[0]))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{label}: cannot load {name!r} from the hub: {first_line(error)}",
            hint="offline, name an architecture of timm, with pretrained: false or weights: of it",
            key=(*key, "architecture"),
        ) from error
    return config if {"input_size", "mean", "std"} <= config.keys() else None


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel; their mean for each if the number of channels differs."""
    same = len(values) == channels
    return tuple(values) if same else (sum(values) / len(values),) * channels


def _of_torchvision(layer: TorchvisionLayer, key: Key) -> ImagePreprocessing | None:
    """Return the image settings of a torchvision network's default weights."""
    models = require("torchvision.models", extra="vision")
    check_torchvision(layer, label=_label(layer, key), key=key)
    if is_detector(layer):
        return None  # it resizes and normalises images itself
    transforms = models.get_model_weights(layer.architecture).DEFAULT.transforms()
    # Networks for segmentation take the whole image, made smaller.
    side = getattr(transforms, "crop_size", getattr(transforms, "resize_size", [0]))[0]
    return ImagePreprocessing(side, side, tuple(transforms.mean), tuple(transforms.std))


def _label(layer: TransformersLayer | TimmLayer | TorchvisionLayer, key: Key) -> str:
    """Return a layer's name in messages, as `layer_label` does."""
    return f"layer {layer.name or str(key[-1])!r} ({layer.type})"
