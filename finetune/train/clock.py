"""Counts the seconds of each activity of a run, and shows the watchdog that it is alive."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finetune.counting import doing
from finetune.train.timeline import Timeline
from finetune.watchdog import Watchdog

_WORDS = {
    "proof": "comparing what is frozen",
    "probe": "trying out the activation cache",
}
"""What a terminal shows of an activity, where its name says too little."""


@dataclass(slots=True)
class Clock:
    """Adds the seconds of a block to the run's progress."""

    timeline: Timeline
    watchdog: Watchdog
    data_s: float = 0.0
    """Seconds that the present step has waited for its samples."""

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Count the seconds of the block under the name of an activity."""
        self.watchdog.beat()
        began = time.perf_counter()
        doing(_WORDS.get(activity, activity))
        yield
        doing("")
        self.timeline.progress.add_seconds(activity, time.perf_counter() - began)
