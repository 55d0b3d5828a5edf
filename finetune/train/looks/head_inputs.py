"""What enters the head, sample by sample, for TensorBoard's projector.

Letters: B samples of a batch, N of those that are shown, D numbers of a sample.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.batches import Batch, Samples
from finetune.errors import ModelError
from finetune.models.shapes import describe
from finetune.tracking.tracker import Embedding, Tracker

_MOST_ROWS, _MOST_NUMBERS = 1_000, 500_000
"""Limits on the rows, and on all their numbers: each takes about eight bytes of text."""
Evaluate = Callable[[Callable[[Any, Batch], None]], Any]
"""Evaluates the validation samples, and passes outputs and batch of each pass to its argument."""


@dataclass(slots=True)
class _LastInput:
    """The last layer with weights in the latest forward pass, and its input."""

    layer: str = ""
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInputs:
    """Writes the input of the last layer with weights, for some validation samples."""

    model: nn.Module
    samples: Samples
    names: Sequence[str]
    """Classes, by number."""
    words: Callable[[int], Sequence[str]]
    """Returns the text of a sample by its position; empty without one."""
    images: Callable[[int], Sequence[np.ndarray]]
    """Returns the images of a sample; none without one."""
    tracker: Tracker
    message_once: Callable[[str], None]

    def write(self, evaluate: Evaluate, step: int) -> None:
        """Evaluate once more, and pass what enters the head to the tracker.

        Args:
            evaluate: Runs every layer itself: of layers that the activation cache answers, the
                inputs are not there.
            step: The step of the weights.

        Raises:
            ModelError: what enters the head is not a row of numbers for each sample.
        """
        found: dict[int, np.ndarray] = {}
        targets: dict[int, str] = {}
        wanted = _spread(len(self.samples), _MOST_ROWS)

        with _listening(self.model) as taken:

            def collect(_: Any, batch: Batch) -> None:
                rows = _rows(taken, batch)
                of_each = self._targets(batch)
                for place, number in enumerate(batch.indices.tolist()):
                    if number in wanted:
                        found[number] = rows[place]
                        targets[number] = of_each[place]

            evaluate(collect)
        self._leave_out_not_finite(found)
        width = max((len(row) for row in found.values()), default=1)
        kept = _spread(len(found), max(1, _MOST_NUMBERS // width))
        numbers = [number for place, number in enumerate(sorted(found)) if place in kept]
        if numbers:
            self.tracker.embedding(self._embedding(numbers, found, targets, taken.layer), step)

    def _leave_out_not_finite(self, found: dict[int, np.ndarray]) -> None:
        """Remove rows with NaN or infinity, which cannot be drawn, and tell how many."""
        odd = [number for number, row in found.items() if not np.isfinite(row).all()]
        if odd:
            count = f"{len(odd)} of {len(found)} samples are left out"
            self.message_once(f"embeddings for the projector: {count}, their rows are not finite")
        for number in odd:
            del found[number]

    def _embedding(
        self,
        numbers: Sequence[int],
        found: dict[int, np.ndarray],
        targets: dict[int, str],
        layer: str,
    ) -> Embedding:
        """Return the rows of some samples with what is known about each."""
        columns = {"target": [targets[number] for number in numbers]}
        columns |= {"sample": [str(number) for number in numbers]}
        texts = [" ".join(self.words(number)[:8]) for number in numbers]
        columns |= {"text": texts} if any(texts) else {}
        # Of a text there is nothing to see, and to make its tokens again would take a while.
        has_images = not any(texts) and bool(self.images(numbers[0]))
        images = [self.images(number)[0] for number in numbers] if has_images else []
        return Embedding(layer, np.stack([found[n] for n in numbers]), columns, images)

    def _targets(self, batch: Batch) -> list[str]:
        """Return the target of each sample in words; empty where it is more than one number."""
        target = batch.target
        if target is None or target.ndim != 1:
            return [""] * len(batch)
        if target.is_floating_point():
            return [f"{value:.4g}" for value in target.tolist()]
        return [self.names[n] if n < len(self.names) else str(n) for n in target.tolist()]


@contextmanager
def _listening(model: nn.Module) -> Iterator[_LastInput]:
    """Yield what receives the input of the last layer with weights that runs in the block."""
    taken = _LastInput()

    def take(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            # Each layer replaces the one before, so that a single tensor is held.
            taken.layer, taken.value = name, args[0] if args else None

        return hook

    handles = [
        module.register_forward_pre_hook(take(name))
        for name, module in model.named_modules()
        # Of its own: a container takes what its first layer takes, and is no head.
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _rows(taken: _LastInput, batch: Batch) -> np.ndarray:
    """Return what entered the head as `(B, D)` float32."""
    value = taken.value
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(batch):
        layer = f"layer {taken.layer!r}" if taken.layer else "no layer with weights"
        raise ModelError(
            f"{layer} takes {describe(value)}, not a row of numbers for each of "
            f"{len(batch)} samples"
        )
    rows: np.ndarray = value.detach().to("cpu", torch.float32).numpy().copy()
    return rows


def _spread(count: int, most: int) -> frozenset[int]:
    """Return positions among so many, evenly spread, at most so many of them."""
    return frozenset(np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist())
