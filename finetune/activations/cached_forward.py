"""Run batches with the activation cache: rows are recorded first and answered later.

The life of a batch. `fetches` leaves out the input columns that only frozen calls read if all rows
of the batch are stored. `forward` then either *answers* (frozen calls return stored rows), or
*records* (frozen calls run and their outputs become rows), or runs the network *whole*, if the
batch has a shape in which samples get other bits (see `exact.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finetune.activations.batch_shapes import Split, lengths_of
from finetune.activations.exact import Judgement, Trials
from finetune.activations.forward import run_whole
from finetune.activations.key import Facts
from finetune.activations.passes import Passes, Recomputed
from finetune.activations.replay import Replay
from finetune.activations.statistics import Statistics
from finetune.bits import same_bits
from finetune.data.batches import Batch, Samples
from finetune.errors import is_out_of_memory
from finetune.store.store import Store, StoreError


@dataclass(slots=True)
class SplitCache:
    """The cache of one split: its samples, its store, and what is known of its batch shapes."""

    samples: Split
    store: Store
    trials: Trials
    is_full: bool = False
    """Whether nothing more is written: the store is full, or belongs to an earlier phase."""

    @property
    def passes(self) -> Passes:
        """Makes forward passes of the split that only serve the cache."""
        return self.trials.passes

    def answers(self, indices: Tensor, view: int) -> bool:
        """Tell whether a batch of these samples can be answered from the store."""
        return self.trials.passed(self.passes.shape(indices)) and self.has(indices, view)

    def has(self, indices: Tensor, view: int) -> bool:
        """Tell whether all rows of a batch are stored."""
        return bool(self.store.has(self.rows(indices, view)).all())

    def rows(self, indices: Tensor, view: int) -> Tensor:
        """Return the row numbers of a view of the samples at `indices`."""
        return view * len(self.samples) + indices


class CachedForward:
    """Answers frozen calls from stores, one per split, and fills them at first visits.

    Args:
        model: The network, its mask and modes set.
        replay: Records and answers its frozen calls.
        facts: What the rows depend on besides the data.
        statistics: Counts what was answered and recorded; mutated.
        seconds: Seconds of the frozen prefix for one sample, as probed.
        tell: Receives a line for the user if something is not cached.
        run: The network as it is called, itself or compiled.
        inner: The cache of a boundary closer to the input. If it has the rows of a batch, only the
            modules between the two boundaries run; else its rows are recorded too. It is removed
            and closed with this one.
    """

    def __init__(
        self,
        model: nn.Module,
        replay: Replay,
        facts: Facts,
        *,
        statistics: Statistics,
        seconds: float,
        tell: Callable[[str], None],
        run: Callable[..., Any],
        inner: "CachedForward | None" = None,
    ) -> None:
        self.model, self.replay, self.facts = model, replay, facts
        self.boundary, self._run = replay.boundary, run
        self._statistics, self._seconds, self._tell = statistics, seconds, tell
        self._inner = inner
        self._splits: dict[int, SplitCache] = {}
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

    def add(self, samples: Split, store: Store, trials: Trials, checked: Tensor) -> None:
        """Add a split with its store; recompute a few of `checked`, drop all if one differs."""
        stored = self._splits[id(samples)] = SplitCache(samples, store, trials)
        fault = self._fault_of(stored, checked) if len(checked) else None
        if fault is not None:
            store.discard()
            trials.passes.forget()
            self._tell(
                f"activation cache: the rows of store {store.meta.key} {fault}: all recomputed"
            )

    def as_it_stands(self) -> "CachedForward":
        """Stop recording and close the inner cache; return self, which only answers from now on."""
        for stored in self._splits.values():
            stored.is_full = True
        self._let_inner_go()
        return self

    def _let_inner_go(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._inner = None

    @property
    def stores(self) -> list[Store]:
        """The stores of all splits."""
        return [stored.store for stored in self._splits.values()]

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches; if all rows are stored, columns only frozen calls read are blank."""
        stored = self._splits.get(id(samples))
        if stored is None:
            yield from samples.fetches(cuts, epoch=epoch)
            return
        view = epoch % samples.views if samples.views else 0
        is_there = [stored.has(cut, view) for cut in cuts]
        self._tell_notes(stored)
        missing = [cut for cut, is_stored in zip(cuts, is_there, strict=True) if not is_stored]
        computed = samples.fetches(missing, epoch=epoch)
        for cut, is_stored in zip(cuts, is_there, strict=True):
            if not is_stored:
                yield next(computed)
            elif stored.answers(cut, view):
                yield samples.fetch(cut, epoch=epoch, blank=self.boundary.unread)
            else:
                yield samples.fetch(cut, epoch=epoch)

    def forward(self, batch: Batch, samples: Split) -> Any:
        """Run the network on a batch; frozen calls are answered if all rows are stored."""
        stored = self._splits.get(id(samples))
        if stored is None:
            return self._run(**batch.inputs)
        if stored.answers(batch.indices.cpu(), batch.view):
            return self._answered(batch, stored)
        batch = self._complete(batch, samples)
        judgement = self._judged(batch, stored)
        if not judgement.is_exact:
            return self._whole(batch, stored)
        if stored.answers(batch.indices.cpu(), batch.view):
            return self._answered(batch, stored)
        if judgement.rows and self._inner is None:
            return self._answered_at_once(batch, stored, judgement.rows)
        with self._recording(batch, stored) as (rows, _):
            outputs = self._run(**batch.inputs)
        self._count(batch, stored, rows)
        return outputs

    def close(self) -> None:
        """Close the stores, and restore every module's own `forward`."""
        self.remove()
        for store in self.stores:
            store.close()
        self._let_inner_go()

    def _answered(self, batch: Batch, stored: SplitCache) -> Any:
        self._statistics.answered += len(batch)
        with self._answering(batch, stored):
            return self._run(**batch.inputs)

    @contextmanager
    def _answering(self, batch: Batch, stored: SplitCache) -> Iterator[None]:
        """Answer the frozen calls in the block with the stored rows of a batch."""
        began, indices = time.perf_counter(), batch.indices.cpu()
        shape = stored.passes.shape(indices)
        found = stored.store.read(
            stored.rows(indices, batch.view), shape.length if self._is_ragged else None
        )
        rows = {name: row.to(batch.indices.device) for name, row in found.items()}
        self._statistics.seconds_reading += time.perf_counter() - began
        self._statistics.seconds_avoided += self._seconds_per_sample * len(batch)
        with stored.passes.answering(rows, shape):
            yield

    @property
    def _seconds_per_sample(self) -> float:
        """Seconds of the frozen prefix for one sample, measured in recording, else as probed."""
        if self._num_recorded == 0:
            return self._seconds
        return self._seconds_recording / self._num_recorded

    @contextmanager
    def _timed(self, passes: Passes) -> Iterator[None]:
        before = passes.seconds
        yield
        self._statistics.seconds_trying += passes.seconds - before

    def _judged(self, batch: Batch, stored: SplitCache) -> Judgement:
        with self._timed(stored.passes):
            return stored.trials.judge(batch)

    def _whole(self, batch: Batch, stored: SplitCache) -> Any:
        """Run the whole network on a batch whose shape is not exact."""
        self._statistics.whole += len(batch)
        if rows := self._written_from_full_batch(batch, stored):
            self._count(batch, stored, rows)
        with self._with_inner(batch, stored.samples):
            return run_whole(self._run, batch, self.replay, stored.samples)

    def _written_from_full_batch(self, batch: Batch, stored: SplitCache) -> Mapping[str, Tensor]:
        """Compute and write the rows of an inexact batch from a full batch; return them."""
        # rows of a split that is always cut in order come from its own batches, not from full ones
        is_open = not stored.is_full and not stored.passes.in_order
        if not is_open or len(batch) > stored.passes.size:
            return {}
        if stored.has(batch.indices.cpu(), batch.view):
            return {}
        with self._timed(stored.passes):
            rows = stored.passes.in_full_batch(batch)
        if rows:
            self._write(batch, stored, rows)
        else:
            stored.is_full = True
            why = "a full batch makes other calls than the batch that was tried, or lacks memory"
            self._tell(f"activation cache: nothing more is stored: {why}")
        return rows

    def _complete(self, batch: Batch, samples: Split) -> Batch:
        """Return the batch with all its columns if some were left blank.

        Needed if rows that were stored when the batch was fetched are gone now, because another
        process found them damaged.
        """
        unread = [batch.inputs[name] for name in self.boundary.unread]
        if not unread or any(bool(values.any()) for values in unread):
            return batch
        again = samples.fetch(batch.indices.cpu(), epoch=batch.view)
        return again.to(batch.indices.device)

    def _tell_notes(self, stored: SplitCache) -> None:
        """Tell the user the new messages of a store."""
        for note in stored.store.take_notes():
            self._tell(f"activation cache: {note}")

    def _answered_at_once(
        self, batch: Batch, stored: SplitCache, rows: Mapping[str, Tensor]
    ) -> Any:
        """Store `rows`, which a trial has just computed, and answer with them."""
        self._write(batch, stored, rows)
        self._count(batch, stored, rows)
        with stored.passes.answering(rows, stored.passes.shape(batch.indices)):
            return self._run(**batch.inputs)

    @contextmanager
    def _recording(
        self, batch: Batch, stored: SplitCache
    ) -> Iterator[tuple[Mapping[str, Tensor], bool]]:
        """Record and store the outputs of frozen calls in the block.

        Yields the mapping of rows, filled when the block ends, and whether an inner cache answered
        some calls.
        """
        recording = stored.passes.recording(stored.passes.shape(batch.indices))
        before = self.replay.seconds
        with self._with_inner(batch, stored.samples) as is_helped, recording as rows:
            yield rows, is_helped
        if not is_helped:
            self._seconds_recording += self.replay.seconds - before
            self._num_recorded += len(batch)
        self._write(batch, stored, rows)

    def _write(self, batch: Batch, stored: SplitCache, rows: Mapping[str, Tensor]) -> None:
        if stored.is_full or not rows:
            return
        began = time.perf_counter()
        try:
            stored.store.write(
                stored.rows(batch.indices.cpu(), batch.view),
                {name: row.cpu() for name, row in rows.items()},
                lengths_of(batch.inputs).cpu() if self._is_ragged else None,
            )
        except StoreError as error:
            # Only speed is lost: stored rows are still used, all other samples run.
            stored.is_full = True
            self._tell(f"activation cache: nothing more is stored: {error.in_one_line}")
        self._tell_notes(stored)
        self._statistics.seconds_writing += time.perf_counter() - began

    def _count(self, batch: Batch, stored: SplitCache, rows: Mapping[str, Tensor]) -> None:
        """Count a batch that was not answered."""
        if not rows:
            self._statistics.whole += len(batch)
        elif not stored.is_full:
            self._statistics.recorded += len(batch)

    @contextmanager
    def _with_inner(self, batch: Batch, samples: Split) -> Iterator[bool]:
        """Let the inner cache, if any, answer or record in the block; yield whether it answers."""
        if self._inner is None:
            yield False
        else:
            with self._inner.taking_part(batch, samples) as answers:
                yield answers

    @contextmanager
    def taking_part(self, batch: Batch, samples: Split) -> Iterator[bool]:
        """Answer or record in the block, in which a cache with a deeper boundary runs the network.

        Yields whether anything is answered.
        """
        stored = self._splits.get(id(samples))
        if stored is None:
            yield False
            return
        indices = batch.indices.cpu()
        is_exact = not stored.is_full and self._judged(batch, stored).is_exact
        if stored.answers(indices, batch.view):
            with self._answering(batch, stored):
                yield True
        elif is_exact:
            with self._recording(batch, stored) as (_, is_helped):
                yield is_helped
        else:
            self._written_from_full_batch(batch, stored)
            with self._with_inner(batch, samples) as is_helped:
                yield is_helped

    def _fault_of(self, stored: SplitCache, checked: Tensor) -> str | None:
        """Recompute a few rows and compare; return why the store's rows cannot be used, or None."""
        try:
            recomputed = stored.passes.some_recomputed(checked)
            is_right = any(self._is_stored(stored.store, now) for now in recomputed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return "cannot be looked over, memory is short"
        return None if is_right else "are wrong"

    def _is_stored(self, store: Store, now: Recomputed) -> bool:
        """Tell whether the rows that a store has of these are equal to them, bit by bit."""
        there = store.has(now.rows)
        then = store.read(now.rows[there], now.length if self._is_ragged else None)
        return now.values.keys() == then.keys() and all(
            same_bits(values[there], then[name]) for name, values in now.values.items()
        )
