"""A tracker in a thread of its own: it may be slow, and if it fails, the run goes on without it."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from finetune.errors import FinetuneError
from finetune.pictures.finished_picture import Drawn
from finetune.redaction import redacted
from finetune.tracking.run_names import Identity, without_password
from finetune.tracking.tracker import Tracker, on_failure
from finetune.tracking.waiting_calls import Job, WaitingCalls

CLOSING_S = 120.0
"""Seconds that the end of a run waits until everything is handed over."""

_LONGEST_FAULT = 300
"""Characters of a program's error that are told."""

_FORK_WAITS_S = 10.0
"""Seconds that the start of a worker process waits while such a program loads."""


class _ForkGuard:
    """Keeps worker processes from being forked while another program loads in a thread.

    A fork copies the locks of a module that another thread is importing, and nobody opens them in
    the copy: an import of that module there would wait for ever.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        """Held during a fork: another one waits, and no program begins to load."""
        self._loading: list[threading.RLock] = []
        """Locks of programs that a fork still waits for; changed only with the mutex held."""
        self._held: list[threading.RLock] = []
        os.register_at_fork(
            before=self._hold, after_in_parent=self._release, after_in_child=self._release
        )

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let no process be forked while the block loads a program."""
        lock = threading.RLock()
        with self._mutex:
            lock.acquire()
            self._loading.append(lock)
        try:
            yield
        finally:
            # First the lock: a fork that waits for it has the mutex.
            lock.release()
            with self._mutex:
                if lock in self._loading:
                    self._loading.remove(lock)

    def _hold(self) -> None:
        self._mutex.acquire()
        for lock in tuple(self._loading):
            if lock.acquire(timeout=_FORK_WAITS_S):
                self._held.append(lock)
            else:
                # A program that hangs costs the run one wait, not one for each of its workers.
                self._loading.remove(lock)

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()
        self._mutex.release()


_FORK_GUARD = _ForkGuard()


class Apart(Tracker):
    """Hands each call to another tracker, in order, in a thread.

    Programs of others load for seconds, and may wait for a disk or a network: no step waits for
    them. The first error of such a program is told in one line, and it gets no further call.

    Args:
        name: What the line calls the tracker.
        identify: Returns what the tracker is to know the run by; called once the run has begun.
        make: Makes the tracker; called in the thread.
        tell: Tells a line to the person.
        closing_s: Seconds that `close` waits.
    """

    def __init__(
        self,
        name: str,
        identify: Callable[[], Identity],
        make: Callable[[Identity], Tracker],
        tell: Callable[[str], None],
        closing_s: float = CLOSING_S,
    ) -> None:
        self._name, self._tell, self._closing_s = name, tell, closing_s
        self._identify, self._make = identify, make
        self._calls = WaitingCalls()
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        """Why the tracker gets no further call; set by the thread."""
        self._is_told = self._is_fullness_told = False

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Hand on; the first call starts the thread."""
        self._send(lambda tracker: tracker.begin(step, total_steps, lines=lines))

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Hand on; an error since the last call is told here, not by the thread that draws."""
        self._tell_fault()
        self._send(lambda tracker: tracker.scalars(step, values))
        if self._calls.left_out and not self._is_fullness_told:
            self._is_fullness_told = True
            self._tell(
                f"{self._name} is slower than the run: calls are dropped until it has caught up"
            )

    def text(self, tag: str, text: str, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.text(tag, text, step))

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.image(tag, image, step), image.pixels.nbytes)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.histogram(tag, values, step), values.nbytes)

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Hand a copy of the metrics on: the run changes them when it goes on."""
        final = dict(metrics)
        self._send(lambda tracker: tracker.hparams(values, final), is_needed=True)

    def file(self, path: Path) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.file(path), is_needed=True)

    def ends(self, status: str) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.ends(status), is_needed=True)

    def close(self) -> None:
        """Wait until all calls are handed over, but not for ever."""
        if self._thread is None:
            return
        self._calls.put(None, is_needed=True)
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            # It is a daemon: what it has not sent by the end of the process is lost.
            self._fault = f"not everything was handed over within {self._closing_s:.0f} s"
        elif self._calls.left_out and self._fault is None:
            self._tell(
                f"{self._name} was slower than the run: it lacks {self._calls.left_out} calls"
            )
        self._thread = None
        self._tell_fault()

    def _send(self, job: Job, size: int = 0, *, is_needed: bool = False) -> None:
        """Queue a call, unless the tracker has failed."""
        if self._fault is None and self._thread is None:
            self._start()
        if self._fault is None:
            self._calls.put(job, size, is_needed=is_needed)

    def _start(self) -> None:
        """Start the thread with a new tracker; if the run folder cannot name the run, fail."""
        try:
            make = partial(self._make, self._identify())
        except FinetuneError as error:
            self._fault = error.in_one_line
            return
        self._calls = WaitingCalls()
        self._thread = threading.Thread(
            target=self._work, args=(make, self._calls), name=f"tracking-{self._name}", daemon=True
        )
        self._thread.start()

    def _work(self, make: Callable[[], Tracker], calls: WaitingCalls) -> None:
        """Make the tracker, hand over calls until there are no more, then close it."""
        try:
            with _FORK_GUARD.loading():
                tracker = make()
            while (job := calls.get()) is not None:
                job(tracker)
            tracker.close()
        # Whatever another program raises, and some of them exit: the run is not theirs to end.
        except BaseException as error:  # noqa: BLE001
            said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self._fault = " ".join(str(said).split())
            calls.refuse()

    def _tell_fault(self) -> None:
        """Say once that the tracker has failed; not from its thread."""
        if self._fault is not None and not self._is_told:
            self._is_told = True
            # Masked before it is cut: half of a secret would not be found.
            fault = redacted(without_password(self._fault))[:_LONGEST_FAULT]
            self._tell(on_failure(self._name, fault))
