"""Counts of what the activation cache did in a run."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Statistics:
    """What the activation cache did in a run so far, in training and evaluation."""

    answered: int = 0
    """Visits of samples whose frozen prefix was read from a store."""
    recorded: int = 0
    """Visits of samples whose frozen prefix ran and was stored."""
    whole: int = 0
    """Visits of samples in batches of a shape that is not exact: they ran and were not read."""
    seconds_reading: float = 0.0
    seconds_writing: float = 0.0
    seconds_trying: float = 0.0
    """Spent on trials of batch shapes."""
    seconds_avoided: float = 0.0
    """Time that the frozen prefix would have taken for answered samples."""

    @property
    def seconds_saved(self) -> float:
        """Seconds avoided minus seconds spent on the cache."""
        spent = self.seconds_reading + self.seconds_writing + self.seconds_trying
        return self.seconds_avoided - spent

    def as_data(self) -> dict[str, int | float]:
        """Return all of it as plain data, times rounded to milliseconds."""
        rounded = {name: round(value, 3) for name, value in asdict(self).items()}
        return rounded | {"seconds_saved": round(self.seconds_saved, 3)}
