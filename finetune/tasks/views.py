"""What one task of a list sees: its own output, its own target, the samples that have one.

Letters: B samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from finetune.data.batches import Batch
from finetune.data.targets.listed_targets import KNOWN
from finetune.errors import ModelError
from finetune.models.shapes import describe


@dataclass(frozen=True, slots=True)
class View:
    """The part of outputs and batch that one task of a list is about."""

    task: str
    """Name of the task, for messages."""
    output: str
    """Name of its output among those of the network."""
    target: str
    """Column of its target."""

    def of(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Batch]:
        """Return its output and the batch, of the samples whose target is known.

        Raises:
            ModelError: some targets are missing, and the output is no tensor `(B, ...)`.
        """
        known, mine = self._known(batch), outputs[self.output]
        if known is None:
            return mine, self.of_batch(batch)
        if not isinstance(mine, Tensor) or len(mine) != len(batch):
            raise ModelError(
                f"task {self.task!r} has samples without a target, and output {self.output!r} is "
                f"{describe(mine)}, of which none can be left out",
                hint="an output of one row a sample, or leave such samples out of the data",
                key=("task",),
            )
        return mine[known], self.of_batch(batch)

    def of_batch(self, batch: Batch) -> Batch:
        """Return the samples of a batch that have its target, with it as the target."""
        known = self._known(batch)
        batch = replace(batch, target=batch.columns[self.target])
        return batch if known is None else batch.at(known)

    def _known(self, batch: Batch) -> Tensor | None:
        """Return which samples have a target, `(B,)` bool; None if all have."""
        known = batch.columns.get(KNOWN + self.target)
        # As a loss column it may have become a number.
        return None if known is None else known.bool()
