"""Make samples that can be fetched from columns and the steps that are left.

This file decides which steps run at every fetch and which on whole batches, how many processes
make batches, and whether prepared samples are kept.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Literal

import torch

from finetune.data.batches import Samples
from finetune.data.kept_samples import KeptSamples, is_of_tensors, row_bytes, shapes_of
from finetune.data.lazy_tokens import LazyColumn
from finetune.data.loading.gathered_samples import GatheredSamples
from finetune.data.loading.made_samples import MadeSamples
from finetune.data.loading.sample_maker import Making, SampleMaker
from finetune.data.loading.workers import Workers
from finetune.data.memory_budget import MemoryBudget
from finetune.data.ragged import Ragged
from finetune.data.samples import FOR_NO_LOSS, ForLoss
from finetune.data.steps.pipeline import Outcome
from finetune.data.steps.transforms import Step
from finetune.data.steps.vision import Vision
from finetune.data.table import Numbers
from finetune.data.targets.token_targets import TokenTarget
from finetune.data.vectors import Vectors
from finetune.errors import DataError
from finetune.process import shared_memory_bytes, usable_cores

_QUICK_S = 0.02
"""CPU seconds. A batch that takes less is made by the run's own process: to hand it over from
another process costs about as much."""
_SAMPLES_TIMED = 4
_MOST_WORKERS = 8
_BATCHES_HELD = 3
"""Batches of a process that are in shared memory at once: two are made ahead, one is in use."""
_SHARE_OF_SHARED = 0.5
"""Share of the free shared memory that the processes of a split may take."""


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
        skips: Whether the next sample takes the place of one that cannot be made.
        pads: Whether images of different sizes are padded to the largest one of a batch.
    """

    workers: int | Literal["auto"] = 0
    budget: MemoryBudget | None = None
    batch_size: int = 32
    hang_timeout_s: float | None = None
    seed: int = 0
    views: int | None = None
    skips: bool = False
    pads: bool = False


def samples_from(
    outcome: Outcome,
    for_loss: ForLoss = FOR_NO_LOSS,
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
        for_loss: The columns that the loss takes: finished, or among those of the outcome.
        fetching: How samples are made and kept.
        identity: Text that identifies the steps, for the fingerprint.
        place: Names a sample for a message.
        name: `train`, `validation` or `test`; empty for samples that are no split of a run.
        tell: Receives lines for the user.

    Raises:
        DataError: the first sample cannot be made.
    """
    plain = _gathered(outcome, for_loss, place, name)
    if not outcome.made:
        return plain
    fetching = fetching or Fetching()
    once, drawn, batched = _parted(outcome.once, outcome.drawn)
    if fetching.pads and batched:
        # A padded image is no image to a step: all are done before.
        once, drawn = (once, [*drawn, *batched]) if drawn else ([*once, *batched], drawn)
        batched = []
    samples = MadeSamples(
        # In their order, which is that of the network's inputs.
        {each: column for each, column in outcome.columns.items() if each in outcome.made},
        plain,
        Making(once, drawn, batched, identity, fetching.seed, fetching.skips, fetching.pads),
        names=tuple(outcome.columns) if plain.inputs else (),
        views=fetching.views if name == "train" else 1,
        target=for_loss.target,
        for_loss=for_loss.made.keys() & outcome.made,
    )
    kept = _kept(samples.maker, fetching, tell)
    # Before the samples are timed to choose the number of workers: those made for that are kept.
    samples.use(None, kept)
    count = _num_workers(samples, fetching, tell)
    workers = Workers(count, fetching.hang_timeout_s, stays=name == "train") if count else None
    samples.use(workers, kept)
    return samples


def _gathered(
    outcome: Outcome, for_loss: ForLoss, place: Callable[[int], str] | None, name: str
) -> GatheredSamples:
    """Return the finished columns of samples, with those for the loss that are finished."""
    finished = {
        each: column
        for each, column in outcome.columns.items()
        if each not in outcome.made and isinstance(column, Numbers | Vectors | Ragged | LazyColumn)
    }
    done = {
        n: finished.pop(n) if n in for_loss.made else column
        for n, column in for_loss.columns.items()
        if n not in for_loss.made.keys() & outcome.made
    }
    ready = {
        n: column
        for n, column in done.items()
        if isinstance(column, Numbers | Ragged | LazyColumn | TokenTarget)
    }
    target = ready.pop(for_loss.target or "", None)
    return GatheredSamples(finished, target, more=ready, place=place, name=name)


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
    maker: SampleMaker, fetching: Fetching, tell: Callable[[str], None]
) -> KeptSamples | None:
    """Return where prepared samples are kept; None where they do not fit, or gain nothing."""
    budget = fetching.budget
    if budget is None or not maker.is_made_once:
        return None
    first, *others = (maker.made_once(row) for row in maker.first_rows)
    if not is_of_tensors(first):
        return None
    if any(shapes_of(other) != shapes_of(first) for other in others):
        # a place is as large as the first sample: hardly any other would fit
        tell("samples differ in size before they are cropped: they are made again in every epoch")
        return None
    size = row_bytes(first) * len(maker)
    if size > budget.left_bytes:
        tell(
            f"prepared samples would take {size / 2**30:.2f} GiB, and "
            f"{budget.left_bytes / 2**30:.2f} are left of data.memory_gb: they are made again in "
            "every epoch"
        )
        return None
    try:
        kept = KeptSamples(first, len(maker))
    except DataError as error:
        tell(f"{error.message}: they are made again in every epoch")
        return None
    budget.left_bytes -= size
    return kept


def _num_workers(samples: MadeSamples, fetching: Fetching, tell: Callable[[str], None]) -> int:
    """Return how many processes make batches: as many as are named, or as pay."""
    cores = usable_cores()
    if fetching.workers != "auto":
        if fetching.workers > cores:
            tell(f"data.workers: {fetching.workers} processes share {cores} cores")
        return fetching.workers
    if current_process().daemon:
        return 0  # such a process may not start others
    timed = torch.arange(min(len(samples), _SAMPLES_TIMED))
    # CPU seconds, not wall time: the choice must not depend on how busy the machine is.
    began = time.process_time()
    batch = samples.unfinished(timed, epoch=0)
    seconds = (time.process_time() - began) * fetching.batch_size / len(timed)
    if seconds < _QUICK_S:
        return 0
    # One core is left to the run's own process, and a process without a batch would only wait.
    most = min(_MOST_WORKERS, cores - 1, math.ceil(len(samples) / fetching.batch_size))
    size = sum(v.numel() * v.element_size() for v in batch.inputs.values()) / len(timed)
    if (free := shared_memory_bytes()) is not None:
        held = _BATCHES_HELD * fetching.batch_size * size
        fitting = int(_SHARE_OF_SHARED * free / max(1.0, held))
        if fitting < 1:
            tell(
                f"data.workers: none, {free / 2**20:.0f} MiB of shared memory (/dev/shm) do not "
                "hold the batches of a process"
            )
            return 0
        most = min(most, fitting)
    return max(1, most)
