"""What stores have done for a run."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Statistics:
    """What stores have done for a run so far, in training and evaluation."""

    answered: int = 0
    """Samples whose prefix did not run."""
    recorded: int = 0
    """Samples whose prefix ran and was written down."""
    whole: int = 0
    """Samples whose prefix runs every time, as their batch has a shape that is not exact."""
    seconds_reading: float = 0.0
    seconds_writing: float = 0.0
    seconds_trying: float = 0.0
    """Spent on finding out which batches are exact."""
    seconds_avoided: float = 0.0
    """What the prefix would have taken for the samples answered."""

    @property
    def seconds_saved(self) -> float:
        """What was avoided less what the store has cost."""
        spent = self.seconds_reading + self.seconds_writing + self.seconds_trying
        return self.seconds_avoided - spent

    def as_data(self) -> dict[str, int | float]:
        """Return all of it as plain data, times rounded to milliseconds."""
        rounded = {name: round(value, 3) for name, value in asdict(self).items()}
        return rounded | {"seconds_saved": round(self.seconds_saved, 3)}
