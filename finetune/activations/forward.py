"""What the loop calls to fetch batches and to run the network on them, with and without a cache.

The life of a batch. `fetches` decides once whether a batch is answered from the cache: if its shape
is exact (see `exact.py`) and all its rows are stored, the batch carries the numbers of its rows,
and input columns that only frozen calls read are left out. `forward` then *answers* a batch that
carries rows: frozen calls return what is stored. Else it *records* (frozen calls run and their
outputs become rows), or runs the network *whole* if the shape is not exact.

A phase may cache several boundaries, one inside the other: its own, those that later phases will
need, and that of the phase before. Of a batch that the deepest one cannot answer, the first that
can answers its part, so that only the modules behind it run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from finetune.activations.batch_shapes import Shape
from finetune.activations.exact import in_full_batch, judge
from finetune.activations.key import Facts
from finetune.activations.rank_agreement import Agreement, agreed_rows
from finetune.activations.replay import Replay
from finetune.activations.split_cache import Runner, SplitCache, device_of
from finetune.data.batches import Batch, Samples, Split
from finetune.data.loading.named_rows import rows_named


class Forward(Protocol):
    """Fetches batches and runs the network on them; frozen outputs may come from the cache."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut, on the device of the network."""

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on a batch of `samples`."""

    def close(self) -> None:
        """Close the stores and restore the network's own `forward` methods."""


@dataclass(frozen=True, slots=True)
class UncachedForward:
    """Runs the whole network every time."""

    model: nn.Module
    run: Callable[..., Any]
    """The network as it is called: itself, or compiled."""
    replay: Replay | None = None
    """Installed at the frozen calls, if given: keeps them out of `torch.compile`, and rounds their
    outputs as a store with `store_dtype` would, so that caching changes no bit."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut, on the device of the network."""
        return samples.fetches(cuts, epoch, device_of(self.model))

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on the whole batch."""
        if self.replay is None or not self.replay.rounds:
            return self.run(**batch.inputs)
        with self.replay.recording(Shape.of(samples, batch.indices)):
            return self.run(**batch.inputs)

    def close(self) -> None:
        """Restore every module's own `forward`."""
        if self.replay is not None:
            self.replay.remove()


@dataclass(frozen=True, slots=True, eq=False)
class CachedBoundary:
    """The cache of one boundary."""

    replay: Replay
    """Records and answers its frozen calls."""
    facts: Facts
    """All that its rows depend on, but for the data."""
    splits: dict[str, SplitCache]
    """The cache of each split, by name."""

    def close(self) -> None:
        """Close the stores; modules must have their own `forward` back."""
        for split in self.splits.values():
            split.store.close()


