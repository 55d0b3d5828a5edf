"""A watch over one metric: its best value, since when, and for how long it has not improved."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Rule(NamedTuple):
    """What a watch goes by. It comes from the config, and the direction from the metric itself."""

    key: str
    """Config key of the rule, as messages name it."""
    metric: str
    """Tag of the metric, such as `validation/loss`."""
    falls: bool
    """Whether lower values are better."""
    min_delta: float = 0.0
    """Smallest gain that counts, in the metric's own unit."""
    patience: int | None = None
    """Evaluations in a row without a gain after which the watch is over; None if it never is."""


@dataclass(slots=True)
class Watch:
    """What one rule has seen so far. Each rule that watches a metric has one."""

    value: float | None = None
    """Best value so far; None before the first one."""
    step: int | None = None
    """Step at which it was reached."""
    stale: int = 0
    """Evaluations in a row since then without a gain."""
    is_over: bool = False
    """Whether there were as many of them as the rule's patience."""

    def see(self, value: float, step: int, rule: Rule) -> bool:
        """Record the value of one evaluation; return whether it is a new best. NaN never is."""
        if improves(value, self.value, falls=rule.falls, min_delta=rule.min_delta):
            self.value, self.step, self.stale = value, step, 0
            return True
        self.stale += 1
        self.is_over = rule.patience is not None and self.stale >= rule.patience
        return False

    def begin_again(self) -> None:
        """Count evaluations without a gain from zero; the best value stays the one to beat."""
        self.stale, self.is_over = 0, False

    def restart(self) -> None:
        """Forget all that was seen."""
        self.value, self.step, self.stale, self.is_over = None, None, 0, False

    def claims(self, name: str, first: int, last: int) -> Iterator[tuple[bool, str]]:
        """Yield what must hold of a watch over steps `first` to `last`, with words if it does not.

        Args:
            name: Its name in `progress.json`.
            first: Step at which it began.
            last: Present step.
        """
        # an earlier release kept no step for two of the watches
        is_whole = self.value is not None or self.step is None
        yield is_whole, f"{name} has a step and no value"
        is_past = self.step is None or first <= self.step <= last
        yield is_past, f"the step {self.step} of {name} does not lie between {first} and {last}"
        # nothing improves on NaN: a run with such a best value would never find a better one
        yield self.value is None or not math.isnan(self.value), f"the value of {name} is NaN"
        is_possible = 0 <= self.stale <= last
        yield is_possible, f"{name} is stale for {self.stale} evaluations at step {last}"


def improves(value: float, best: float | None, *, falls: bool, min_delta: float = 0.0) -> bool:
    """Tell whether `value` is better than `best` by more than `min_delta`. NaN never is.

    Args:
        value: The new figure.
        best: The best so far; None if there is none yet.
        falls: Whether lower is better.
        min_delta: The least gain that counts.
    """
    if best is None:
        return value == value
    return value < best - min_delta if falls else value > best + min_delta
