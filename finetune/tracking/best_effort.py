"""A tracker that is only for looking: if it cannot write, the run says so once and goes on."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from finetune.errors import FinetuneError
from finetune.pictures.finished_picture import Drawn
from finetune.tracking.tracker import Embedding, Tracker, on_failure
from finetune.tracking.waiting_calls import Job


class BestEffort(Tracker):
    """Forwards each call to another tracker until one fails; that is no reason to end a run.

    What a run needs to go on, `metrics.jsonl` and checkpoints, is not written by such a tracker.

    Args:
        name: What the line calls the tracker.
        tracker: Its calls raise `FinetuneError` if it cannot write.
        tell: Tells a line to the person. It is called by `begin`, `scalars`, `hparams` and `close`
            alone: pictures come from a thread of their own.
    """

    def __init__(self, name: str, tracker: Tracker, tell: Callable[[str], None]) -> None:
        self._name, self._tracker, self._tell = name, tracker, tell
        self._fault: str | None = None
        self._is_told = False

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Forward, and tell if it fails."""
        self._send(lambda tracker: tracker.begin(step, total_steps, lines=lines))
        self._tell_fault()

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Forward, and tell if it or a call since the last figures has failed."""
        self._send(lambda tracker: tracker.scalars(step, values))
        self._tell_fault()

    def text(self, tag: str, text: str, step: int) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.text(tag, text, step))

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.image(tag, image, step))

    def pr_curve(self, tag: str, is_so: np.ndarray, score: np.ndarray, step: int) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.pr_curve(tag, is_so, score, step))

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.histogram(tag, values, step))

    def embedding(self, embedding: Embedding, step: int) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.embedding(embedding, step))

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Forward, and tell if it fails."""
        self._send(lambda tracker: tracker.hparams(values, metrics))
        self._tell_fault()

    def file(self, path: Path) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.file(path))

    def ends(self, status: str) -> None:
        """Forward the call."""
        self._send(lambda tracker: tracker.ends(status))

    def close(self) -> None:
        """Close the tracker, also one that has failed, and tell if it has."""
        # Asked before: a tracker whose closing itself fails is not closed twice.
        has_failed = self._fault is not None
        self._send(lambda tracker: tracker.close())
        if has_failed:
            with suppress(FinetuneError):
                self._tracker.close()
        self._tell_fault()

    def _send(self, job: Job) -> None:
        """Forward a call, unless the tracker has failed."""
        if self._fault is not None:
            return
        try:
            job(self._tracker)
        # Any other error is a fault of finetune, which must not be hidden.
        except FinetuneError as error:
            self._fault = error.in_one_line

    def _tell_fault(self) -> None:
        """Say once that the tracker has failed."""
        if self._fault is not None and not self._is_told:
            self._is_told = True
            self._tell(on_failure(self._name, self._fault))
