"""Steps on images: classes of `torchvision.transforms.v2`, and a network's pretraining.

Letters: C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config.transform_keys import VisionTransform
from finetune.data.media.decoding import image_tensor, is_image, pixel_view
from finetune.data.media.pixel_classes import IGNORED
from finetune.data.targets.boxes import are_boxes, corners_of, with_corners
from finetune.errors import DataError, Key
from finetune.importing import require
from finetune.models.preprocessing import ImagePreprocessing

Room = Callable[[tuple[int, ...], torch.dtype], Tensor]

_ALIKE = frozenset({"CenterCrop", "Grayscale", "Normalize", "Pad", "RGB", "Resize", "ToDtype"})
"""Transforms that give each image of a batch the bits that they give it alone."""
_BYTES_FIRST = "put {type: ToDtype, dtype: float32, scale: true} before it"
"""Hint for a step that does not take images of bytes."""
_OF_ONE_SHAPE = frozenset({"Normalize", "ToDtype"})
"""Those of them that change no shape: they are left for the whole batch."""
_TO_A_SIZE = frozenset({"CenterCrop", "RandomCrop", "RandomResizedCrop", "Resize"})
"""Those that bring an image to a size; `Resize` only where it is given height and width."""
_SIDES = 2
_AT_ONCE_BYTES = 16 << 20
"""Bytes of a column that are transformed at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Vision:
    """One transform of torchvision, applied to one column."""

    column: str
    transform: Any
    name: str
    key: Key
    along: tuple[str, ...] = ()
    """Columns that move with the image, where a sample has them."""

    @property
    def takes_batches(self) -> bool:
        """Whether a batch of images gives the same bits as each image alone."""
        return self.name in _ALIKE and not self.along

    @property
    def gives_one_size(self) -> bool:
        """Whether this step gives images of all sizes one and the same size."""
        size = getattr(self.transform, "size", None)
        return self.name in _TO_A_SIZE and isinstance(size, Sequence) and len(size) == _SIDES

    @property
    def waits_for_batch(self) -> bool:
        """Whether it is done on whole batches: before it an image takes a quarter of the bytes."""
        return self.name in _OF_ONE_SHAPE and not self.along

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return one sample with its image transformed."""
        value = sample[self.column]
        # Resizing takes half the time pixel by pixel, and gives the same bytes.
        by_pixels = self.name == "Resize" and is_image(value)
        image = as_image(pixel_view(value) if by_pixels else value, self.column, self.key)
        self._refuse_noise_in_bytes(image)
        # Prediction has neither targets nor columns for the loss.
        along = [name for name in self.along if name in sample]
        others = [as_companion(sample[name], name, image, self.key) for name in along]
        try:
            # All in one call, so that one random draw moves all of them alike.
            moved = self.transform(image, *others) if others else (self.transform(image),)
            if by_pixels:
                moved = (_by_channels(moved[0]), *moved[1:])
            found = dict(zip((self.column, *along), moved, strict=True))
            return {**sample, **found, **_with_classes(sample, found, along)}
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{self.name} fails on an image of shape {tuple(image.shape)} and {_dtype(image)}: "
                f"{reason}",
                hint=_BYTES_FIRST if _wants_floats(image, reason) else None,
                key=self.key,
            ) from error

    def overwriting(self) -> "Vision":
        """Return the step as one that overwrites its image where it can; it gives the same bits."""
        if self.name != "Normalize":
            return self
        transform = copy(self.transform)
        transform.inplace = True
        return replace(self, transform=transform)

    def _refuse_noise_in_bytes(self, image: Tensor) -> None:
        """Raise if an erased box would be filled with what no byte holds.

        torchvision draws the noise of `value: random` as floats around 0, which bytes wrap around.
        """
        if self.name != "RandomErasing" or image.is_floating_point():
            return
        value = self.transform.value
        if value is None or not all(float(one).is_integer() and 0 <= one <= 255 for one in value):
            raise DataError(
                "RandomErasing fills images of bytes with whole numbers from 0 to 255, not with "
                f"{'noise' if value is None else list(value)}",
                hint=_BYTES_FIRST,
                key=self.key,
            )


def is_alike(name: str) -> bool:
    """Tell whether a transform gives each image of a batch the bits that it gives it alone."""
    return name in _ALIKE


def vision_step(
    node: VisionTransform, column: str, image: ImagePreprocessing | None, key: Key
) -> Vision:
    """Return the transform that a config node names.

    `Normalize` without `mean` and `std` uses those of the network's pretraining.

    Raises:
        DataError: the class does not accept an argument.
    """
    v2 = require("torchvision.transforms.v2", extra="vision")
    arguments = {name: _argument(name, value) for name, value in node.arguments.items()}
    if node.type == "Normalize" and not {"mean", "std"} & arguments.keys():
        if image is None:
            raise DataError("needs mean and std: the model names none", key=key)
        arguments |= {"mean": list(image.mean), "std": list(image.std)}
    try:
        transform = getattr(v2, node.type)(**arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{node.type} does not take these arguments: {reason}", key=key) from error
    return Vision(column, transform, node.type, key, node.with_ or ())


@dataclass(frozen=True, slots=True)
class _IgnoringCrop:
    """A crop that brings pixels without a class into masks that are smaller than the crop.

    torchvision's CenterCrop has no `fill`: it puts zeros around images and masks.
    """

    transform: Any

    @property
    def size(self) -> Any:
        """Height and width after the crop."""
        return self.transform.size

    def __call__(self, image: Any, *others: Any) -> Any:
        """Return the image, and all that moves along with it, cropped."""
        if not others:
            return self.transform(image)
        # Shifted up and down again, so that the zeros around a mask come out as `IGNORED`.
        moved = self.transform(image, *(_shifted(other, -IGNORED) for other in others))
        return (moved[0], *(_shifted(other, IGNORED) for other in moved[1:]))


def _shifted(value: Any, number: int) -> Any:
    """Return a mask with a number added to each pixel; anything else, and bytes, as they are."""
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    if not isinstance(value, tv_tensors.Mask) or value.dtype == torch.uint8:
        return value
    return tv_tensors.wrap(value + number, like=value)


def ignoring_outside(step: Vision, node: VisionTransform) -> Vision:
    """Return a step that brings pixels without a class into masks from outside of the image.

    torchvision fills images and masks with one value, which in a mask would be some class.
    """
    if step.name == "CenterCrop":
        return replace(step, transform=_IgnoringCrop(step.transform))
    if "fill" not in signature(type(step.transform)).parameters:
        return step
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    arguments = {name: _argument(name, value) for name, value in node.arguments.items()}
    given = arguments.get("fill", 0)
    arguments["fill"] = {tv_tensors.Mask: IGNORED, tv_tensors.Image: given, "others": given}
    return replace(step, transform=type(step.transform)(**arguments))


def transform_all(images: Tensor, steps: Sequence[Vision], room: Room) -> Tensor:
    """Return all images of a column, `(N, C, H, W)` or `(N, H, W)`, transformed by `steps`.

    Args:
        images: The column, at least one image.
        steps: The transforms in order, all on the same column and with `takes_batches`.
        room: Returns an uninitialised tensor for a shape and a dtype.

    Raises:
        DataError: a step fails on the first image, and so on all of them.
    """
    # The first image alone tells shape and type of the result, for which memory is taken once.
    sample = {steps[0].column: images[0]}
    for step in steps:
        sample = step(sample)
    first = sample[steps[0].column]
    result = room((len(images), *first.shape), first.dtype)
    per_image = max(value.numel() * value.element_size() for value in (images[0], first))
    size = max(1, _AT_ONCE_BYTES // max(1, per_image))
    # In portions that stay in the processor's cache, which is faster than all at once.
    for part, whole in zip(images.split(size), result.split(size), strict=True):
        whole.copy_(transform_batch(part, steps))
    return result


def transform_batch(images: Tensor, steps: Sequence[Vision]) -> Tensor:
    """Return the images of a batch, `(B, C, H, W)` or `(B, H, W)`, transformed by `steps`.

    Raises:
        DataError: a step fails.
    """
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    batch: Tensor = images.unsqueeze(1) if images.ndim == 3 else images
    for step in steps:
        # As `Image`, like a single one, so that each transform treats both alike.
        batch = step({step.column: tv_tensors.Image(batch)})[step.column]
    return batch


def as_image(value: Any, column: str, key: Key) -> Any:
    """Return a sample's value as an image tensor of torchvision, `(C, H, W)`.

    Raises:
        DataError: it is not an image, or has whole numbers other than uint8.
    """
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    if isinstance(value, tv_tensors.Image):
        return value
    if is_image(value):
        value = image_tensor(value)
    if not isinstance(value, Tensor) or value.ndim not in (2, 3):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"column {column!r} holds no image, but {found}", key=key)
    # torchvision scales int64 by 2^63, and an image would become black.
    if not value.is_floating_point() and value.dtype != torch.uint8:
        raise DataError(
            f"column {column!r} holds images of {_dtype(value)}; uint8 or float32 are known",
            hint="where they stand for 0..255, give the column of the source dtype: uint8",
            key=key,
        )
    return tv_tensors.Image(value if value.ndim == 3 else value.unsqueeze(0))


def as_companion(value: Any, column: str, image: Tensor, key: Key) -> Any:
    """Return a value that moves along with an image, as torchvision's class for it.

    Images are moved like the first one. Whole numbers `(H, W)` are a mask, which is never blended;
    floats `(K, 4)` are boxes as x1, y1, x2, y2, `(K, 5)` boxes with the number of a class, and
    `(K, 2)` points.

    Raises:
        DataError: it is none of these, or a mask of another size than the image.
    """
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    if isinstance(value, tv_tensors.TVTensor):
        return value
    if is_image(value) or (isinstance(value, Tensor) and value.ndim == 3):
        return as_image(value, column, key)
    size = tuple(image.shape[-2:])
    is_matrix = isinstance(value, Tensor) and value.ndim == 2
    if is_matrix and not value.is_floating_point():
        if tuple(value.shape) != size:
            raise DataError(
                f"the mask in column {column!r} is of {tuple(value.shape)} pixels, its image of "
                f"{size}",
                key=key,
            )
        return tv_tensors.Mask(value)
    if are_boxes(value):
        value = corners_of(value)
    if is_matrix and value.shape[1] == 4:
        return tv_tensors.BoundingBoxes(value, format="XYXY", canvas_size=size)
    if is_matrix and value.shape[1] == 2:
        return tv_tensors.KeyPoints(value, canvas_size=size)
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise DataError(
        f"column {column!r} cannot move with an image: it holds {found}",
        hint="masks are whole numbers (H, W), boxes floats (K, 4), points floats (K, 2)",
        key=key,
    )


def _with_classes(
    sample: dict[str, Any], moved: dict[str, Any], along: Sequence[str]
) -> dict[str, Tensor]:
    """Return the boxes with classes among what moved along, with their classes again."""
    return {
        name: with_corners(sample[name], moved[name].as_subclass(Tensor))
        for name in along
        if are_boxes(sample[name])
    }


def _by_channels(image: Tensor) -> Tensor:
    """Return an image with one channel after another in memory, as later steps expect it."""
    tv_tensors = require("torchvision.tv_tensors", extra="vision")
    # By numpy, which takes half of torch's time for so few bytes.
    ordered: Tensor = tv_tensors.Image(
        torch.from_numpy(np.ascontiguousarray(image.as_subclass(Tensor).numpy()))
    )
    return ordered


def _argument(name: str, value: Any) -> Any:
    """Return the object that torchvision wants for a text, as in `interpolation: bilinear`."""
    if name == "dtype" and isinstance(value, str):
        return getattr(torch, value, value)
    if name == "interpolation" and isinstance(value, str):
        modes = require("torchvision.transforms.v2", extra="vision").InterpolationMode
        return next((mode for mode in modes if mode.value == value.lower()), value)
    if name == "policy":
        return require("torchvision.transforms.v2", extra="vision").AutoAugmentPolicy(value)
    return value


def _wants_floats(image: Tensor, reason: str) -> bool:
    """Tell whether torchvision refuses an image because it is one of bytes."""
    return not image.is_floating_point() and "float" in reason


def _dtype(values: Tensor) -> str:
    """Return the name of a tensor's type, without `torch.`."""
    return str(values.dtype).removeprefix("torch.")
