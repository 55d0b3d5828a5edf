"""A tracker in a thread of its own: it may be slow, and if it fails, the run goes on without it."""

import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from finetune.redaction import redacted
from finetune.tracking.run_names import Identity, without_password
from finetune.tracking.tracker import Tracker

CLOSING_S = 120.0
"""Seconds that the end of a run waits until everything is handed over."""

_LONGEST_FAULT = 300
"""Characters of a program's error that are told."""

_Job = Callable[[Tracker], None]


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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        """Why the tracker gets no further call; set by the thread."""
        self._is_told = False

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Hand on; the first call starts the thread."""
        self._send(lambda tracker: tracker.begin(step, total_steps, lines=lines))

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Hand on; an error since the last call is told here, not by the thread that draws."""
        self._tell_fault()
        self._send(lambda tracker: tracker.scalars(step, values))

    def text(self, tag: str, text: str, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.text(tag, text, step))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.image(tag, image, step))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.histogram(tag, values, step))

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Hand a copy of the metrics on: the run changes them when it goes on."""
        final = dict(metrics)
        self._send(lambda tracker: tracker.hparams(values, final))

    def file(self, path: Path) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.file(path))

    def ends(self, status: str) -> None:
        """Hand the call on to the tracker, which works in another thread."""
        self._send(lambda tracker: tracker.ends(status))

    def close(self) -> None:
        """Wait until all calls are handed over, but not for ever."""
        if self._thread is None:
            return
        self._jobs.put(None)
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            # It is a daemon: what it has not sent by the end of the process is lost.
            self._fault = f"not everything was handed over within {self._closing_s:.0f} s"
        self._thread = None
        self._tell_fault()

    def _send(self, job: _Job) -> None:
        """Queue a call, unless the tracker has failed."""
        if self._fault is not None:
            return
        if self._thread is None:
            self._jobs = queue.SimpleQueue()
            name = f"tracking-{self._name}"
            make = partial(self._make, self._identify())
            self._thread = threading.Thread(
                target=self._work, args=(make, self._jobs), name=name, daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def _work(self, make: Callable[[], Tracker], jobs: "queue.SimpleQueue[_Job | None]") -> None:
        """Make the tracker, hand over calls until there are no more, then close it."""
        try:
            tracker = make()
            while (job := jobs.get()) is not None:
                job(tracker)
            tracker.close()
        # Whatever another program raises, and some of them exit: the run is not theirs to end.
        except BaseException as error:  # noqa: BLE001
            said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self._fault = " ".join(str(said).split())

    def _tell_fault(self) -> None:
        """Say once that the tracker has failed; not from its thread."""
        if self._fault is not None and not self._is_told:
            self._is_told = True
            # Masked before it is cut: half of a secret would not be found.
            fault = redacted(without_password(self._fault))[:_LONGEST_FAULT]
            self._tell(f"{self._name} failed, and the run goes on without it: {fault}")
