"""Pictures of what the network gets wrong, from an evaluation that is made anyway."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.config.tracking import TrackingConfig
from finetune.config.train import Every
from finetune.data.batches import Batch, Samples
from finetune.data.table import Listed, Table
from finetune.data.targets.words import words_of
from finetune.errors import FinetuneError
from finetune.pictures.drawing import Picture, drawn
from finetune.pictures.movement import draw_movement
from finetune.runs.background import Worker
from finetune.runs.kept_pictures import KeptPicture
from finetune.runs.progress import Progress
from finetune.tracking.tracker import Tracker
from finetune.train.block_figures import BlockFigures
from finetune.train.looks.head_inputs import Evaluate, HeadInputs
from finetune.train.looks.seen import MOST_WORDS, Inputs, Seen
from finetune.train.looks.seen_later import SeenLater

_MOST_COLUMNS = 12
_MOST_IMAGES = 3
"""Images of one sample that are shown: a triplet has three."""


@dataclass(slots=True, kw_only=True)
class Looking:
    """Collects evaluations of the validation samples, and draws those that are due.

    Samples are fetched at once; pictures are drawn in a thread meanwhile.
    """

    settings: TrackingConfig
    new_seen: Callable[[], Seen | None]
    """Makes what collects one evaluation; None for a task without pictures."""
    samples: Samples | None
    table: Table | None
    """The validation samples before any transform."""
    blocks: BlockFigures
    tracker: Tracker
    keep: Callable[[Iterable[KeptPicture]], None]
    """Keeps the latest pictures in the run folder, for the page about the run."""
    head_inputs: HeadInputs | None
    """Writes what enters the head; None if nobody asks for it."""
    message_once: Callable[[str], None]
    steps_per_epoch: Callable[[], int]
    worker: Worker = field(default_factory=lambda: Worker(in_thread=True))
    _kept: tuple[int, SeenLater] | None = None
    """The evaluation of the weights that would be used now, and its step."""
    _drawn_at: int = 0
    _pictures: dict[str, KeptPicture] = field(default_factory=dict)
    _is_off: bool = False
    _is_form_known: bool = False
    """Whether a batch was taken: the outputs have the form that pictures need."""
    _fault: str | None = None
    """Why a picture could not be drawn."""

    def begin(self) -> SeenLater | None:
        """Return what is to collect an evaluation; None if no picture will be drawn of it."""
        if self._is_off or not self._is_wanted or self.samples is None:
            return None
        seen = self.new_seen()
        return None if seen is None else SeenLater(seen)

    def collect(self, seen: SeenLater, outputs: Any, batch: Batch) -> None:
        """Add a batch to what is seen; if the outputs are of another form, give up on pictures."""
        if self._is_off:
            return
        try:
            if self._is_form_known:
                seen.keep(outputs, batch)
            else:
                # The first batch at once: outputs of another form are told now, not at the end.
                seen.add(outputs, batch)
                self._is_form_known = True
        except (ValueError, RuntimeError, IndexError, AttributeError, TypeError) as error:
            # A task of the user's own losses may have outputs of any form: no reason to stop.
            self._is_off = True
            first = str(error).partition("\n")[0]
            self.message_once(f"no pictures of the validation samples: {first}")

    def evaluated(self, seen: SeenLater | None, progress: Progress) -> None:
        """Keep an evaluation if its weights are the ones in use, and draw it if that is due."""
        if seen is None or self._is_off:
            return
        if progress.step_in_use == progress.step:
            self._kept = progress.step, seen
        if isinstance(self.settings.pictures_every, Every):
            every = self.settings.pictures_every
            steps = every.steps or (every.epochs or 1) * self.steps_per_epoch()
            if progress.step - self._drawn_at >= steps:
                self.draw(seen, progress.step)

    def lacks(self, progress: Progress) -> bool:
        """Tell whether `end` will evaluate the weights in use: they were not when it was due."""
        is_kept = self._kept is not None and self._kept[0] == progress.step_in_use
        return self.begin() is not None and not is_kept

    def end(self, progress: Progress, evaluate: Evaluate, evaluate_uncached: Evaluate) -> None:
        """Draw the weights in use, if they are not drawn yet, and how far blocks have moved.

        Args:
            progress: Where the run is.
            evaluate: Evaluates the validation samples with the weights in use and hands outputs
                and batches on. It is called if they were not evaluated since the run was resumed.
            evaluate_uncached: Does the same without the activation cache.
        """
        seen, step = self.begin(), progress.step_in_use
        if seen is not None:
            if self.lacks(progress):
                evaluate(partial(self.collect, seen))
            elif self._kept is not None:
                seen = self._kept[1]
            if not self._is_off and self._drawn_at != step:
                self.draw(seen, step)
        if self.head_inputs is not None:
            self._write_head_inputs(self.head_inputs, evaluate_uncached, step)
        # Of every task, also of one whose samples have no pictures.
        if self._is_wanted:
            with self._kept_apart():
                moved = self.blocks.moved()
                self.worker.run(partial(self._draw_movement, moved, progress.step))

    def _write_head_inputs(self, inputs: HeadInputs, evaluate: Evaluate, step: int) -> None:
        """Write what enters the head; tell why if that fails, as it is no reason to end a run."""
        try:
            inputs.write(evaluate, step)
        except Exception as error:  # noqa: BLE001 - whatever a network hands to its last layer
            self.message_once(f"no embeddings for the projector: {_why(error)}")

    def draw(self, seen: SeenLater, step: int) -> None:
        """Fetch the samples that are shown, then draw in the thread."""
        self._drawn_at = step
        with self._kept_apart():
            show = {number: self._inputs(number) for number in dict.fromkeys(seen.shown())}
            # Copies: training goes on while the thread draws.
            weights = self.blocks.histograms() if self.settings.histograms else {}
            self.worker.run(partial(self._draw, seen, show, weights, step))
        self._tell_fault()

    def settle(self) -> None:
        """Wait until all is drawn; an error is raised when it is closed."""
        self.worker.settle()

    def close(self) -> None:
        """Wait until all is drawn."""
        self.worker.close()
        self._tell_fault()

    @property
    def _is_wanted(self) -> bool:
        """Whether anybody gets pictures: a program, or the page about the run."""
        has_place = bool(self.settings.to) or self.settings.report
        return has_place and self.settings.pictures_every != "never"

    def _tell_fault(self) -> None:
        """Say once why a picture could not be drawn; not from the thread that draws."""
        if self._fault is not None:
            self.message_once(f"no more pictures of the validation samples: {self._fault}")

    def _draw(
        self, seen: SeenLater, show: dict[int, Inputs], weights: dict[str, np.ndarray], step: int
    ) -> None:
        """Draw everything of an evaluation."""
        with self._kept_apart():
            self._draw_all(seen, show, weights, step)

    @contextmanager
    def _kept_apart(self) -> Iterator[None]:
        """Give up on pictures if one cannot be drawn or kept: that is no reason to end a run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever odd values do to a drawing
            self._is_off, self._fault = True, _why(error)

    def _draw_all(
        self, seen: SeenLater, show: dict[int, Inputs], weights: dict[str, np.ndarray], step: int
    ) -> None:
        for name, picture in seen.pictures(show).items():
            self._image(f"validation/{name}", picture, step)
        for curve in seen.curves():
            self.tracker.pr_curve(f"validation/{curve.name}", curve.is_so, curve.score, step)
        for block, values in weights.items():
            self.tracker.histogram(f"weights/{block}", values, step)
        self._keep()

    def _draw_movement(self, moved: Mapping[str, float], step: int) -> None:
        with self._kept_apart():
            self._image("freeze/moved", draw_movement(moved), step)
            self._keep()

    def _image(self, tag: str, picture: Picture, step: int) -> None:
        """Hand on a picture to the trackers and to the page."""
        image = drawn(picture)
        self.tracker.image(tag, image, step)
        if self.settings.report:
            size = picture.width, picture.height
            self._pictures[tag] = KeptPicture(tag, picture.title, step, *size, image.png)

    def _keep(self) -> None:
        """Write what the page will show."""
        if self.settings.report:
            self.keep(self._pictures.values())

    def _inputs(self, number: int) -> Inputs:
        """Return the inputs of a sample as a person sees them."""
        texts = words_of_sample(self.table, number)
        if texts:
            return Inputs((), texts)
        assert self.samples is not None
        try:
            seen = images_of_sample(self.samples, number)
        except FinetuneError:  # it could be read before, or came from the cache
            return Inputs((), ("cannot be read now",))
        return Inputs(seen, ()) if seen else Inputs((), self._values(number))

    def _values(self, number: int) -> tuple[str, ...]:
        """Return the values of a sample's columns as `name=value`."""
        columns = {} if self.table is None else self.table.columns
        return tuple(
            f"{name}={_value(column[number])}"
            for name, column in list(columns.items())[:_MOST_COLUMNS]
        )


