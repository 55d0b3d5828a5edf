"""Each schedule gives the rates of torch's own scheduler over a whole run."""

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from finetune.config.optim import Schedule
from finetune.optim.groups import Group
from finetune.optim.rates import PeakRate, Rates
from finetune.optim.schedules import Cycle, fallen, make_schedule
from finetune.runs.progress import Progress
from finetune.runs.watch import Rule
from finetune.train.epochs import Epochs
from finetune.train.rules import Rules, judge

LR, TOTAL, EPOCH = 0.2, 70, 7


def node(**settings):
    return TypeAdapter(Schedule).validate_python(settings)


def rates_of_torch(make, *, by_epoch=False):
    """Return the rate of each step; the scheduler goes on after each step, or each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, rates = make(optimizer), []
    for step in range(1, TOTAL + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not by_epoch or step % EPOCH == 0:
            scheduler.step()
    return rates


def rates_here(**settings):
    rates = Rates(node(**settings), (Group("all", ("p",), decays=True),))
    return [
        rates.at(step, {"p": PeakRate(LR)}, (0, TOTAL), TOTAL, epochs=Epochs((EPOCH,)))[0]
        for step in range(TOTAL)
    ]


@pytest.mark.parametrize(
    ("settings", "make", "by_epoch"),
    [
        (
            {"type": "step", "every": {"steps": 9}, "factor": 0.3},
            lambda optimizer: lr_scheduler.StepLR(optimizer, 9, gamma=0.3),
            False,
        ),
        (
            {"type": "step", "every": {"epochs": 3}},
            lambda optimizer: lr_scheduler.StepLR(optimizer, 3),
            True,
        ),
        (
            {"type": "step", "every": {"epochs": 1}, "factor": 0.9},
            lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
            True,
        ),
        (
            {"type": "step", "at": {"steps": [5, 6, 40]}, "factor": 0.5},
            lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [5, 6, 40], gamma=0.5),
            False,
        ),
        (
            {"type": "step", "at": {"epochs": [2, 8, 20]}},
            lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 8, 20]),
            True,
        ),
        (
            {"type": "polynomial", "power": 2.5},
            lambda optimizer: lr_scheduler.PolynomialLR(optimizer, TOTAL, power=2.5),
            False,
        ),
        (
            {"type": "exponential", "decay": 0.97, "every": {"steps": 1}},
            lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.97),
            False,
        ),
        (
            {"type": "cosine", "restarts": 2, "growth": 2, "floor": 0.05},
            lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2, 0.05 * LR),
            False,
        ),
        (
            {"type": "cosine", "restarts": 4},
            lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 14),
            False,
        ),
    ],
    ids=["step", "step by epochs", "step each epoch", "at", "at epochs", "polynomial",
         "exponential", "growing restarts", "restarts"],
)  # fmt: skip
def test_the_rates_of_a_run_are_those_of_the_scheduler(settings, make, by_epoch):
    assert rates_here(**settings) == pytest.approx(rates_of_torch(make, by_epoch=by_epoch))


@pytest.mark.parametrize("falls", [True, False], ids=["min", "max"])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.3), (2, 0.0)])
def test_the_rate_falls_on_the_plateaus_that_torch_finds(falls, patience, min_delta):
    """torch waits for one evaluation more than its patience."""
    metrics = torch.randn(80, generator=torch.Generator().manual_seed(patience)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if falls else "max", factor=0.5, patience=patience - 1,
        threshold=min_delta, threshold_mode="abs", min_lr=LR / 200, eps=0.0,
    )  # fmt: skip
    schedule = node(type="plateau", metric="m", factor=0.5, floor=1 / 200)
    rules = Rules(None, None, None, None, Rule("schedule", "m", falls, min_delta, patience))
    progress, seen = Progress(), []
    for step, metric in enumerate(metrics, start=1):
        scheduler.step(metric)
        progress.step, progress.metrics = step, {"m": metric}
        judge(rules, progress, num_kept=1)
        expected = optimizer.param_groups[0]["lr"]
        assert LR * fallen(schedule, progress.rate_falls) == pytest.approx(expected)
        seen.append(expected)
    assert len(set(seen)) > 3


@pytest.mark.parametrize(
    ("warmup", "rise"),
    [({"steps": 9}, 9), ({"epochs": 2}, 2 * EPOCH), ({"fraction": 0.1}, 7), (0.1, 7)],
    ids=["steps", "epochs", "fraction", "share"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"type": "constant"},
        {"type": "linear"},
        {"type": "cosine", "restarts": 1},
        {"type": "polynomial", "power": 2},
        {"type": "exponential", "decay": 0.5},
        {"type": "step", "at": {"steps": [40]}},
        {"type": "plateau"},
    ],
    ids=lambda settings: settings["type"],
)
def test_every_schedule_rises_during_its_warmup_and_reaches_its_peak(settings, warmup, rise):
    rates = rates_here(**settings, warmup=warmup)
    assert rates[:rise] == pytest.approx([LR * (step + 1) / rise for step in range(rise)])
    assert rates[rise] == LR
    assert max(rates) == LR


def test_a_warmup_does_not_move_the_points_of_steps():
    bare, warmed = (rates_here(type="step", at={"epochs": [4]}, warmup=w) for w in (0.0, 0.3))
    assert warmed[21:] == bare[21:]


def test_an_exponential_falls_by_its_decay_in_each_epoch_and_smoothly_within():
    rates = rates_here(type="exponential", decay=0.5)
    assert rates[EPOCH::EPOCH] == pytest.approx([r / 2 for r in rates[:-EPOCH:EPOCH]])
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == TOTAL


def test_epochs_before_a_change_of_the_data_count_with_the_length_that_they_had():
    # 20 steps of 10 an epoch, then epochs of 3 steps: the third epoch ends with step 23
    epochs = Epochs.of([(20, 10)], 3)
    by = {"every": {"epochs": 3}, "at": {"epochs": [3]}}
    for key, points in by.items():
        factor = make_schedule(node(type="step", **{key: points}), Cycle(0, 30, epochs))
        assert [factor(step) for step in (0, 22, 23)] == pytest.approx([1, 1, 0.1])
    warm = make_schedule(node(type="constant", warmup={"epochs": 3}), Cycle(0, 30, epochs))
    assert [warm(step) for step in (0, 21, 22, 23)] == pytest.approx([1 / 23, 22 / 23, 1, 1])


@pytest.mark.parametrize("total", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"type": "cosine", "restarts": 3, "growth": 10.0},
        {"type": "polynomial", "power": 3.0},
        {"type": "exponential", "decay": 0.1, "warmup": {"steps": 9}},
        {"type": "step", "every": {"epochs": 1}, "warmup": {"epochs": 2}},
    ],
    ids=lambda settings: settings["type"],
)
def test_runs_that_are_too_short_have_positive_factors_of_at_most_one(settings, total):
    factor = make_schedule(node(**settings), Cycle(0, total, Epochs((2,))))
    assert all(0 < factor(step) <= 1 for step in range(total))
