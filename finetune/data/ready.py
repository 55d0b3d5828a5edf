"""Make samples that can be fetched from columns and the steps that are left.

This file decides which steps run at every fetch and which on whole batches, how many processes
make batches, and whether prepared samples are kept.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetune.data.batches import Samples
from finetune.data.gathered_samples import GatheredSamples
from finetune.data.kept_samples import KeptSamples, is_of_tensors, row_bytes
from finetune.data.made_samples import MadeSamples, Making
from finetune.data.pipeline import Outcome
from finetune.data.table import Numbers, Ragged
from finetune.data.transforms import Step
from finetune.data.vision import Vision
from finetune.data.workers import Workers
from finetune.errors import DataError
from finetune.process import available_memory_bytes

_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that prepared samples may take with `data.memory_gb: auto`."""
_QUICK_S = 0.02
"""CPU seconds. A batch that takes less is made by the run's own process: to hand it over from
another process costs about as much."""
_SAMPLES_TIMED = 4
_MOST_WORKERS = 8


@dataclass(slots=True)
class MemoryBudget:
    """How many bytes the prepared samples of all splits may still take."""

    left_bytes: float

    @classmethod
    def of(cls, memory_gb: float | Literal["auto"]) -> "MemoryBudget":
        """Return the room of `data.memory_gb`; `auto` for a quarter of the free memory."""
        if memory_gb == "auto":
            return cls(_SHARE_OF_MEMORY * available_memory_bytes())
        return cls(memory_gb * 2**30)


@dataclass(frozen=True, slots=True)
class Fetching:
    """How the samples of a run are made and kept.

    Args:
        workers: Processes that make batches; `auto` for as many as pay.
        budget: Memory for prepared samples, which all splits share; None to keep no samples.
        batch_size: Samples of a batch.
        hang_timeout_s: Seconds after which a process counts as hung.
        seed: Seed of the random steps.
        views: How many draws of the random steps a training sample has.
    """

    workers: int | Literal["auto"] = 0
    budget: MemoryBudget | None = None
    batch_size: int = 32
    hang_timeout_s: float | None = None
    seed: int = 0
    views: int | None = None


def samples_from(
    outcome: Outcome,
    target: Tensor | None,
    *,
    fetching: Fetching | None = None,
    identity: str = "",
    place: Callable[[int], str] | None = None,
    name: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Samples:
    """Return samples that can be fetched.

    Args:
        outcome: The columns, and the steps that are left.
        target: Targets `(N, ...)`, or None.
        fetching: How samples are made and kept.
        identity: Text that identifies the steps, for the fingerprint.
        place: Names a sample for a message.
        name: `train`, `validation` or `test`; empty for samples that are no split of a run.
        tell: Receives lines for the user.

    Raises:
        DataError: the first sample cannot be made.
    """
    if outcome.is_finished:
        finished = {n: c for n, c in outcome.columns.items() if isinstance(c, Numbers | Ragged)}
        return GatheredSamples(finished, target, place=place, name=name)
    fetching = fetching or Fetching()
    once, drawn, batched = _parted(outcome.once, outcome.drawn)
    making = Making(once, drawn, batched, identity, fetching.seed)
    views = fetching.views if name == "train" else 1
    # Without processes and kept samples: size and time of its samples decide about these.
    plain = MadeSamples(outcome.columns, target, making, views=views, place=place)
    kept = _kept(plain, fetching, tell)
    # Cores that this process may use: in a container fewer than the machine has.
    count, cores = _num_workers(plain, fetching), len(os.sched_getaffinity(0))
    if count > cores:
        tell(f"data.workers: {count} processes share {cores} cores")
    workers = Workers(count, fetching.hang_timeout_s, stays=name == "train") if count else None
    return MadeSamples(
        outcome.columns,
        target,
        making,
        views=views,
        workers=workers,
        kept=kept,
        place=place,
        name=name,
    )


def _parted(
    once: Sequence[Step], drawn: Sequence[Step]
) -> tuple[Sequence[Step], Sequence[Step], Sequence[Vision]]:
    """Split off the last steps on one column of images that can run on whole batches."""
    steps = [*once, *drawn]
    batched: list[Vision] = []
    while steps and isinstance(last := steps[-1], Vision) and last.waits_for_batch:
        # The step before must work on the same column, so that its outputs make one batch.
        before = steps[-2] if len(steps) > 1 else None
        if not isinstance(before, Vision) or before.column != last.column:
            break
        batched.insert(0, last)
        steps.pop()
    return steps[: len(once)], steps[len(once) :], batched


def _kept(
    samples: MadeSamples, fetching: Fetching, tell: Callable[[str], None]
) -> KeptSamples | None:
    """Return the place for prepared samples; None if they do not fit, or keeping gains nothing."""
    first, budget = samples.made_once(0), fetching.budget
    if budget is None or not samples.is_made_once or not is_of_tensors(first):
        return None
    size = row_bytes(first) * len(samples)
    if size > budget.left_bytes:
        tell(
            f"prepared samples would take {size / 2**30:.2f} GiB, and "
            f"{budget.left_bytes / 2**30:.2f} are left of data.memory_gb: they are made again in "
            "every epoch"
        )
        return None
    try:
        kept = KeptSamples(first, len(samples))
    except DataError as error:
        tell(f"{error.message}: they are made again in every epoch")
        return None
    budget.left_bytes -= size
    return kept


def _num_workers(samples: MadeSamples, fetching: Fetching) -> int:
    """Return the number of worker processes: as configured, or as many as are worth it."""
    if fetching.workers != "auto":
        return fetching.workers
    timed = torch.arange(min(len(samples), _SAMPLES_TIMED))
    # CPU seconds, not wall time: the choice must not depend on how busy the machine is.
    began = time.process_time()
    samples.fetch(timed)
    seconds = (time.process_time() - began) * fetching.batch_size / len(timed)
    if seconds < _QUICK_S:
        return 0
    # One core is left for the run's own process.
    return max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
