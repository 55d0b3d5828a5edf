"""The image processor in a folder for transformers: one that does what the run's transforms do."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from finetune.data.steps.vision import Vision
from finetune.errors import FinetuneError
from finetune.export.hub_inputs import OTHERWISE, Example, Reader, Rows, cannot_hold
from finetune.export.source import ExportSource
from finetune.importing import require

_ORDER = ("Resize", "CenterCrop", "ToDtype", "Normalize")
"""Transforms of torchvision that an image processor knows, in its order."""
_RESAMPLE = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}
"""Numbers by which Pillow, and with it image processors, name ways to resize."""


@dataclass(frozen=True, slots=True)
class HubImages:
    """Images that an image processor resizes, crops and normalises."""

    column: str
    size: tuple[int, int]
    """Height and width of what the network takes."""
    processor: str
    """Class of the image processor."""
    settings: dict[str, Any]
    """What it is made with."""

    @classmethod
    def of(cls, source: ExportSource, *, of_pixels: bool) -> "HubImages":
        """Return the image processor that stands for the transforms of a run.

        Args:
            source: The run.
            of_pixels: Whether the network says something of each pixel.

        Raises:
            FinetuneError: no image processor does what they do.
        """
        (column, *others), specs = source.run.facts.inputs, source.run.specs
        if others:
            raise cannot_hold("the network takes several images, and pipeline() hands it one")
        channels, height, width = specs[column].shape
        if channels != 3:
            raise cannot_hold(
                f"the network takes images of {channels} channels, and pipeline() makes 3 of all",
                "train it with num_channels 3, and {type: RGB} among data.transforms",
            )
        steps = [planned.step for planned in source.predictor.preparing.steps.other]
        settings = processor_settings(steps, crops=not of_pixels)
        # One that brings masks back to the size of the image; else the plainest.
        name = "SegformerImageProcessor" if of_pixels else "ViTImageProcessor"
        return cls(column, (height, width), name, settings)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in front of the network whose work it does: none."""
        return ()

    @property
    def about(self) -> str:
        """How it prepares samples, as the end of a sentence."""
        size = self.settings.get("crop_size") or self.settings.get("size")
        how = "takes images of" if size is None else "brings images to"
        return (
            f"its image processor, which needs torchvision, {how} {self.size[0]} x {self.size[1]} "
            "pixels; files with transparency or 16 bits are to be made RGB of 8 bits before"
        )

    @property
    def doubt(self) -> str | None:
        """Hint on samples that pipeline() may read otherwise than the run."""
        return (
            "pipeline() drops transparency, and cuts images of 16 bits to 8, where a run lays them "
            "on a colour and scales them: save such images as RGB of 8 bits, and train anew"
        )

    def write(self, module: Any, folder: Path, transformers: Any) -> None:
        """Write the image processor."""
        getattr(transformers, self.processor)(**self.settings).save_pretrained(folder)

    def reader(self, folder: Path, transformers: Any) -> Reader:
        """Load the image processor from a folder."""
        where = {"local_files_only": True, "trust_remote_code": False}
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **where)
        opened = transformers.image_utils.load_image

        def read(rows: Rows) -> list[dict[str, Any]]:
            images = [opened(_picture(value)) for value in rows[self.column]]
            return [dict(processor(images=images, return_tensors="pt"))]

        return read

    def example(self, pipeline: str) -> Example:
        """Return code that calls a pipeline of this name."""
        return Example(
            f'Image.new("RGB", ({self.size[1]}, {self.size[0]}))', ("from PIL import Image",)
        )


