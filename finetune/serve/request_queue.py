"""Requests that wait, put together into batches for the one thread that runs networks."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import FinetuneError
from finetune.predict import Predictors
from finetune.serve.asked_samples import AskedSamples
from finetune.serve.counters import Counters
from finetune.serve.refusal import Refusal, ServiceLimits
from finetune.tasks.records import PredictionRecord


@dataclass(frozen=True, slots=True)
class Answered:
    """The predictions for a request."""

    by_run: dict[str, list[PredictionRecord]]
    notes: tuple[str, ...]
    """Lines on what was converted or cut, in the batch of the request."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request that waits for its answer."""

    asked: AskedSamples
    until: float
    """Time of the monotonic clock after which nobody wants the answer."""
    answer: "Future[Answered]" = field(default_factory=Future)


class RequestQueue:
    """Runs requests one batch at a time, in a thread of its own.

    Requests that ask the same runs share a batch, up to as many samples as the runs take at once.

    Args:
        runs: The predictors; from here on only the thread of the queue uses them.
        limits: Of the service.
        counters: Receive what was run.
    """

    def __init__(self, runs: Predictors, limits: ServiceLimits, counters: Counters) -> None:
        self._runs, self._limits, self._counters = runs, limits, counters
        self._waiting: deque[Waiting] = deque()
        self._errands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        # As a daemon: where the service cannot start, nobody closes the queue.
        self._thread = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, asked: AskedSamples) -> Waiting:
        """Add a request.

        Raises:
            Refusal: the service stops.
        """
        waiting = Waiting(asked, time.monotonic() + self._limits.timeout_s)
        with self._changed:
            if self._is_over:
                raise Refusal(503, "the service stops")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting

    def between_batches(self, errand: Callable[[], None]) -> "Future[None]":
        """Call a function in the thread of the queue, before the next batch."""
        done: Future[None] = Future()
        with self._changed:
            self._errands.append((errand, done))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._errands or self._is_over):
                    self._changed.wait()
                errands, self._errands = self._errands, deque()
            # Outside the lock: adding a run tries its prefix, and requests must be taken meanwhile.
            for errand, done in errands:
                _settle(done, errand)
            batch = self._next_batch()
            if batch:
                self._answer(batch)
            # Only when nothing waits: those that were accepted are answered before the service
            # ends.
            elif self._is_over and not self._errands:
                return

    def _next_batch(self) -> list[Waiting]:
        """Return requests that share a batch: the first one, and later ones that ask the same."""
        with self._changed:
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            batch, room = [first], self._room(first.asked) - first.asked.count
            until = time.monotonic() + self._limits.batch_wait_ms / 1000
            while room > 0 and self._limits.batch_wait_ms > 0:
                room -= self._take_alike(batch, room)
                left = until - time.monotonic()
                if room <= 0 or left <= 0 or self._is_over:
                    break
                self._changed.wait(left)
        return batch

    def _room(self, asked: AskedSamples) -> int:
        # A run may have gone since the request was read; `_run` then says so.
        known = [name for name in asked.names if name in self._runs]
        return min((self._runs[name].batch_size for name in known), default=0)

    def _take_alike(self, batch: list[Waiting], room: int) -> int:
        """Move waiting requests that fit into a batch; return how many samples they have."""
        taken = 0
        # A copy, since those taken are removed meanwhile.
        for one in list(self._waiting):
            is_alike = (
                one.asked.names == batch[0].asked.names
                and one.asked.columns.keys() == batch[0].asked.columns.keys()
            )
            if is_alike and taken + one.asked.count <= room:
                self._waiting.remove(one)
                batch.append(one)
                taken += one.asked.count
        return taken

    def _answer(self, batch: list[Waiting]) -> None:
        now = time.monotonic()
        for late in [one for one in batch if one.until < now]:
            # Nobody waits for it: its pass would only delay the others.
            late.answer.cancel()
        # A client that waits no longer has cancelled its own.
        batch = [one for one in batch if one.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            self._run(batch)
        except Exception as error:  # noqa: BLE001 - each request is told its own error
            if len(batch) == 1:
                batch[0].answer.set_exception(_told(error))
                return
            # One request's sample must not spoil the others: each by itself.
            for one in batch:
                try:
                    self._run([one])
                except Exception as own:  # noqa: BLE001
                    one.answer.set_exception(_told(own))

    def _run(self, batch: list[Waiting]) -> None:
        """Predict the samples of all requests of a batch together, and hand out the answers."""
        names = batch[0].asked.names
        columns: dict[str, list[Any]] = {
            name: [value for one in batch for value in one.asked.columns[name]]
            for name in batch[0].asked.columns
        }
        began, spared = time.perf_counter(), self._runs.spared
        notes: list[str] = []
        found = self._runs(columns, names, notes.append)
        self._counters.ran(
            names,
            sum(one.asked.count for one in batch),
            time.perf_counter() - began,
            self._runs.spared - spared,
        )
        start = 0
        for one in batch:
            end = start + one.asked.count
            own = {name: records[start:end] for name, records in found.items()}
            one.answer.set_result(Answered(own, tuple(notes)))
            start = end


def _settle(done: "Future[None]", errand: Callable[[], None]) -> None:
    try:
        errand()
    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
        done.set_exception(error)
    else:
        done.set_result(None)


def _told(error: Exception) -> Exception:
    """Return an error as a request is told it; a bug stays what it is."""
    if isinstance(error, FinetuneError):
        # Without the place: the input has none, and files of the service are no business of others.
        return Refusal(422, error.message or error.in_one_line, error.hint)
    return error
