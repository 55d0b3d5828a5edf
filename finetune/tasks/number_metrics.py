"""Metrics of numbers that are computed from running sums: mean errors, R².

Like those of `running_metrics.py` they give the figures of torchmetrics to the last bit, but where
the docstring says so.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from finetune.tasks.conditions import Always, Spread
from finetune.tasks.running_metrics import RunningMetric, refuse_other_shapes

NumberScore = Literal["mse", "rmse", "mae", "r2"]


def metric_of_numbers(score: NumberScore) -> RunningMetric:
    """Return a metric fed with numbers and targets of one shape."""
    match score:
        case "mse":
            return RunningMetric(_squared_errors, _mean, Always, higher_is_better=False)
        case "rmse":
            return RunningMetric(_squared_errors, _root_of_mean, Always, higher_is_better=False)
        case "mae":
            return RunningMetric(_absolute_errors, _mean, Always, higher_is_better=False)
        case "r2":
            return RunningMetric(_sums_of_r2, _r2, Spread, higher_is_better=True)
        case _:
            assert_never(score)


def _squared_errors(outputs: Tensor, target: Tensor) -> Tensor:
    refuse_other_shapes(outputs, target)
    error = (outputs - target).flatten()
    return (error * error).sum()


def _absolute_errors(outputs: Tensor, target: Tensor) -> Tensor:
    refuse_other_shapes(outputs, target)
    return (outputs - target).flatten().abs().sum()


def _sums_of_r2(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the sums of squared errors, of targets, and of squared targets, (3,) float64."""
    refuse_other_shapes(outputs, target)
    # On the CPU, as not every device has float64.
    said, so = (values.cpu().double().flatten() for values in (outputs, target))
    error = so - said
    return torch.stack([(error * error).sum(), so.sum(), (so * so).sum()])


def _mean(total: Tensor, count: int) -> Tensor:
    # both are tensors: on a GPU torch divides by a number by multiplying with its rounded inverse
    return total / torch.tensor(count, device=total.device)


def _root_of_mean(total: Tensor, count: int) -> Tensor:
    return _mean(total, count).sqrt()


def _r2(total: Tensor, count: int) -> Tensor:
    """Return the share of the variance of targets y that outputs f explain.

    R² = 1 - sum (y - f)² / sum (y - mean)², where the second sum is sum y² - (sum y)² / n.

    torchmetrics takes the difference of these in float32, where nothing is left of targets that
    lie far from zero (years, say), and returns 0 or 1 where either sum is below 0.0001.

    Raises:
        ValueError: the targets are so close together that their variance is lost.
    """
    errors, targets, squares = total.unbind()
    variance = squares - targets * targets / count
    if variance <= 0:
        raise ValueError("the targets hardly differ")
    return 1 - errors / variance
