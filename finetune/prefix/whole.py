"""What fetches batches and runs the network on them; and how that is where nothing is stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from finetune.data.loader import Batch, Samples
from finetune.prefix.replay import Replay
from finetune.prefix.shapes import Shape, Split


class Prefix(Protocol):
    """Fetches batches and runs the network on them; what is frozen may come from a store."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut."""

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on a batch of `samples`."""

    def close(self) -> None:
        """Let go of stores, and leave the network as it was."""


@dataclass(frozen=True, slots=True)
class NoPrefix:
    """Everything runs, every time."""

    model: nn.Module
    run: Callable[..., Any]
    """The network as it is called: itself, or compiled."""
    replay: Replay | None = None
    """Stands before frozen calls, installed: holds them out of what is compiled, and rounds what
    they give where stores would."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches as `samples` gives them."""
        return samples.fetches(cuts, epoch=epoch)

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on the whole batch."""
        if self.replay is None:
            return self.run(**batch.inputs)
        return run_whole(self.run, batch, self.replay, samples)

    def close(self) -> None:
        """Give every module its own `forward` back."""
        if self.replay is not None:
            self.replay.remove()


def run_whole(run: Callable[..., Any], batch: Batch, replay: Replay, samples: Split) -> Any:
    """Run all of a network; what its frozen calls give is rounded where it would be stored so."""
    if not replay.rounds:
        return run(**batch.inputs)
    with replay.recording(Shape.of(samples, batch.indices)):
        return run(**batch.inputs)
