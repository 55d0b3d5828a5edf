"""The threshold of labels, or of the second of two classes: as written, or chosen by the samples.

Letters: B samples, K labels; with two classes K is 1, the second class.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.errors import CheckpointError
from finetune.tasks.cross_entropies import class_logits

USUAL = 0.5
"""The threshold before one is chosen, and where none can be."""


class Threshold:
    """The probability from which on a label is predicted; one for each label if it is chosen.

    Metrics and reader of a task share one, so what is chosen holds for both at once.

    Args:
        classes: Labels, or the two classes.
        written: The threshold in the config.
        device: Device of the outputs.
        is_of_classes: Whether it is about the second of two classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        written: float | Literal["auto"],
        device: torch.device,
        *,
        is_of_classes: bool,
    ) -> None:
        self.names = tuple(classes[1:]) if is_of_classes else tuple(classes)
        self.is_chosen = written == "auto"
        self._pair = tuple(classes) if is_of_classes else ()
        self._device = device
        self.values: tuple[float, ...] = ()
        self._tensor = torch.empty(0)
        self.set_to([USUAL if written == "auto" else written] * len(self.names))
        self._seen: list[tuple[Tensor, Tensor]] = []

    @property
    def is_usual(self) -> bool:
        """Whether all are 0.5, which others take who are not told of any."""
        return all(value == USUAL for value in self.values)

    def set_to(self, values: Sequence[float]) -> None:
        """Take a threshold for each label."""
        self._tensor = torch.tensor(values, dtype=torch.float32, device=self._device)
        # Rounded as the probabilities are, so that a reader compares as metrics do.
        self.values = tuple(self._tensor.tolist())

    def is_reached(self, probabilities: Tensor) -> Tensor:
        """Return which of the probabilities `(B, K)`, or `(B,)` of one label, reach it."""
        return probabilities >= self._tensor

    def second_class(self, logits: Tensor) -> Tensor:
        """Return 1 where logits `(B, 2)` give the second class, else 0; `(B,)` int64.

        Raises:
            ValueError: there are not two logits.
        """
        if logits.shape[1:] != (2,):
            raise ValueError("2 classes need as many outputs")
        return self.is_reached(logits.float().softmax(1)[:, 1]).long()

    def forget(self) -> None:
        """Forget what was collected, such as by an evaluation that was stopped half-way."""
        self._seen = []

    def collect(self, outputs: Tensor, batch: Batch) -> None:
        """Keep the probabilities and targets of a batch until `choose`."""
        assert batch.target is not None  # the task has a target
        if self._pair:
            shares = class_logits(outputs, self._pair).float().softmax(1)[:, 1:]
            target = batch.target.reshape(-1, 1)
        else:
            shares = outputs.float().sigmoid().reshape(len(outputs), -1)
            target = batch.target.reshape(len(outputs), -1)
        self._seen.append((shares.cpu(), target.cpu().bool()))

    def choose(self) -> list[str]:
        """Take the threshold with the best F1 of each label over what was collected.

        Returns:
            The labels for which there is none: no sample has them, or outputs are not finite, or
            all probabilities are 0. They keep 0.5.
        """
        shares, target = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        found = [best_threshold(shares[:, n], target[:, n]) for n in range(len(self.names))]
        self.set_to([USUAL if value is None else value for value in found])
        return [name for name, value in zip(self.names, found, strict=True) if value is None]

    def as_data(self) -> dict[str, dict[str, float]]:
        """Return the threshold of each label as plain data, under the key `values`."""
        return {"values": dict(zip(self.names, self.values, strict=True))}

    def read(self, document: Any, where: str) -> None:
        """Take the `values` that `as_data` gave.

        Raises:
            CheckpointError: they are others.
        """
        is_whole = isinstance(document, dict) and tuple(document) == self.names
        if not is_whole or not all(type(v) is float and 0 < v <= 1 for v in document.values()):
            raise CheckpointError(
                "does not hold a threshold for each label",
                where=where,
                hint="train the run anew with --fresh",
            )
        self.set_to(list(document.values()))


def best_threshold(shares: Tensor, target: Tensor) -> float | None:
    """Return the threshold with the best F1; None if no sample is positive, or all shares are 0.

    Every cut between two neighbouring probabilities is tried, at their middle. Of cuts that are
    equally good the one nearest to 0.5 is taken.

    Args:
        shares: Probabilities `(N,)` float32.
        target: Whether each sample is positive, `(N,)`.
    """
    if not bool(target.any()) or not bool(shares.isfinite().all()):
        return None
    ordered, order = shares.sort(descending=True, stable=True)
    hits = target[order].cumsum(0)
    chosen = torch.arange(1, len(ordered) + 1)
    # F1 = 2 TP / (predicted + positive), if the first `chosen` samples are predicted.
    f1 = 2.0 * hits.double() / (chosen + hits[-1])
    below = torch.cat([ordered[1:], ordered.new_zeros(1)])
    # Equal probabilities are on one side of any threshold.
    f1[ordered == below] = -1
    if bool((f1 < 0).all()):
        return None
    middle = (ordered + below) / 2
    # Two neighbours may be so near that their middle is the lower one.
    cuts = torch.where(middle > below, middle, ordered)
    best = (f1 == f1.max()).nonzero().flatten()
    return float(cuts[best[(cuts[best] - USUAL).abs().argmin()]])
