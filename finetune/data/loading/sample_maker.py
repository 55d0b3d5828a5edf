"""Make single samples from raw columns: what is read, the steps in order, what is skipped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.data.batches import seed_for
from finetune.data.images import Images
from finetune.data.kept_samples import KeptSamples, is_of_tensors
from finetune.data.samples import Prepared, Sample
from finetune.data.steps.pipeline import as_value
from finetune.data.steps.transforms import Step
from finetune.data.steps.vision import Vision, is_alike
from finetune.data.table import DECODED
from finetune.errors import DataError
from finetune.randomness import random_state_kept, seed_all

_IMAGE_AXES = 3
_MOST_SKIPPED = 100
"""Samples one after another that are skipped at most: beyond that the data is not what it seems."""
_KEEP_SIZE = frozenset(
    {
        *("RandomHorizontalFlip", "RandomVerticalFlip", "ColorJitter", "RandomPhotometricDistort"),
        *("RandomGrayscale", "RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize"),
        *("RandomInvert", "RandomPosterize", "RandomSolarize", "RandomErasing", "GaussianBlur"),
        *("GaussianNoise", "RandomChannelPermutation"),
    }
)
"""Random transforms of torchvision that leave an image as large as it was."""
_SIZES_READ = 200
"""Number of image headers to read for their sizes: opening a file takes some 0.1 ms."""


@dataclass(frozen=True, slots=True)
class Making:
    """The steps that make samples, in this order.

    Args:
        once: Deterministic steps before the first random one.
        drawn: Steps from the first random one on.
        batched: Last steps, which run on whole batches and give each image the same bits as alone.
        identity: Text that identifies the steps, for the fingerprint of the data.
        seed: Seed of the random steps.
        skips: Whether the next sample takes the place of one whose image cannot be read.
        pads: Whether images of different sizes are padded to the largest one of a batch.
    """

    once: Sequence[Step] = ()
    drawn: Sequence[Step] = ()
    batched: Sequence[Vision] = ()
    identity: str = ""
    seed: int = 0
    skips: bool = False
    pads: bool = False


class Made(NamedTuple):
    """Samples made for a batch."""

    rows: Tensor
    """Position of each sample, which is another one than asked for where that is skipped."""
    samples: list[Sample]
    skipped: dict[int, str]
    """Why a sample that was asked for is skipped, by its position."""


class SampleMaker:
    """Makes the samples of one split.

    Args:
        columns: The raw columns.
        making: The steps.
        name: Name of the split.
        place: Names a sample for a message; None where nobody knows where it is.

    Raises:
        DataError: the first sample cannot be made.
    """

    def __init__(
        self,
        columns: Mapping[str, Prepared],
        making: Making,
        name: str,
        place: Callable[[int], str] | None,
    ) -> None:
        self.columns = dict(columns)
        self._images = [column for column in columns.values() if isinstance(column, Images)]
        files = [column for column in columns.values() if isinstance(column, DECODED)]
        self.contents = [column.contents for column in files]
        """What is known of each column of files; None where they are not identified."""
        named = {n: column for n, column in columns.items() if isinstance(column, Images)}
        has_classes = any(column.classes is not None for column in self._images)
        self._masked = named if has_classes else {}
        """Images of a sample with the masks of them; empty where no mask has classes."""
        self._making, self._name, self._place = making, name, place
        self._kept: KeptSamples | None = None
        self._at_hand: dict[int, Sample] = {}
        chosen = (self._readable(row, self.made_once) for row in (0, *self._of_other_sizes()))
        first = {row: sample for row, sample, _ in chosen}
        self.first_rows = tuple(first)
        """The first sample, and for each column of images one of another size, if there is one."""
        # Until the samples are in use: to set them up, the first ones are looked at again.
        self._at_hand = {row: one for row, one in first.items() if is_of_tensors(one)}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def image_name(self) -> Callable[[int], str] | None:
        """Names the image of a sample for a message; None where a sample has none, or several."""
        if len(self._images) != 1:
            return None
        name = self._images[0].name
        return lambda row: repr(name(row))

    def image_sizes(self) -> frozenset[tuple[int, int]] | None:
        """Return height and width of all images after all steps; None if only making them tells.

        It reads the header of every image, and makes one sample of each size.
        """
        if not self._tells_sizes():
            return None
        alike = dict[tuple[tuple[int, int] | None, ...], list[int]]()
        for row in range(len(self)):
            alike.setdefault(tuple(self._sizes_before(row)), []).append(row)
        make, found = partial(self._with_drawn, view=0), set[tuple[int, int]]()
        with random_state_kept():
            for rows in alike.values():
                made = (self._readable(row, make) for row in rows)
                # In place of one that is skipped there is another one, maybe of another size.
                whole = next((sample for _, sample, reason in made if reason is None), {})
                images = [as_value(whole[name]) for name in self.columns if name in whole]
                found |= {(one.shape[1], one.shape[2]) for one in images if one.ndim == _IMAGE_AXES}
        return frozenset(found)

    def _tells_sizes(self) -> bool:
        """Tell whether images that have one size before all steps have one size behind them."""
        once, drawn = self._making.once, self._making.drawn
        # From the end: behind a step that gives one size, no step before it matters.
        for place, step in reversed([*enumerate((*once, *drawn))]):
            # Steps of the user's own may cut each image otherwise, as may random ones.
            if not isinstance(step, Vision):
                return False
            if step.gives_one_size:
                return True
            if place >= len(once) and step.name not in _KEEP_SIZE and not is_alike(step.name):
                return False
        return True

    def _sizes_before(self, row: int) -> Iterator[tuple[int, int] | None]:
        """Yield width and height of each image of a sample before any step."""
        for column in self._images:
            size = self._size(column, row)
            is_turned = size is not None and column.header(row).lies
            yield size[::-1] if size is not None and is_turned else size

    def keep_in(self, kept: KeptSamples | None) -> None:
        """Keep samples after the `once` steps in `kept` from now on; None to make them anew."""
        self._kept, self._at_hand = kept, {}

    @property
    def is_made_once(self) -> bool:
        """Whether a sample may be kept, after the `once` steps or after decoding.

        Not if a step of the user comes next, which takes images of Pillow.
        """
        if self._making.once:
            return True
        has_files = any(isinstance(column, DECODED) for column in self.columns.values())
        following = self._making.drawn[:1]
        return has_files and all(isinstance(step, Vision) for step in following)

    def made(self, rows: Tensor, view: int) -> Made:
        """Make the samples at `rows`, all with the draw `view` of the random steps.

        With `on_error: skip` the next sample that can be made takes the place of one that cannot.

        Raises:
            DataError: a sample cannot be made, and skipping is off or has come to its limit.
        """
        is_drawn = bool(self._making.drawn)
        make = partial(self._with_drawn, view=view) if is_drawn else self.made_once
        with random_state_kept() if is_drawn else nullcontext():
            found = [self._readable(row, make) for row in rows.tolist()]
        skipped = {
            row: reason
            for row, (_, _, reason) in zip(rows.tolist(), found, strict=True)
            if reason is not None
        }
        taken = torch.tensor([row for row, _, _ in found], dtype=torch.int64)
        return Made(taken, [sample for _, sample, _ in found], skipped)

    def made_once(self, row: int) -> Sample:
        """Return a sample after the `once` steps, kept or made anew.

        Raises:
            DataError: the sample cannot be made.
        """
        if row in self._at_hand:
            # Copies, since later steps may work in place.
            return {name: value.clone() for name, value in self._at_hand[row].items()}
        if self._kept is not None and (kept := self._kept.get(row)) is not None:
            return kept
        raw = {name: self._read(column, row) for name, column in self.columns.items()}
        self._refuse_other_size(raw, row)
        sample: dict[str, Any] = self._after(raw, self._making.once, row)
        if self.is_made_once:
            # Later steps must see the same types, whether the sample was kept or not.
            sample = {name: as_value(value) for name, value in sample.items()}
        if self._kept is not None:
            self._kept.put(row, sample)
        return sample

    def _read(self, column: Prepared, row: int) -> Any:
        """Return one value of a sample; errors name its row and file."""
        try:
            return column[row]
        except DataError as error:
            # A number that is no class is a fault of the config or of the labels, not of the file.
            error.is_of_image = isinstance(column, Images) and not error.is_of_classes
            raise self._placed(error, row) from error

    def _refuse_other_size(self, raw: Sample, row: int) -> None:
        """Raise `DataError` if a mask with classes has another size than its image."""
        if not self._masked:
            return
        images = [name for name, column in self._masked.items() if column.mode != "mask"]
        sizes = {_size_of(raw[name]) for name in images}
        for name, column in self._masked.items():
            if column.classes is None or not images or _size_of(raw[name]) in sizes:
                continue
            image = self._masked[images[0]].name(row)
            fault = DataError(
                f"the mask {column.name(row)!r} is of {_size_of(raw[name])} pixels, its image "
                f"{image!r} of {_size_of(raw[images[0]])}",
                hint="a mask has one pixel for each pixel of its image",
                key=("data", "target"),
            )
            raise self._placed(fault, row)

    def _with_drawn(self, row: int, view: int) -> Sample:
        """Return a sample after all steps, the random ones with the draw `view`."""
        # Before all steps: what a sample draws depends on nothing that came before it.
        seed_all(seed_for("sample", self._making.seed, view, row))
        return self._after(self.made_once(row), self._making.drawn, row)

    def _readable(self, row: int, make: Callable[[int], Sample]) -> tuple[int, Sample, str | None]:
        """Return a sample with its position; if its image is skipped, the next one.

        Which one that is depends on the data alone, not on processes or earlier batches.

        Returns:
            The position, the sample, and why the one at `row` is skipped, or None.

        Raises:
            DataError: it cannot be made, and is not skipped, or no other one can. A fault of a
                transform is never skipped: it would be of all samples, or of the code.
        """
        reason: str | None = None
        for step in range(min(len(self), _MOST_SKIPPED)):
            taken = (row + step) % len(self)
            try:
                return taken, make(taken), reason
            except DataError as error:
                if not (self._making.skips and error.is_of_image):
                    raise
                # The first reason is that of the sample that was asked for.
                reason = reason or error.message
        raise DataError(f"none of {step + 1} samples one after another can be read: {reason}")

    def _of_other_sizes(self) -> list[int]:
        """Return for each column of images the first one that differs in size from the first."""
        found = []
        for column in self._images:
            sizes = (self._size(column, row) for row in range(min(len(column), _SIZES_READ)))
            known = [(row, size) for row, size in enumerate(sizes) if size is not None]
            found += [row for row, size in known if size != known[0][1]][:1]
        return found

    def _size(self, column: Images, row: int) -> tuple[int, int] | None:
        """Return the size of an image by its header; None if it is skipped."""
        try:
            return column.header(row).size
        except DataError:
            if not self._making.skips:
                raise
            return None

    def _after(self, sample: Sample, steps: Sequence[Step], row: int) -> Sample:
        """Return a sample after some steps; errors name its row and file."""
        try:
            for step in steps:
                sample = step(sample)
        except DataError as error:
            raise self._placed(error, row) from error
        return sample

    def _placed(self, error: DataError, row: int) -> DataError:
        """Return an error of the data with row and file of the sample."""
        error.unread = (self._name, row)
        if self._place is not None:
            error.message += f", in {self._place(row)}"
        return error


def _size_of(image: Any) -> tuple[int, ...]:
    """Return height and width of a decoded image or mask."""
    return tuple(image.shape) if isinstance(image, Tensor) else tuple(image.size[::-1])