def processor_settings(steps: Sequence[Any], *, crops: bool) -> dict[str, Any]:
    """Return the settings of an image processor that does what steps do to images of bytes.

    It resizes, crops, divides by 255 and normalises, in this order, and makes all images RGB.

    Args:
        steps: The steps of evaluation.
        crops: Whether the image processor can crop.

    Raises:
        FinetuneError: it cannot do what they do.
    """
    for step in steps:
        name = step.name if isinstance(step, Vision) else type(step).__name__
        if name not in (*_ORDER, "RGB") or (name == "CenterCrop" and not crops):
            raise _cannot(f"the transform {name}")
    # RGB may come at any place: the processor makes images RGB before all else.
    found = [step.name for step in steps if step.name != "RGB"]
    if found != sorted(set(found), key=_ORDER.index):
        raise _cannot(f"{', '.join(found)} in this order")
    by_name = {step.name: step.transform for step in steps}
    settings: dict[str, Any] = {
        "do_convert_rgb": True,
        **_resize(by_name.get("Resize")),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": "Normalize" in by_name,
    }
    # Without ToDtype, bytes become float32 from 0 to 1 by themselves.
    if (to := by_name.get("ToDtype")) and (to.dtype != torch.float32 or not to.scale):
        raise _cannot("ToDtype with other values than float32 and scale: true")
    if (normalize := by_name.get("Normalize")) is not None:
        settings |= {"image_mean": list(normalize.mean), "image_std": list(normalize.std)}
    if (crop := by_name.get("CenterCrop")) is not None:
        settings |= _crop(crop, by_name.get("Resize"))
    return settings


def _resize(resize: Any) -> dict[str, Any]:
    """Return the settings for a `Resize`, or for none."""
    if resize is None:
        return {"do_resize": False}
    way = str(getattr(resize.interpolation, "value", resize.interpolation)).lower()
    if way not in _RESAMPLE or resize.size is None or resize.max_size is not None:
        raise _cannot(f"Resize with interpolation {way}, size {resize.size} and max_size")
    # Image processors always average where they make an image smaller.
    if way != "nearest-exact" and not resize.antialias:
        raise _cannot("Resize with antialias: false")
    sides = ("height", "width") if len(resize.size) == 2 else ("shortest_edge",)
    size = dict(zip(sides, resize.size, strict=True))
    return {"do_resize": True, "size": size, "resample": _RESAMPLE[way]}


def _crop(crop: Any, resize: Any) -> dict[str, Any]:
    """Return the settings for a `CenterCrop` behind a `Resize`.

    torchvision rounds the place of the crop to the nearest pixel, and halves to even ones; image
    processors round it down.
    """
    height, width = crop.size
    if resize is None or len(resize.size) != 2:
        raise _cannot(
            "CenterCrop without a Resize to height and width before it, whose place is rounded "
            "otherwise there for images of some sizes",
        )
    gaps = (resize.size[0] - height, resize.size[1] - width)
    if any(gap < 0 or round(gap / 2) != gap // 2 for gap in gaps):
        raise _cannot(
            f"CenterCrop to {height} x {width} of {resize.size[0]} x {resize.size[1]} pixels, "
            "whose place is rounded otherwise there"
        )
    return {"do_center_crop": True, "crop_size": {"height": height, "width": width}}


def _cannot(what: str) -> FinetuneError:
    """Return the error for a step that no image processor has."""
    return cannot_hold(
        f"the run prepares its images by {what}; an image processor does "
        f"{', '.join(_ORDER)} in this order",
        f"data.evaluation_transforms names the steps of a run; {OTHERWISE}",
    )


def _picture(value: Any) -> Any:
    """Return an image as a user would hand it to `pipeline()`: a path, or a PIL image.

    Raises:
        FinetuneError: it is an array of other numbers than bytes.
    """
    pil = require("PIL.Image", extra="vision")
    if isinstance(value, dict):
        value = value["bytes"]
    if isinstance(value, bytes):
        return pil.open(BytesIO(value))
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype != torch.uint8:
        raise cannot_hold(
            f"the run's images are arrays of {value.dtype}, and an image processor takes files or "
            "pixels of 8 bits"
        )
    array = value.movedim(0, -1).squeeze(-1) if value.ndim == 3 else value
    return pil.fromarray(array.contiguous().numpy())
