"""The temperature by which the probabilities of classes are calibrated, and how far they are off.

Letters: N samples, C classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.errors import CheckpointError
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.metrics import target_of

_BINS = 15
"""Bins of the expected calibration error, as many as Guo et al. take."""
_LOWEST, _HIGHEST = 0.02, 50.0
"""Bounds of a temperature; one beyond them says that the samples decide nothing."""
_HALVINGS = 60
"""After them the interval is smaller than float64 tells apart."""


class CalibrationErrors(NamedTuple):
    """The expected calibration error, of probabilities as they are and with the temperature."""

    before: float
    after: float


class Temperature:
    """Divides the logits of a classification before its probabilities are read.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 9: q = softmax(z / T),
    with the one number T > 0 that has the least negative log-likelihood on validation samples. The
    class that is predicted stays the same.

    Args:
        classes: Names of the classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self.value: float | None = None
        """The temperature; None as long as none is fitted: probabilities are then as they are."""
        self._seen: list[tuple[Tensor, Tensor]] = []

    def shares(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits `(N, C)`."""
        return (logits if self.value is None else logits / self.value).softmax(-1)

    def forget(self) -> None:
        """Forget what was collected, such as by an evaluation that was stopped half-way."""
        self._seen = []

    def collect(self, outputs: Tensor, batch: Batch) -> None:
        """Keep the logits and targets of a batch until `fit` or `errors`."""
        # In this order: Apple's GPUs have no float64.
        logits, target = class_logits(outputs, self._classes).cpu().double(), target_of(batch).cpu()
        known = target >= 0
        self._seen.append((logits[known], target[known]))

    def fit(self) -> str | None:
        """Take the best temperature for what was collected; return why there is none, or None."""
        logits, target = self._taken()
        self.value, why = best_temperature(logits, target)
        return why

    def errors(self) -> CalibrationErrors:
        """Return the calibration errors over what was collected, which is then forgotten."""
        logits, target = self._taken()
        self.forget()
        found = (
            calibration_error(each, target) for each in (logits.softmax(-1), self.shares(logits))
        )
        return CalibrationErrors(*found)

    def read(self, value: Any, where: str) -> None:
        """Take a value that was kept.

        Raises:
            CheckpointError: it is no temperature.
        """
        # From a file that may have been edited by hand: by 0 the logits would become infinite.
        if type(value) is not float or not _LOWEST <= value <= _HIGHEST:
            raise CheckpointError(
                "does not hold a temperature", where=where, hint="train the run anew with --fresh"
            )
        self.value = value

    def _taken(self) -> tuple[Tensor, Tensor]:
        logits, target = zip(*self._seen, strict=True)
        return torch.cat(logits), torch.cat(target)


def best_temperature(logits: Tensor, target: Tensor) -> tuple[float | None, str | None]:
    """Return the temperature with the least negative log-likelihood, or why there is none.

    With b = 1 / T the mean of logsumexp(b z) - b z_y is convex in b, and its derivative is the mean
    of sum_c p_c z_c - z_y: its zero is found by halving, so the result does not depend on rates.

    Args:
        logits: `(N, C)` float64.
        target: Class numbers `(N,)`.
    """
    if not len(target) or not bool(logits.isfinite().all()):
        return None, "outputs are not finite" if len(target) else "there is no sample"
    right = logits.gather(1, target.unsqueeze(1)).squeeze(1)

    def slope(inverse: float) -> float:
        shares = (inverse * logits).softmax(-1)
        return float(((shares * logits).sum(-1) - right).mean())

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    # The slope grows with b: with one sign over the interval, the best T lies beyond a bound.
    if slope(low) >= 0:
        return None, "the outputs say nothing about the classes"
    if slope(high) <= 0:
        return None, "every sample is predicted rightly, so the surest probabilities are the best"
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    # Rounding may lead just beyond a bound, and `read` would then take the value for damaged.
    return min(max(2 / (low + high), _LOWEST), _HIGHEST), None


def calibration_error(shares: Tensor, target: Tensor) -> float:
    """Return the expected calibration error of probabilities, between 0 and 1.

    Guo et al. 2017, equation 3: ECE = sum_m |B_m| / N |accuracy(B_m) - confidence(B_m)| over bins
    B_m of equal width, by the probability of the class that is predicted.

    Args:
        shares: Probabilities `(N, C)`.
        target: Class numbers `(N,)`.
    """
    sure, said = shares.max(-1)
    if not len(target) or not bool(sure.isfinite().all()):
        return float("nan")
    # A probability at the border of two bins is in the lower one, as in equation 3: (a, b].
    bins = (sure * _BINS).ceil().long().clamp(1, _BINS) - 1
    apart = torch.zeros(_BINS, dtype=torch.float64)
    apart.index_add_(0, bins, (said == target).double() - sure.double())
    return float(apart.abs().sum() / len(target))
