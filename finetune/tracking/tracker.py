"""What a run tells the world: the protocol of all trackers, and one that hands on to several."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import numpy as np

from finetune.redaction import redacted

PLACE = ("epoch", "phase")
"""Entries of `scalars` that say where in the run a line stands. They are no curves of their own."""


class Tracker(Protocol):
    """Receives what a run tells, and is never asked. What it has no use for, it passes over."""

    # A bare `return` tells mypy that passing over is meant, not that the method is abstract.

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Receive where the run stands. What an earlier process told of later steps is void.

        `lines` says how many times it had received scalars by then, where that is known.
        """
        return

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Receive the figures of one optimizer step, by tag, and the entries of `PLACE`."""
        return

    def text(self, tag: str, text: str, step: int) -> None:
        """Receive text in Markdown."""
        return

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Receive a picture of `(H, W, 3)` bytes."""
        return

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Receive what the run was set to and, by tag, how it ended. Once, at the end."""
        return

    def message(self, text: str) -> None:
        """Receive one line for the person who watches."""
        return

    def close(self) -> None:
        """Write out what is still held back. A second call does nothing."""
        return


class Trackers(Tracker):
    """Hands everything on to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Hand on to each."""
        for tracker in self._trackers:
            tracker.begin(step, total_steps, lines=lines)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Hand on to each."""
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def text(self, tag: str, text: str, step: int) -> None:
        """Hand on to each."""
        for tracker in self._trackers:
            tracker.text(tag, text, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Hand on to each."""
        for tracker in self._trackers:
            tracker.image(tag, image, step)

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Hand on to each."""
        for tracker in self._trackers:
            tracker.hparams(values, metrics)

    def message(self, text: str) -> None:
        """Hand on to each, redacted: a line may tell of a path, or hold a library's words."""
        for tracker in self._trackers:
            tracker.message(redacted(text))

    def close(self) -> None:
        """Close every tracker, the last one first, also when one of them fails."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)
