"""Counts the seconds of each activity of a run, and shows the watchdog that it is alive."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finetune.train.timeline import Timeline
from finetune.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Clock:
    """Adds the seconds of a block to the run's progress."""

    timeline: Timeline
    watchdog: Watchdog

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Count the seconds of the block under the name of an activity."""
        self.watchdog.beat()
        began = time.perf_counter()
        yield
        self.timeline.progress.add_seconds(activity, time.perf_counter() - began)
