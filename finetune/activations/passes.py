"""Forward passes that only serve the cache: trials and recomputation, without side effects.

The definition of a row is here: the frozen outputs of a sample in a full batch that is padded to
the longest sample of the split. For splits that are always cut in order (validation, test): the
outputs of the sample in its own batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import SystemRandom

import torch
from torch import Tensor

from finetune.activations.batch_shapes import Shape, mask_of, shortened, without_padding
from finetune.activations.split_cache import SplitCache
from finetune.bits import same_bits
from finetune.data.batches import Batch
from finetune.errors import is_out_of_memory
from finetune.preserved import preserved

_FEW = 4
"""Rows recomputed at an opening."""


@dataclass(frozen=True, slots=True)
class _Recomputed:
    """Rows as the network computes them now."""

    rows: Tensor
    """Row numbers `(R,)`."""
    values: dict[str, Tensor]
    """By name of the output, `(R, ...)`, zeros behind the end of each sample."""
    length: int | None
    """Padded length in tokens; None without tokens."""


def in_full_batch(split: SplitCache, batch: Batch) -> dict[str, Tensor]:
    """Compute the rows of a batch's samples in a full batch, `(B, ...)` by name.

    Empty if the network makes other calls than in the trial batch, or if a full batch does not
    fit into memory.
    """
    indices = batch.indices.cpu()[torch.arange(split.size) % len(batch)]
    try:
        with split.under_way():
            _, rows = full_rows(split, indices, batch.view)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {}
    return {name: row[: len(batch)] for name, row in rows.items()}


def full_rows(split: SplitCache, indices: Tensor, view: int) -> tuple[Batch, dict[str, Tensor]]:
    """Return the batch of some samples, padded to the longest of the split, and its rows.

    If the samples of a split differ in length, each such batch has at least one padded sample.
    Networks often drop the mask of a batch without padding, and then compute other bits.
    """
    device, longest = next(split.runner.model.parameters()).device, split.samples.longest
    batch = split.samples.fetch(indices, epoch=view, length=longest).to(device)
    shape = Shape.of(split.samples, indices, longest)
    is_alone = len(batch) == 1 or not split.samples.has_shorter
    if is_alone or shape.is_padded or mask_of(batch.inputs) is None:
        return batch, _rows_of(split, batch, shape)
    shape = shape._replace(is_padded=True)
    rows = _rows_of(split, shortened(batch, -1), shape)
    last = _rows_of(split, shortened(batch, 0), shape)
    if rows.keys() != last.keys():
        return batch, {}
    return batch, {name: torch.cat([row[:-1], last[name][-1:]]) for name, row in rows.items()}


def as_stored(
    split: SplitCache, rows: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return rows as they are read from a store: with zeros behind the end of each sample.

    Args:
        split: The cache.
        rows: By name of the output; ragged ones as long as the batch, or longer.
        inputs: The columns of the batch.
    """
    stored, mask = split.replay.boundary.stored, mask_of(inputs)
    return {
        name: without_padding(row[:, : mask.shape[1]], inputs)
        if stored[name].ragged and mask is not None
        else row
        for name, row in rows.items()
    }


def fault_of_rows(split: SplitCache, checked: Tensor) -> str | None:
    """Recompute a few rows and compare; return why the store's rows cannot be used, or None.

    Args:
        split: The cache; left as it is.
        checked: Numbers of the rows among which they are chosen at random.
    """
    try:
        is_right = any(_is_stored(split, now) for now in _some_recomputed(split, checked))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return "cannot be looked over, memory is short"
    return None if is_right else "are wrong"


def _is_stored(split: SplitCache, now: "_Recomputed") -> bool:
    """Tell whether the rows that a store has of these are equal to them, bit by bit."""
    there = split.store.has(now.rows)
    then = split.store.read(now.rows[there], now.length)
    return now.values.keys() == then.keys() and all(
        same_bits(values[there], then[name]) for name, values in now.values.items()
    )


def _some_recomputed(split: SplitCache, written: Tensor) -> Iterator[_Recomputed]:
    """Recompute a few randomly chosen rows of `written`, first cheaply, then decisively.

    The first attempt is a small batch, which mostly gives the same bits. The second is a batch
    of the kind that defines rows.
    """
    first = written[SystemRandom().randrange(len(written))]
    view, index = divmod(int(first), len(split.samples))
    of_view = written[written // len(split.samples) == view] % len(split.samples)
    few = of_view[SystemRandom().choices(range(len(of_view)), k=_FEW)]
    if split.in_order:
        yield _recomputed(split, few, view)
        start = index // split.size * split.size
        cut = torch.arange(start, min(start + split.size, len(split.samples)))
        yield _recomputed(split, cut, view)
    else:
        yield _recomputed_in_full(split, few, view)
        yield _recomputed_in_full(split, few[torch.arange(split.size) % _FEW], view)


def _recomputed(split: SplitCache, indices: Tensor, view: int) -> _Recomputed:
    """Run the network on a batch of exactly these samples."""
    shape = split.shape(indices)
    with split.under_way():
        batch = split.samples.fetch(indices, epoch=view)
        batch = batch.to(next(split.runner.model.parameters()).device)
        rows = _rows_of(split, batch, shape)
    return _as_recomputed(split, batch, rows, shape.length)


def _recomputed_in_full(split: SplitCache, indices: Tensor, view: int) -> _Recomputed:
    """Run the network on these samples, padded to the longest of the split."""
    with split.under_way():
        batch, rows = full_rows(split, indices, view)
    return _as_recomputed(split, batch, rows, split.samples.longest)


def _as_recomputed(
    split: SplitCache, batch: Batch, rows: Mapping[str, Tensor], length: int | None
) -> _Recomputed:
    values = {name: row.cpu() for name, row in as_stored(split, rows, batch.inputs).items()}
    numbers = batch.view * len(split.samples) + batch.indices.cpu()
    return _Recomputed(numbers, values, length)


def _rows_of(split: SplitCache, batch: Batch, shape: Shape) -> dict[str, Tensor]:
    as_before = preserved(split.runner.model, buffers=True, attributes=True, random=0)
    with split.recording(shape) as rows, as_before:
        split.run(batch.inputs)
    return dict(rows)
