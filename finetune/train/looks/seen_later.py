"""Keep the outputs of an evaluation until pictures are drawn from them.

Most evaluations are never drawn: by default only that of the weights in use, at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from finetune.data.batches import Batch
from finetune.pictures.drawing import Picture
from finetune.train.looks.seen import Curve, Inputs, Seen

MOST_WAITING = 1_000_000
"""Numbers of outputs that wait; with more, all are taken at once, as they come."""


@dataclass(slots=True)
class SeenLater:
    """Takes batches into `seen` when its pictures are asked for."""

    seen: Seen
    most_waiting: int = MOST_WAITING
    _waiting: list[tuple[Tensor, Batch]] = field(default_factory=list)
    _numbers: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take a batch at once; see `Seen.add`."""
        # First what waits: the windows of a text must come one after the other.
        self._take()
        self.seen.add(outputs, batch)

    def keep(self, outputs: Any, batch: Batch) -> None:
        """Keep a batch for later, if it is small; the inputs of the network are not kept.

        Raises:
            ValueError: the outputs are of another form, as for `add`.
        """
        if not isinstance(outputs, Tensor) or self._numbers > self.most_waiting:
            self.add(outputs, batch)
            return
        self._numbers += outputs.numel() + sum(one.numel() for one in batch.columns.values())
        # Outputs of a graphics card are copied: the next batch may be written to the same place.
        self._waiting.append((outputs.cpu(), replace(batch, inputs={}).to("cpu")))

    def shown(self) -> Sequence[int]:
        """Return the positions of the samples that the pictures show."""
        self._take()
        return self.seen.shown()

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return pictures by name; `show` has the inputs of the samples of `shown`."""
        self._take()
        return self.seen.pictures(show)

    def curves(self) -> list[Curve]:
        """Return what precision-recall curves are made of; empty without any."""
        self._take()
        return self.seen.curves()

    def _take(self) -> None:
        """Take what waits, in the order in which it came."""
        waiting, self._waiting = self._waiting, []
        for outputs, batch in waiting:
            self.seen.add(outputs, batch)
