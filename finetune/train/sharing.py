"""Share the steps of a run between its ranks: who takes which micro-batches, and how all agree.

Each rank takes every n-th micro-batch of a window, so the micro-batches are the same whatever the
number of ranks. A step has two messages: counts and requests before its first forward pass, and
the gradients after its last backward pass. In one process every method does nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from finetune.data.batches import Batch
from finetune.distributed import Link, RankLostError, is_sharded
from finetune.errors import FinetuneError, StoppedError, is_out_of_memory, named
from finetune.gathering import NotGatheredError
from finetune.tasks.weighted_loss import Count, LossSum, WeightedLoss
from finetune.tasks.window_mean import Parameters, WindowMean, counts_of
from finetune.train.precision import Precision
from finetune.train.ranks.gradient_sum import GradientSum, WindowEnd
from finetune.train.ranks.rank_lines import RankLines
from finetune.train.ranks.shards import Shards
from finetune.train.ranks.synced_norm import SyncedNorms
from finetune.train.shown.reporting import StepStats
from finetune.train.stepper import Stepper
from finetune.train.stopping import Stop
from finetune.train.timeline import Timeline

_MOVING = (
    "processes: a batch norm that trains normalises over its own micro-batch; running statistics, "
    "and other buffers that move in forward passes, are those of the first process, which sees its "
    "own micro-batches only: one process would end with other ones"
)
_MOVING_STILL = (
    "processes: {} of {} buffers that move in forward passes belong to no batch norm; they are "
    "those of the first process, which sees its own micro-batches only"
)
_NO_MEMORY = "the same command goes on from the newest checkpoint; a smaller train.micro_batch "


@dataclass(slots=True, kw_only=True)
class Sharing:
    """Shares the windows of a run between its ranks."""

    link: Link
    model: nn.Module
    timeline: Timeline
    precision: Precision
    stop: Stop
    lines: RankLines
    norms: SyncedNorms
    shards: Shards
    num_losses: int
    _gradients: GradientSum | None = field(default=None, init=False)
    _buffers: list[Tensor] = field(default_factory=list, init=False)
    """Buffers that the forward passes of the phase may move, such as running statistics."""
    _is_open: bool = field(default=False, init=False)
    """Whether the ranks have agreed on a window, and its gradients are not added up yet."""
    _told: Exception | None = field(default=None, init=False)
    """The last lack of memory that another rank has told of."""

    @property
    def is_several(self) -> bool:
        """Whether the run has several processes."""
        return self.link.ranks.is_several

    @property
    def meets_in_passes(self) -> bool:
        """Whether a pass waits for those of the other ranks: in batch norms, or to gather."""
        return self.norms.is_wanted or self.shards.is_on

    def begin_phase(self, buffers: Sequence[Tensor]) -> list[str]:
        """Prepare for what the network trains now; return lines for the user.

        Args:
            buffers: Those that forward passes may move.
        """
        if not self.is_several:
            return []
        # Anew at each phase: a parameter that thaws must be among those that are added up.
        # torch sums those of sharded parameters in the backward pass.
        trained = [p for p in self.model.parameters() if p.requires_grad and not is_sharded(p)]
        self._gradients = GradientSum(trained, self.precision.device)
        self.norms.begin_phase()
        alike = {id(buffer) for buffer in self.norms.buffers}
        self._buffers = [buffer for buffer in buffers if id(buffer) not in alike]
        if not self.norms.names:
            return [_MOVING] if self._buffers else []
        lines = [
            f"processes: batch norms over the samples of all {self.link.ranks.world} processes in "
            f"a pass: {named(self.norms.names)}"
        ]
        left = _MOVING_STILL.format(len(self._buffers), len(buffers))
        return [*lines, left] if self._buffers else lines

    def own_cuts(self, window: Tensor, size: int) -> list[Tensor]:
        """Return the micro-batches of a window that this rank takes, as sample indices.

        Args:
            window: Indices of the samples of a step.
            size: Samples of a micro-batch.
        """
        ranks = self.link.ranks
        if not self.meets_in_passes:
            return list(window.split(size))[ranks.rank :: ranks.world]
        # Equally many on each rank, none of them empty: all must meet in every norm or block.
        passes = list(window.split(size * ranks.world))
        if len(passes) > 1 and len(passes[-1]) < ranks.world:
            passes[-2:] = [torch.cat(passes[-2:])]
        return [one.tensor_split(ranks.world)[ranks.rank] for one in passes]

    def fetched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return batches; if one cannot be made, the others are told."""
        if not self.is_several:
            return batches
        return self._fetched(batches)

    def wait_for_others(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all processes of the run are done, if this one ends well or on request."""
        if kind is None or issubclass(kind, StoppedError):
            self.link.wait()

    def step(self, stepper: Stepper, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step together with the other ranks.

        Args:
            stepper: Makes the step; its `new_mean` is `mean`.
            window: The micro-batches of this rank, maybe none.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN on some rank. Nothing was updated.
        """
        try:
            with self.norms.running():
                return stepper.step(window)
        except Exception as error:
            if (self.norms.names or self.shards.is_on) and self._is_open:
                # The others wait in a pass and cannot be told: they see that this process ends.
                self._is_open = False
                if not is_out_of_memory(error):
                    raise
                key = "parallel: fsdp2" if self.shards.is_on else "sync_norm"
                raise FinetuneError(
                    f"memory has run out, and with train.{key} the processes cannot cut a step "
                    "again",
                    hint=f"{_NO_MEMORY}takes less",
                ) from error
            is_alone_with_it = not self._is_open and error is not self._told
            self._fail(error)
            if is_out_of_memory(error) and is_alone_with_it:
                # The others have made the step: cutting it again here would part the ranks.
                raise FinetuneError(
                    "memory has run out outside of forward and backward pass",
                    hint=f"{_NO_MEMORY}takes less memory",
                ) from error
            raise

    def largest_pass(self, samples: int) -> int:
        """Return the most samples in a pass of a window, the same on every rank.

        Args:
            samples: Samples of the window on this rank.
        """
        return self.timeline.pass_size if self.is_several else samples

    def mean(self, losses: Sequence[WeightedLoss], window: Sequence[Batch]) -> "SharedMean":
        """Return what divides the losses of a window that lies on several ranks.

        Raises:
            RankLostError: another rank has failed to make its samples.
        """
        own: list[Count] = counts_of(losses, window) if window else [0.0] * len(losses)
        totals = self._agreed(own)
        self._is_open = True
        counts = [_as(value, like) for value, like in zip(totals, own, strict=True)]
        return SharedMean(self, WindowMean(losses, window, counts))

    def add_up(self, loss: Tensor, mean: WindowMean) -> Tensor:
        """Add up the gradients and the loss of a window over the ranks; return the loss.

        Raises:
            OutOfMemoryError: memory has run out on some rank.
            RankLostError: another rank has failed.
        """
        assert self._gradients is not None
        found = mean.found
        end = WindowEnd(loss, 0.0 if found is None else found)
        self._is_open = False
        _, count, out_of_memory, failed = self._gradients.add(self.link, end)
        self._refuse_failed(failed)
        if out_of_memory:
            self._told = torch.OutOfMemoryError("out of memory on another rank")
            raise self._told
        if found is None and count:
            # This rank has no micro-batch of the window.
            mean.found = count
        elif found is not None:
            mean.found = _as(count, found)
        # Each rank has moved them by its own samples; those of rank 0 count, as in torch's DDP.
        self.link.take_first(self._buffers)
        return self._gradients.loss()

    def _fail(self, error: BaseException) -> None:
        """Tell the other ranks, which wait for the gradients of this one, that a step has failed.

        Raises:
            RankLostError: another rank has failed too.
        """
        if not self._is_open or isinstance(error, RankLostError):
            return
        assert self._gradients is not None
        self._is_open = False
        # What the failed passes hold is needed for the message.
        memory = is_out_of_memory(error)
        end = WindowEnd(is_out_of_memory=memory, has_failed=not memory)
        *_, failed = self._gradients.add(self.link, end)
        if memory:
            self._refuse_failed(failed)

    def _fetched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from batches
        except NotGatheredError:
            # The others wait for the same weights: they see that this process ends.
            raise
        except Exception:
            # The others wait for the counts of this window.
            self._agreed([0.0] * self.num_losses, has_failed=True)
            raise

    def _agreed(self, counts: Sequence[Count], *, has_failed: bool = False) -> list[float]:
        """Return the sums of counts; take note of signals that any rank has got.

        Raises:
            RankLostError: another rank has failed.
        """
        own = [float(count) for count in counts]
        told = self.link.totals([*own, float(has_failed), *self.stop.told()])
        self.stop.agree(told[len(own) + 1 :])
        if not has_failed:
            self._refuse_failed(told[len(own)], is_between_steps=True)
        return told[: len(own)]

    def _refuse_failed(self, count: float, *, is_between_steps: bool = False) -> None:
        """Raise `RankLostError` if `count`, the number of ranks that have failed, is not 0."""
        if count:
            error = RankLostError(
                "another process of the run has failed",
                hint="its own lines tell why; the same command goes on from the newest checkpoint",
            )
            error.is_between_steps = is_between_steps
            raise error


class SharedMean:
    """`WindowMean` of a window whose micro-batches lie on several ranks."""

    __slots__ = ("_mean", "_sharing")

    def __init__(self, sharing: Sharing, mean: WindowMean) -> None:
        self._sharing, self._mean = sharing, mean

    def shares(self, parts: Sequence[LossSum]) -> list[Tensor]:
        """Return what a micro-batch adds to the mean of each loss over all ranks, `()` each."""
        return self._mean.shares(parts)

    def correct(self, loss: Tensor, parameters: Parameters) -> Tensor:
        """Add up gradients and loss over the ranks, then do as `WindowMean.correct`."""
        loss = self._sharing.add_up(loss, self._mean)
        shards = self._sharing.shards
        shards.hand_over()
        return self._mean.correct(loss, lambda: chain(parameters(), shards.parts.values()))


def _as(value: float, like: Count) -> Count:
    """Return a sum over the ranks as a count of the same kind as this rank's own."""
    if isinstance(like, Tensor):
        return torch.tensor(value, dtype=like.dtype, device=like.device)
    return type(like)(value)
