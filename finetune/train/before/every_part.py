"""Run the network on samples of all parts before training, as `plan` does."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from finetune.data.batches import Batch, Samples
from finetune.data.loading.named_rows import rows_named
from finetune.models.declared import Network
from finetune.tasks.task import Task
from finetune.train.precision import Precision

_AT_ONCE = 256
"""Samples that are fetched or measured at once."""
_MOST_NUMBERS = 4096
"""Numbers of a sample up to which all samples are looked at; of larger ones, such as images,
`_FEW`."""
_FEW = 16


def try_parts(
    model: Network,
    task: Task,
    parts: Mapping[str, Samples],
    *,
    precision: Precision,
    batch_size: int,
) -> None:
    """Run the network on the samples of each part that it is likeliest to refuse.

    Those are the first ones, and for each column of whole numbers those with the least and the
    greatest number and with the most tokens: an embedding has no row for a number beyond its table.

    Args:
        model: The network. It is left as it was.
        task: Its losses are computed, too.
        parts: The samples by part, or some of them.
        precision: Number format of the forward pass, and the device.
        batch_size: Most samples of a forward pass: more may not fit into memory.

    Raises:
        ModelError: the network cannot take a sample. The message names its row.
        DataError: a sample cannot be made.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(), precision.autocast():
        for samples in parts.values():
            for rows in _extreme_rows(samples).split(batch_size):
                batch = samples.fetch(rows).to(precision.device).without_skipped()
                if len(batch):
                    with rows_named(samples, batch):
                        task.evaluated_parts(model(**batch.inputs), batch)
    model.train(was_training)


def _extreme_rows(samples: Samples) -> Tensor:
    """Return the first samples, and those with the least and greatest whole number of a column."""
    first = torch.arange(min(_FEW if _is_large(samples) else 2, len(samples)))
    if _is_large(samples):
        return first
    ends: dict[tuple[str, bool], tuple[float, int]] = {}
    for batch in _batches(samples):
        for name, values in batch.inputs.items():
            if values.is_floating_point() or values.dtype == torch.bool or not values.numel():
                continue
            # Wide enough to be negated: of bytes, -3 would be 253.
            flat = values.reshape(len(values), -1).to(torch.int64)
            for is_most, each in ((True, flat.amax(1)), (False, -flat.amin(1))):
                value, place = each.max(0)
                # Of equal numbers the earliest, by its negative position: a column of equal numbers
                # then adds no sample to the first ones.
                found = float(value), -int(batch.indices[int(place)])
                ends[name, is_most] = max(ends.get((name, is_most), found), found)
    rows = {*first.tolist(), *(-row for _, row in ends.values()), *_longest(samples)}
    return torch.tensor(sorted(rows))


def _longest(samples: Samples) -> list[int]:
    """Return the position of a sample with the most tokens; empty where nothing has tokens."""
    most, longest = -1, list[int]()
    # In pieces: a large part makes the tokens whose lengths are asked for.
    for rows in _pieces(samples):
        if (lengths := samples.lengths(rows)) is None:
            return []
        value, place = lengths.max(0)
        if int(value) > most:
            most, longest = int(value), [int(rows[int(place)])]
    return longest


def _batches(samples: Samples) -> Iterator[Batch]:
    """Yield all samples."""
    for rows in _pieces(samples):
        yield samples.fetch(rows)


def _pieces(samples: Samples) -> Sequence[Tensor]:
    """Return the positions of all samples, a few at once; none for an empty part."""
    return torch.arange(len(samples)).split(_AT_ONCE) if len(samples) else ()


def _is_large(samples: Samples) -> bool:
    """Tell whether to make all samples would take long."""
    return any(math.prod(spec.shape) > _MOST_NUMBERS for spec in samples.specs.values())
