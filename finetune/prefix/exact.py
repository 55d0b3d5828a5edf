"""Whether batches of a shape may be stored and answered: tried once for each, never assumed.

Kernels may round a sample otherwise in a batch of another size, or filled up to another length.
So rows are kept, and used, only of batches in whose shape every sample gets the bits that a full
batch, filled up to the longest sample, gives it.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import SystemRandom
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch
from finetune.prefix.outputs import tensors_in
from finetune.prefix.replay import Replay
from finetune.prefix.trace import same_bits, undisturbed

Shape = tuple[int, int | None]
"""Samples of a batch, and the tokens it is filled up to where there are tokens."""
_FEW = 4
"""Rows recomputed at an opening."""


class Split(Protocol):
    """What is asked of the samples of a split; `data.loader.Samples` is one."""

    views: int | None
    """How many views of a sample there are."""

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample, where there are tokens."""

    def length(self, indices: Tensor) -> int | None:
        """Return the tokens that a batch of the samples at `indices` is filled up to."""

    def fetch(
        self,
        indices: Tensor,
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return a batch of the samples at `indices`."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Rows of a store as the network gives them now."""

    rows: Tensor
    """Their numbers `(R,)`."""
    values: dict[str, Tensor]
    """By name of the output, `(R, ...)`, zeros behind the end of every sample."""
    length: int | None
    """Tokens they are filled up to, where there are tokens."""


class Trials:
    """The shapes of one split, as they are met.

    Args:
        model: The network, with the replay installed.
        replay: Records and answers its frozen calls.
        samples: The split.
        size: Samples of a full batch.
        in_order: Whether the split is cut in one and the same way every time, so that a sample
            never meets other company.
        autocast: The number format of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        replay: Replay,
        samples: Split,
        *,
        size: int,
        in_order: bool,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._model, self._replay, self._samples = model, replay, samples
        self._size, self._in_order, self._autocast = size, in_order, autocast
        self._verdicts: dict[Shape, bool] = {}

    def passed(self, shape: Shape) -> bool:
        """Tell whether batches of a shape are known to be exact."""
        return self._verdicts.get(shape, False)

    def is_exact(self, batch: Batch) -> bool:
        """Tell whether batches of this one's shape are exact; run it a few times if unknown."""
        shape = len(batch), length_of(batch.inputs)
        if shape not in self._verdicts:
            with torch.no_grad(), self._autocast():
                self._verdicts[shape] = self._try(batch, shape)
        return self._verdicts[shape]

    def in_full_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Return what a full batch gives the samples of this one, `(B, ...)` by name."""
        with torch.no_grad(), self._autocast():
            rows, _ = self._recorded(self._filled_up(batch).inputs)
        return {name: row[: len(batch)] for name, row in rows.items()}

    def some_recomputed(self, sealed: Tensor) -> Recomputed:
        """Run the network for a few of the rows `sealed`, other ones at every call."""
        first = sealed[SystemRandom().randrange(len(sealed))]
        view, index = divmod(int(first), len(self._samples))
        if self._in_order:
            start = index // self._size * self._size
            indices = torch.arange(start, min(start + self._size, len(self._samples)))
        else:
            of_view = sealed[sealed // len(self._samples) == view] % len(self._samples)
            indices = of_view[SystemRandom().choices(range(len(of_view)), k=_FEW)]
        device = next(self._model.parameters()).device
        batch = self._samples.fetch(indices, epoch=view).to(device)
        with torch.no_grad(), self._autocast():
            inputs = batch.inputs if self._in_order else self._filled_up(batch).inputs
            found, _ = self._recorded(inputs)
        values = {
            name: without_padding(row, inputs)[: len(indices)].cpu() for name, row in found.items()
        }
        return Recomputed(view * len(self._samples) + indices, values, length_of(inputs))

    def _try(self, batch: Batch, shape: Shape) -> bool:
        rows, outputs = self._recorded(batch.inputs)
        rows = {name: without_padding(row, batch.inputs) for name, row in rows.items()}
        if not self._in_order and shape != (self._size, self._samples.longest):
            full, _ = self._recorded(self._filled_up(batch).inputs)
            if not all(_same_rows(rows[name], full[name], batch.inputs) for name in rows):
                return False
        try:
            with undisturbed(self._model, seed=0), self._replay.answering(rows, *shape):
                answered = tensors_in(self._model(**batch.inputs))
        except (RuntimeError, IndexError, ValueError):
            # What is answered has shapes that this batch has not: it can only run whole.
            return False
        return all(same_bits(*pair) for pair in zip(outputs, answered, strict=True))

    def _recorded(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the network and leave no trace; return the rows and the outputs."""
        size = len(next(iter(inputs.values())))
        recording = self._replay.recording(size, length_of(inputs))
        with undisturbed(self._model, seed=0), recording as rows:
            outputs = self._model(**inputs)
        return dict(rows), tensors_in(outputs)

    def _filled_up(self, batch: Batch) -> Batch:
        """Return a full batch of the same samples, filled up to the longest sample there is."""
        again = batch.indices.cpu()[torch.arange(self._size) % len(batch)]
        full = self._samples.fetch(again, epoch=batch.view, length=self._samples.longest)
        return full.to(batch.indices.device)


def length_of(inputs: Mapping[str, Tensor]) -> int | None:
    """Return the tokens that a batch is filled up to, where it has an attention mask."""
    mask = inputs.get("attention_mask")
    return None if mask is None else int(mask.shape[1])


def lengths_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens of each sample, `(B,)`."""
    return inputs["attention_mask"].sum(1)


def without_padding(row: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what a store gives back for `row`: zeros behind the end of every sample."""
    mask = inputs.get("attention_mask")
    if mask is None or row.shape[:2] != mask.shape:
        return row
    ended = (mask == 0).reshape(*mask.shape, *[1] * (row.ndim - 2))
    return row.masked_fill(ended, 0)


def _same_rows(row: Tensor, other: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    """Tell whether both hold the same bits, as far as `row` goes, but for padding."""
    mask, other = inputs.get("attention_mask"), other[: len(row)]
    if mask is not None and row.shape[:2] == mask.shape:
        other = without_padding(other[:, : mask.shape[1]], inputs)
    return same_bits(row, other)