class CachedForward:
    """Answers frozen calls from stores, and fills them at first visits.

    Args:
        runner: The network, its mask and modes set.
        boundaries: What is cached, the deepest boundary first.
        agreement: How the ranks of the run agree.
    """

    def __init__(
        self, runner: Runner, boundaries: Sequence[CachedBoundary], agreement: Agreement
    ) -> None:
        # `_run` may be compiled code around the network, `model` is the network itself.
        self.model, self._run, self._statistics = runner.model, runner.run, runner.statistics
        self.boundaries, self._agreement = boundaries, agreement

    def install(self) -> None:
        """Replace the `forward` of the frozen modules."""
        # From the input on: a deeper boundary calls what is installed inside it.
        for boundary in reversed(self.boundaries):
            boundary.replay.install()

    def remove(self) -> None:
        """Restore every module's own `forward`; the stores stay open."""
        for boundary in self.boundaries:
            boundary.replay.remove()

    def close(self) -> None:
        """Close the stores, and restore every module's own `forward`."""
        # Modules first: an answer from a closed store would be an error in the middle of a pass.
        self.remove()
        for boundary in self.boundaries:
            boundary.close()

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches; those that will be answered carry the numbers of their rows."""
        deepest, device = self.boundaries[0], device_of(self.model)
        split = deepest.splits.get(samples.name)
        if split is None:
            yield from samples.fetches(cuts, epoch, device)
            return
        view = epoch % samples.views if samples.views else 0
        # For all cuts in advance: the processes that prepare batches must know which ones to make.
        agreed, new = (
            self._agreed(samples, cuts, epoch) if self._agreement.has_parts else (None, set[int]())
        )
        is_there = [
            split.has(cut, view) if agreed is None else agreed[number] is not None
            for number, cut in enumerate(cuts)
        ]
        split.tell_notes()
        missing = [cut for cut, is_stored in zip(cuts, is_there, strict=True) if not is_stored]
        made = samples.fetches(missing, epoch, device)
        for number, (cut, is_stored) in enumerate(zip(cuts, is_there, strict=True)):
            # Checked again: another process may have found a row damaged in the meantime. What all
            # processes have agreed on stays.
            rows = agreed[number] if agreed else split.rows_of(cut, view) if is_stored else None
            if rows is not None:
                self._count(len(cut), is_new=number in new)
                unread = deepest.replay.boundary.unread
                batch = samples.fetch(cut, epoch=epoch, blank=unread)
                yield replace(batch, rows=rows)
                continue
            batch = samples.fetch(cut, epoch=epoch) if is_stored else next(made)
            if agreed is None:
                # A trial runs the network, which may raise an error because of a sample.
                with rows_named(samples, batch):
                    batch = self.decided(batch, samples)
            yield batch

    def _count(self, samples: int, *, is_new: bool) -> None:
        """Count samples of a batch that is answered; a trial has just made rows that are new."""
        # Such a trial has not spared the prefix.
        if is_new:
            self._statistics.recorded += samples
        else:
            self._statistics.answered += samples

    def _agreed(
        self, samples: Samples, cuts: Sequence[Tensor], epoch: int
    ) -> tuple[list[Tensor | None], set[int]]:
        """Return the row numbers of each batch that all ranks answer, else None, and what is new.

        Those are the numbers of the batches whose rows a trial has made.
        """
        splits = [boundary.splits[samples.name] for boundary in self.boundaries]
        deepest, view = splits[0], epoch % samples.views if samples.views else 0
        untried = {
            deepest.name_of(deepest.shape(cut)): number
            for number, cut in enumerate(cuts)
            if not all(split.was_tried(cut) for split in splits)
        }

        new: set[int] = set()

        def attempt(number: int) -> None:
            if not deepest.has(cuts[number], view):
                new.add(number)
            batch = samples.fetch(cuts[number], epoch=epoch).to(device_of(self.model))
            with rows_named(samples, batch):
                found = [judge(split, batch) for split in splits]
            # As in `decided`: with the rows of a deeper boundary no other one would be recorded.
            splits[-1].write(batch, found[-1].rows)

        numbers = list(untried.values())
        rows = agreed_rows(deepest, cuts, view, self._agreement, untried=numbers, attempt=attempt)
        return rows, new

    def decided(self, batch: Batch, samples: Split) -> Batch:
        """Return a whole batch with the numbers of its rows if it will be answered, else as it is.

        A batch of a shape that was never tried is tried now. Its rows are stored at once then, so
        that the trial is not wasted; unless other boundaries lack them too, which only record them
        if the network runs.
        """
        split = self.boundaries[0].splits[samples.name]
        rows, is_new = split.rows_of(batch.indices, batch.view), False
        # Here and not in `forward`, so that this batch too is answered.
        if rows is None and not split.was_tried(batch.indices):
            is_new = not split.has(batch.indices, batch.view)
            batch = batch.to(device_of(self.model))
            found = judge(split, batch)
            if len(self.boundaries) == 1:
                split.write(batch, found.rows)
            rows = split.rows_of(batch.indices, batch.view)
        if rows is None:
            return batch
        self._count(len(batch), is_new=is_new)
        return replace(batch, rows=rows)

    def forward(self, batch: Batch, samples: Split) -> Any:
        """Run the network on a batch; frozen calls are answered if it carries rows."""
        deepest = self.boundaries[0].splits.get(samples.name)
        # Samples that are no split of the run have no store.
        if deepest is None:
            return self._run(**batch.inputs)
        recorded, answered = self._roles(batch, samples)
        is_recorded, rows = deepest in recorded, dict[str, Tensor]()
        with ExitStack() as calls:
            if answered is not None:
                split, numbers = answered
                calls.enter_context(split.answering(batch, numbers))
            for split in reversed(recorded):
                # If a part of the prefix is answered, the time is not that of the whole prefix.
                rows = calls.enter_context(split.recording(batch, is_timed=answered is None))
            if batch.rows is None and not is_recorded and deepest.replay.rounds:
                # As the store would, so that it changes no bit whether a batch is cached.
                calls.enter_context(deepest.replay.recording(deepest.shape(batch.indices)))
            outputs = self._run(**batch.inputs)
        # A batch with a skipped sample runs every time: that one has no row.
        if batch.skipped or (batch.rows is None and not (is_recorded and rows)):
            self._statistics.whole += len(batch)
        elif rows and not deepest.is_full:
            self._statistics.recorded += len(batch)
        return outputs

    def _roles(
        self, batch: Batch, samples: Split
    ) -> tuple[list[SplitCache], tuple[SplitCache, Tensor] | None]:
        """Return who records a batch, the deepest first, and who answers it with which rows.

        Behind the one that answers, all boundaries record for which the shape is exact. Trials run
        the network, so all of them must be over before frozen calls are recorded or answered.
        """
        recorded: list[SplitCache] = []
        for boundary in self.boundaries:
            split, is_deepest = boundary.splits[samples.name], boundary is self.boundaries[0]
            # Of the deepest one this was decided when the batch was fetched.
            if is_deepest and batch.rows is not None:
                return [], (split, batch.rows)
            # A cache of an earlier phase writes no more rows, so a trial would not pay.
            may_try = is_deepest or not split.is_full
            is_exact = may_try and judge(split, batch).fault is None
            # Processes that share the weights have not agreed on what an inner one answers, and
            # none of them runs passes of its own.
            is_alone = not self._agreement.has_parts
            may_answer = is_alone and not is_deepest
            rows = split.rows_of(batch.indices, batch.view) if may_answer else None
            if rows is not None:
                return recorded, (split, rows)
            if is_exact:
                recorded.append(split)
            elif is_alone:
                _write_from_full_batch(split, batch)
        return recorded, None


def _write_from_full_batch(split: SplitCache, batch: Batch) -> None:
    """Compute and write rows for a batch of an inexact shape by a full batch, if they lack."""
    # If a split is always cut in order, its rows are defined by its own batches, not by full ones.
    is_open = not split.is_full and not split.in_order
    if not is_open or len(batch) > split.size or split.has(batch.indices, batch.view):
        return
    if rows := in_full_batch(split, batch):
        split.write(batch, rows)
    else:
        split.stop_writing(
            "a full batch makes other calls than the batch that was tried, or lacks memory"
        )
