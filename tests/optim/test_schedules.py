"""Schedules are pure functions of the step, with the values their formulas give."""

import math

import pytest
from pydantic import TypeAdapter

from finetune.config.optim import Schedule
from finetune.optim.schedules import Cycle, make_schedule
from finetune.train.epochs import Epochs


def factor_of(total, epoch=10, **settings):
    schedule = TypeAdapter(Schedule).validate_python(settings)
    return make_schedule(schedule, Cycle(0, total, Epochs((epoch,))))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "constant"}, {0: 1, 99: 1}),
        ({"type": "constant", "warmup": 0.1}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 99: 1}),
        ({"type": "linear"}, {0: 1, 50: 0.5, 100: 0, 200: 0}),
        ({"type": "linear", "floor": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
        ({"type": "cosine"}, {0: 1, 50: 0.5, 100: 0, 25: (1 + math.cos(math.pi / 4)) / 2}),
        ({"type": "cosine", "warmup": 0.1, "floor": 0.1}, {0: 0.1, 10: 1, 55: 0.55, 100: 0.1}),
        ({"type": "one_cycle"}, {0: 1 / 25, 30: 1, 99: 1 / 25e4}),
        ({"type": "slanted_triangular"}, {0: 1 / 32, 5: (1 + 15.5) / 32, 10: 1, 100: 1 / 32}),
    ],
    ids=str,
)
def test_factor_at_step(settings, expected):
    factor = factor_of(100, **settings)
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "kind", ["constant", "linear", "cosine", "one_cycle", "slanted_triangular"]
)
def test_short_runs_have_positive_finite_factors_of_at_most_one(kind, total):
    factor = factor_of(total, type=kind)
    assert all(0 < factor(step) <= 1 for step in range(total))


def test_the_slanted_triangle_is_that_of_the_paper():
    """Howard and Ruder, eq. 3, computed independently."""
    total, cut_fraction, ratio = 200, 0.1, 32
    cut = math.floor(total * cut_fraction)
    factor = factor_of(total, type="slanted_triangular")
    for step in range(total):
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_fraction - 1))
        assert factor(step) == pytest.approx((1 + p * (ratio - 1)) / ratio)
