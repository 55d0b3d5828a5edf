"""What a run reports: the protocol of all trackers, and one that forwards to several."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from finetune.pictures.finished_picture import Drawn
from finetune.redaction import redacted

WEIGHTS_STEP = "weights_step"
"""Entry of `scalars`: the step whose weights were tested, which may be before the present one."""
PLACE = ("epoch", "phase", WEIGHTS_STEP)
"""Entries of `scalars` that say where in the run a line belongs; they are not curves."""

OF_PHASES = ("freeze/phase", "freeze/trained_parameters")
"""Tags of figures that only change between phases."""


def on_failure(name: str, fault: str) -> str:
    """Return the line that is told once when a tracker fails that a run can do without."""
    return f"{name} failed, and the run goes on without it: {fault}"


class Embedding(NamedTuple):
    """The inputs of a layer for N samples, D numbers each, and what is known of each sample."""

    layer: str
    rows: np.ndarray
    """`(N, D)` float32."""
    columns: Mapping[str, Sequence[str]]
    """Texts by name, N each, such as targets."""
    images: Sequence[np.ndarray]
    """Pixels `(H, W, 3)` uint8 of each sample; empty without images."""


class Tracker(Protocol):
    """Receives what a run reports. Each method may ignore what the tracker has no use for."""

    # A bare `return` tells mypy that doing nothing is meant, not that the method is abstract.

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Receive the position of the run. What an earlier process reported later is void.

        `lines` is how often it had reported scalars by then, or None if that is not known.
        """
        return

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Receive the figures of an optimizer step, by tag, with the entries of `PLACE`."""
        return

    def text(self, tag: str, text: str, step: int) -> None:
        """Receive a text in Markdown."""
        return

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Receive a picture."""
        return

    def pr_curve(self, tag: str, is_so: np.ndarray, score: np.ndarray, step: int) -> None:
        """Receive whether samples are of a class `(N,)` bool, and its probabilities `(N,)`."""
        return

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Receive numbers of one kind, such as weights, `(N,)`."""
        return

    def embedding(self, embedding: Embedding, step: int) -> None:
        """Receive what enters the head of the network."""
        return

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Receive the run's settings and its final metrics by tag; called once, at the end."""
        return

    def message(self, text: str) -> None:
        """Receive one line for the person who watches."""
        return

    def file(self, path: Path) -> None:
        """Receive a file that the run has written, such as the page about it."""
        return

    def ends(self, status: str) -> None:
        """Receive how the run ends: `done`, `stopped` or `failed`. It may be called twice."""
        return

    def close(self) -> None:
        """Write what is still queued. A second call does nothing."""
        return


class Trackers(Tracker):
    """Forwards every call to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.begin(step, total_steps, lines=lines)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def text(self, tag: str, text: str, step: int) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.text(tag, text, step)

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.image(tag, image, step)

    def pr_curve(self, tag: str, is_so: np.ndarray, score: np.ndarray, step: int) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.pr_curve(tag, is_so, score, step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.histogram(tag, values, step)

    def embedding(self, embedding: Embedding, step: int) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.embedding(embedding, step)

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.hparams(values, metrics)

    def message(self, text: str) -> None:
        """Forward to each tracker, redacted: a line may quote a path or a library's message."""
        for tracker in self._trackers:
            tracker.message(redacted(text))

    def file(self, path: Path) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.file(path)

    def ends(self, status: str) -> None:
        """Forward to each tracker."""
        for tracker in self._trackers:
            tracker.ends(status)

    def close(self) -> None:
        """Close every tracker, the last one first, also when one of them fails."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                # `ExitStack` closes all of them even if one raises, and raises that error at the
                # end.
                stack.callback(tracker.close)