def _why(error: Exception) -> str:
    """Return the reason of an error in one line, with its type if it is none of ours."""
    if isinstance(error, FinetuneError):
        return error.in_one_line
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def words_of_sample(table: Table | None, number: int) -> tuple[str, ...]:
    """Return the words of a sample's texts, without one that holds an answer.

    Of that one the picture shows the words around the answer.
    """
    columns = {} if table is None else table.columns
    return tuple(
        word
        for column in columns.values()
        if isinstance(column, Listed) and column.kind != "context"
        for word in _words(column[number])
    )[:MOST_WORDS]


def images_of_sample(samples: Samples, number: int) -> tuple[np.ndarray, ...]:
    """Return the inputs of a sample that are images, as pixels; empty without one.

    Raises:
        FinetuneError: it cannot be read.
    """
    batch = samples.fetch(torch.tensor([number]))
    images = [as_image(values[0]) for values in batch.inputs.values()]
    return tuple(image for image in images if image is not None)[:_MOST_IMAGES]


def as_image(values: Tensor) -> np.ndarray | None:
    """Return an input as pixels `(H, W, 3)` uint8, from its least to its greatest number.

    Args:
        values: `(H, W)`, or `(C, H, W)` with one or three channels; None is returned for others.
    """
    if values.ndim == 2 and min(values.shape) > 1:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3) or not values.is_floating_point():
        return None
    finite = values.float().nan_to_num()
    low, high = finite.min(), finite.max()
    # An image of a single value has no range to divide by.
    scaled = (finite - low) / (high - low).clamp(min=1e-12) * 255
    pixels = scaled.round().byte().expand(3, -1, -1).movedim(0, -1)
    return pixels.contiguous().numpy()


def _words(cell: Any) -> list[str]:
    """Return the words of a text or of a list of words; none of anything else."""
    if isinstance(cell, str):
        return cell[: 20 * MOST_WORDS].split()
    return (words_of(cell) or [])[:MOST_WORDS]


def _value(value: Any) -> str:
    """Return a value of a table in a few letters."""
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.numel() == 1 else f"{tuple(value.shape)}"
    return str(value)[:20]
