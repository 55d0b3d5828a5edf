"""The forward interface that the loop calls, its version without a cache, and statistics."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import Shape
from finetune.activations.replay import Replay
from finetune.data.batches import Batch, Samples


class Forward(Protocol):
    """Fetches batches and runs the network on them; frozen outputs may come from the cache."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut, on the device of the network."""

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on a batch of `samples`."""

    def close(self) -> None:
        """Close the stores and restore the network's own `forward` methods."""


@dataclass(frozen=True, slots=True)
class UncachedForward:
    """Runs the whole network every time."""

    model: nn.Module
    run: Callable[..., Any]
    """The network as it is called: itself, or compiled."""
    replay: Replay | None = None
    """Installed at the frozen calls, if given: keeps them out of `torch.compile`, and rounds their
    outputs as a store with `store_dtype` would, so that caching changes no bit."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut, on the device of the network."""
        return samples.fetches(cuts, epoch, device_of(self.model))

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on the whole batch."""
        if self.replay is None or not self.replay.rounds:
            return self.run(**batch.inputs)
        with self.replay.recording(Shape.of(samples, batch.indices)):
            return self.run(**batch.inputs)

    def close(self) -> None:
        """Restore every module's own `forward`."""
        if self.replay is not None:
            self.replay.remove()


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network is on; the CPU for one without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@dataclass(slots=True)
class Statistics:
    """What the activation cache did in a run so far, in training and evaluation."""

    answered: int = 0
    """Visits of samples whose frozen prefix was read from a store."""
    recorded: int = 0
    """Visits of samples whose frozen prefix ran and was stored."""
    whole: int = 0
    """Visits of samples in batches that ran and were not read: of a shape that is not exact, or
    with a sample that is skipped."""
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
