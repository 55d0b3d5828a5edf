"""Records: what prediction says of a sample, and how it is written as a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from finetune.data.batches import Batch


class PredictionRecord(Protocol):
    """The prediction for one sample."""

    def row(self) -> dict[str, Any]:
        """Return it as plain values by name, in the order in which they are written."""
        ...


@runtime_checkable
class PicturedRecord(PredictionRecord, Protocol):
    """A prediction that is a picture."""

    def picture(self) -> bytes:
        """Return the picture as a PNG."""
        ...


class Asked(NamedTuple):
    """What predictions are about: the samples that went through the network."""

    batch: Batch
    sample: Callable[[int], Mapping[str, Any]]
    """Returns the input columns of a sample of the batch as they were handed in, by position."""
    size: Callable[[int], tuple[int, int] | None] = lambda number: None
    """Returns height and width of a sample's image as it was handed in; None without one."""


Reader = Callable[[Any, Asked | None], list[Any]]
"""Function that reads one record for each sample from the network's outputs."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The class, labels or numbers predicted for one sample."""

    label: str | tuple[str, ...] | None
    """The class, or all labels predicted; None for numbers."""
    probability: float | None
    """Probability of the class; None for labels and numbers."""
    probabilities: dict[str, float]
    """Probability of every class or label; empty for numbers."""
    values: tuple[float, ...]
    """The outputs themselves, flattened."""

    def row(self) -> dict[str, Any]:
        """Return label and probabilities, or the values of numbers."""
        if self.label is None:
            return {"values": list(self.values)}
        row: dict[str, Any] = {
            "label": self.label if isinstance(self.label, str) else list(self.label)
        }
        if self.probability is not None:
            row["probability"] = self.probability
        return row | {"probabilities": self.probabilities}


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """What an imported task reads for one sample."""

    values: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """Return the values as they are."""
        return dict(self.values)
