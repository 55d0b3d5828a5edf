"""Run batches with the activation cache: record rows at the first visit, answer from them later.

The life of a batch. `fetches` decides once whether a batch is answered from the cache: if its shape
is exact (see `exact.py`) and all its rows are stored, the batch carries the numbers of its rows,
and input columns that only frozen calls read are left out. `forward` then *answers* a batch that
carries rows: frozen calls return what is stored. Else it *records* (frozen calls run and their
outputs become rows), or runs the network *whole* if the shape is not exact.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from finetune.activations.batch_shapes import SAMPLE, labels_of, lengths_of
from finetune.activations.exact import ShapeFinding, fault_of_rows, in_full_batch, judge
from finetune.activations.forward import Statistics, device_of
from finetune.activations.key import Facts
from finetune.activations.replay import Replay
from finetune.activations.split_cache import Runner, SplitCache
from finetune.activations.together import Together, answered_by_all
from finetune.data.batches import Batch, Samples, Split
from finetune.data.loading.named_rows import rows_named
from finetune.store.store import Store, StoreError


class CachedForward:
    """Answers frozen calls from stores, one per split, and fills them at first visits.

    Args:
        runner: The network, its mask and modes set.
        replay: Records and answers its frozen calls.
        facts: What the rows depend on besides the data.
        statistics: Counts what was answered and recorded; mutated.
        seconds: Seconds of the frozen prefix for one sample, as probed.
        tell: Receives a line for the user if something is not cached.
        inner: The cache of a boundary closer to the input. If it has the rows of a batch, only the
            modules between the two boundaries run; else its rows are recorded too. It is removed
            and closed with this one.
        together: The processes of the run.
    """

    def __init__(
        self,
        runner: Runner,
        replay: Replay,
        facts: Facts,
        *,
        statistics: Statistics,
        seconds: float,
        tell: Callable[[str], None],
        inner: "CachedForward | None" = None,
        together: Together,
    ) -> None:
        self.model, self.replay, self.facts = runner.model, replay, facts
        # `_run` may be compiled code around the network, `model` is the network itself.
        self.boundary, self._runner, self._run = replay.boundary, runner, runner.run
        self._statistics, self._seconds, self._tell = statistics, seconds, tell
        self._inner, self._together = inner, together
        self._splits: dict[str, SplitCache] = {}
        # Measured during the run: the probe used a small batch, which is slower per sample.
        self._seconds_recording, self._num_recorded = 0.0, 0
        self._is_ragged = any(leaf.ragged for leaf in self.boundary.stored.values())
        self.install()

    def install(self) -> None:
        """Replace the `forward` of the frozen modules."""
        self.replay.install()

    def remove(self) -> None:
        """Restore every module's own `forward`; the stores stay open."""
        self.replay.remove()
        if self._inner is not None:
            self._inner.remove()

    def add(
        self,
        samples: Split,
        store: Store,
        *,
        size: int,
        in_order: bool,
        network: str,
        tell: Callable[[str], None],
        checked: Tensor,
    ) -> None:
        """Add a split with its store; recompute a few of its rows, drop all if one differs.

        The rows to recompute are drawn from the row numbers `checked`. `network` is a key of all
        that trials of batch shapes depend on besides the rows; the rest becomes a `SplitCache`.
        """
        split = self._splits[samples.name] = SplitCache(
            samples=samples,
            store=store,
            verdicts=store.verdicts(network),
            replay=self.replay,
            runner=self._runner,
            size=size,
            in_order=in_order,
            tell=tell,
        )
        # Now: otherwise the user would hear much later that stores were removed to make room.
        self._tell_notes(split)
        # The key cannot contain everything that rows depend on: the code of libraries, for example.
        fault = fault_of_rows(split, checked) if len(checked) else None
        if fault is not None:
            split.forget()
            self._tell(
                f"activation cache: the rows of store {store.meta.key} {fault}: all recomputed"
            )

    def stop_recording(self) -> None:
        """Close the inner cache, and only answer from now on."""
        # Its phase is over. Rows that it lacks are recorded by the cache of the next phase.
        for split in self._splits.values():
            split.is_full = True
        self._close_inner()

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._inner = None

    @property
    def stores(self) -> list[Store]:
        """The stores of all splits."""
        return [split.store for split in self._splits.values()]

    def close(self) -> None:
        """Close the stores, and restore every module's own `forward`."""
        # Modules first: an answer from a closed store would be an error in the middle of a pass.
        self.remove()
        for store in self.stores:
            store.close()
        self._close_inner()

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches; those that will be answered carry the numbers of their rows."""
        split, device = self._splits.get(samples.name), device_of(self.model)
        if split is None:
            yield from samples.fetches(cuts, epoch, device)
            return
        view = epoch % samples.views if samples.views else 0
        # For all cuts in advance: the processes that prepare batches must know which ones to make.
        agreed = self._agreed(samples, split, cuts, epoch) if self._together.is_on else None
        is_there = [
            split.has(cut, view) if agreed is None else agreed[number] is not None
            for number, cut in enumerate(cuts)
        ]
        self._tell_notes(split)
        missing = [cut for cut, is_stored in zip(cuts, is_there, strict=True) if not is_stored]
        made = samples.fetches(missing, epoch, device)
        for number, (cut, is_stored) in enumerate(zip(cuts, is_there, strict=True)):
            # Checked again: another process may have found a row damaged in the meantime. What all
            # processes have agreed on stays.
            rows = agreed[number] if agreed else split.rows_of(cut, view) if is_stored else None
            if rows is not None:
                self._statistics.answered += len(cut)
                batch = samples.fetch(cut, epoch=epoch, blank=self.boundary.unread)
                yield replace(batch, rows=rows)
                continue
            batch = samples.fetch(cut, epoch=epoch) if is_stored else next(made)
            if agreed is None:
                # A trial runs the network, which may raise an error because of a sample.
                with rows_named(samples, batch):
                    batch = self.decided(batch, samples)
            yield batch

    def _agreed(
        self, samples: Samples, split: SplitCache, cuts: Sequence[Tensor], epoch: int
    ) -> list[Tensor | None]:
        """Return the row numbers of the batches that are answered in all processes, else None."""
        untried = {split.name_of(split.shape(cut)): cut for cut in cuts if self._is_new(split, cut)}
        view = epoch % samples.views if samples.views else 0

        def attempt(cut: Tensor) -> None:
            batch = samples.fetch(cut, epoch=epoch).to(device_of(self.model))
            with rows_named(samples, batch):
                self._attempt(batch, samples)

        return answered_by_all(
            split, cuts, view, self._together, untried=list(untried.values()), attempt=attempt
        )

    def _is_new(self, split: SplitCache, cut: Tensor) -> bool:
        """Tell whether the shape of a batch was never tried, by this cache or an inner one."""
        if not split.was_tried(cut):
            return True
        inner = None if self._inner is None else self._inner._splits.get(split.samples.name)
        return inner is not None and not inner.is_full and not inner.was_tried(cut)

    def _attempt(self, batch: Batch, samples: Split) -> None:
        """Try the shape of a batch, in an inner cache too; keep the rows as `decided` does."""
        found = self._judged(batch, self._splits[samples.name])
        if self._inner is not None:
            self._inner._attempt(batch, samples)
        elif found.rows:
            self._write(batch, self._splits[samples.name], found.rows)

    def decided(self, batch: Batch, samples: Split) -> Batch:
        """Return a whole batch with the numbers of its rows if it will be answered, else as it is.

        A batch of a shape that was never tried is tried now. Its rows are stored at once then, so
        that the trial is not wasted; unless an inner cache lacks them too, which only records them
        if the network runs.
        """
        split = self._splits[samples.name]
        indices, was_there = batch.indices, split.has(batch.indices, batch.view)
        rows = split.rows_of(indices, batch.view) if was_there else None
        # Here and not in `forward`, so that this batch too is answered.
        if rows is None and not split.was_tried(indices):
            batch = batch.to(device_of(self.model))
            found = self._judged(batch, split)
            if found.rows and self._inner is None:
                self._write(batch, split, found.rows)
            rows = split.rows_of(indices, batch.view)
        if rows is None:
            return batch
        if was_there:
            self._statistics.answered += len(batch)
        # The trial has just computed its rows: the prefix was not spared.
        else:
            self._statistics.recorded += len(batch)
        return replace(batch, rows=rows)

    def forward(self, batch: Batch, samples: Split) -> Any:
        """Run the network on a batch; frozen calls are answered if it carries rows."""
        split = self._splits.get(samples.name)
        # Samples that are no split of the run have no store.
        if split is None:
            return self._run(**batch.inputs)
        is_exact = batch.rows is not None or self._judged(batch, split).fault is None
        with self._around(batch, split, batch.rows, is_exact=is_exact) as (rows, _):
            outputs = self._run(**batch.inputs)
        # A batch with a skipped sample runs every time: that one has no row.
        if batch.skipped or (batch.rows is None and not (is_exact and rows)):
            self._statistics.whole += len(batch)
        elif rows and not split.is_full:
            self._statistics.recorded += len(batch)
        return outputs

    @contextmanager
    def _around(
        self, batch: Batch, split: SplitCache, numbers: Tensor | None, *, is_exact: bool
    ) -> Iterator[tuple[Mapping[str, Tensor], bool]]:
        """Prepare the frozen calls of a batch, while the block runs the network on it.

        They are answered from the store if the batch has row `numbers`, recorded if its shape is
        exact, and run normally otherwise.

        Yields:
            The rows that were written, by output, complete only after the block; and whether this
            cache or an inner one answered any call.
        """
        if numbers is not None:
            with self._answering(batch, split, numbers):
                yield {}, True
        elif is_exact:
            with self._recording(batch, split) as found:
                yield found
        else:
            rows = self._written_from_full_batch(batch, split)
            # Rounded as the store would, so that it changes no bit whether a batch is cached.
            rounding: AbstractContextManager[object] = nullcontext()
            if self.replay.rounds:
                rounding = self.replay.recording(split.shape(batch.indices))
            with self._with_inner(batch, split.samples) as is_helped, rounding:
                yield rows, is_helped

    @contextmanager
    def _answering(self, batch: Batch, split: SplitCache, numbers: Tensor) -> Iterator[None]:
        """Answer the frozen calls in the block with the stored rows of a batch."""
        # The time until the rows are on the device: they are needed there before the pass begins.
        began, shape = time.perf_counter(), split.shape(batch.indices)
        # Rows that were verified when the batch was fetched stay readable, whatever other processes
        # do.
        found = split.store.read(numbers, shape.length if self._is_ragged else None)
        rows = {name: row.to(batch.indices.device) for name, row in found.items()}
        self._statistics.seconds_reading += time.perf_counter() - began
        self._statistics.seconds_avoided += self._seconds_per_sample * len(batch)
        with split.answering(rows, shape):
            yield

    @property
    def _seconds_per_sample(self) -> float:
        """Seconds of the frozen prefix per sample: measured while recording, else by the probe."""
        if self._num_recorded == 0:
            return self._seconds
        return self._seconds_recording / self._num_recorded

    @contextmanager
    def _timed(self, split: SplitCache) -> Iterator[None]:
        before = split.seconds
        yield
        self._statistics.seconds_trying += split.seconds - before

    def _judged(self, batch: Batch, split: SplitCache) -> ShapeFinding:
        with self._timed(split):
            return judge(split, batch)

    def _written_from_full_batch(self, batch: Batch, split: SplitCache) -> Mapping[str, Tensor]:
        """Compute rows for a batch of an inexact shape by a full batch; write and return them."""
        # If a split is always cut in order, its rows are defined by its own batches, not by full
        # ones.
        # Nor do processes that share the weights each run passes of their own.
        is_open = not split.is_full and not split.in_order and not self._together.is_on
        if not is_open or len(batch) > split.size or split.has(batch.indices, batch.view):
            return {}
        with self._timed(split):
            rows = in_full_batch(split, batch)
        if rows:
            self._write(batch, split, rows)
        else:
            split.is_full = True
            why = "a full batch makes other calls than the batch that was tried, or lacks memory"
            self._tell(f"activation cache: nothing more is stored: {why}")
        return rows

    def _tell_notes(self, split: SplitCache) -> None:
        """Tell the user the new messages of a store."""
        for note in split.store.take_notes():
            self._tell(f"activation cache: {note}")

    @contextmanager
    def _recording(
        self, batch: Batch, split: SplitCache
    ) -> Iterator[tuple[Mapping[str, Tensor], bool]]:
        """Record and store the outputs of frozen calls in the block.

        Yields the mapping of rows, filled when the block ends, and whether an inner cache answered
        some calls.
        """
        recording = split.recording(split.shape(batch.indices))
        before = self.replay.seconds
        with self._with_inner(batch, split.samples) as is_helped, recording as rows:
            yield rows, is_helped
        # If an inner cache answered a part of the prefix, the measured time is not that of the
        # whole prefix.
        if not is_helped:
            self._seconds_recording += self.replay.seconds - before
            self._num_recorded += len(batch)
        self._write(batch, split, rows)

    def _write(self, batch: Batch, split: SplitCache, rows: Mapping[str, Tensor]) -> None:
        if split.is_full or not rows:
            return
        # Splits that are cut in order have rows of whole batches only.
        if batch.skipped and split.in_order:
            return
        # A sample that takes the place of a skipped one must not be stored as the row of that one.
        kept = batch.is_whole if batch.skipped else slice(None)
        began = time.perf_counter()
        if split.keeps_digests:
            # Rows of a split that is not cut in order are those of a full batch, see `exact.py`.
            shape = split.shape(batch.indices) if split.in_order else None
            rows = {**rows, SAMPLE: labels_of(batch.inputs, split.samples.padded, shape)}
        try:
            split.store.write(
                split.numbers(batch.indices, batch.view)[kept],
                {name: row.cpu()[kept] for name, row in rows.items()},
                lengths_of(batch.inputs).cpu()[kept] if self._is_ragged else None,
            )
        except StoreError as error:
            # Only speed is lost: stored rows are still used, all other samples run.
            split.is_full = True
            self._tell(f"activation cache: nothing more is stored: {error.in_one_line}")
        self._tell_notes(split)
        self._statistics.seconds_writing += time.perf_counter() - began

    @contextmanager
    def _with_inner(self, batch: Batch, samples: Split) -> Iterator[bool]:
        """Let the inner cache, if there is one, serve the block; yield whether it answers calls."""
        if self._inner is None:
            yield False
        else:
            with self._inner.taking_part(batch, samples) as answers:
                yield answers

    @contextmanager
    def taking_part(self, batch: Batch, samples: Split) -> Iterator[bool]:
        """Serve a cache with a deeper boundary while it runs the network on a batch in the block.

        Frozen calls up to this boundary are answered or recorded. Yields whether any is answered.
        """
        split = self._splits.get(samples.name)
        if split is None:
            yield False
            return
        # A cache of an earlier phase writes no more rows, so a trial would not pay.
        is_exact = not split.is_full and self._judged(batch, split).fault is None
        is_alone = not self._together.is_on
        numbers = split.rows_of(batch.indices, batch.view) if is_alone else None
        with self._around(batch, split, numbers, is_exact=is_exact) as (_, is_helped):
            yield is_helped
