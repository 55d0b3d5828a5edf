"""The rate of every group at every step, against values computed by hand."""

import math

import pytest
from pydantic import TypeAdapter

from finetune.config.optim import Schedule
from finetune.optim.groups import Group
from finetune.optim.rates import PeakRate, Rates
from finetune.train.epochs import Epochs

COSINE = {"type": "cosine"}
TRIANGLE = {"type": "slanted_triangular", "cut_fraction": 0.2, "ratio": 4}


TOTAL = 20
WHOLE_RUN = 0, TOTAL
EPOCHS = Epochs((4,))


def node(schedule):
    return TypeAdapter(Schedule).validate_python(schedule)


def make_rates(schedule, num_groups=2):
    named = [Group(f"g{n}", (f"p{n}",), decays=True) for n in range(num_groups)]
    return Rates(node(schedule), tuple(named))


def cosine(share):
    return (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("step", range(20))
def test_a_schedule_over_the_whole_run_takes_no_notice_of_phases(step):
    first, second = {"p0": PeakRate(0.1)}, {"p0": PeakRate(0.2), "p1": PeakRate(3.0)}
    peaks = first if step < 8 else second
    expected = [0.1, 0.0] if step < 8 else [0.2, 3.0]
    assert make_rates(COSINE).at(step, peaks, WHOLE_RUN, TOTAL, epochs=EPOCHS) == pytest.approx(
        [lr * cosine(step / 20) for lr in expected]
    )


@pytest.mark.parametrize("step", range(20))
def test_a_schedule_of_each_phase_begins_anew_and_is_over_when_the_phase_is(step):
    rates = make_rates(TRIANGLE, num_groups=1)
    began, ends, peak = (0, 10, 1.0) if step < 10 else (10, 20, 0.5)
    here, cut = step - began, 2  # a fifth of ten steps
    share = here / cut if here < cut else 1 - (here - cut) / (cut * 4)
    expected = peak * (1 + share * 3) / 4
    at = rates.at(step, {"p0": PeakRate(peak)}, (began, ends), TOTAL, epochs=EPOCHS)
    assert at == pytest.approx([expected])


@pytest.mark.parametrize("cycle", [WHOLE_RUN, (0, 16)])
@pytest.mark.parametrize("step", [0, 5, 9, 10, 15])
def test_a_rate_with_its_own_schedule_follows_that_one_over_its_share_of_the_run(step, cycle):
    peaks = {"p0": PeakRate(0.4, node(COSINE), over=0.5), "p1": PeakRate(0.7)}
    rates = make_rates({"type": "constant"})
    expected = [0.4 * cosine(min(1.0, step / 10)), 0.7]
    assert rates.at(step, peaks, cycle, TOTAL, epochs=EPOCHS) == pytest.approx(expected)


def test_frozen_groups_have_rate_0_and_are_known_to_be_frozen():
    rates, peaks = make_rates({"type": "constant"}), {"p1": PeakRate(0.2)}
    assert rates.at(0, peaks, WHOLE_RUN, TOTAL, epochs=EPOCHS) == [0.0, 0.2]
    assert [group.is_trained(peaks) for group in rates.groups] == [False, True]


def test_each_step_of_a_run_has_the_rates_that_the_plan_says(small_run):
    """The optimizer is asked at every step: rate by phase, selector and schedule."""
    phases = [
        {"name": "one", "train": ["head"], "lr": {"head.bias": 0.5}, "until": {"steps": 3},
         "schedule": "per_phase"},
        {"name": "two", "freeze": ["head.bias"], "lr": {"body": 0.01, "body.bias": 0.02}},
    ]  # fmt: skip
    linear = {"type": "linear"}
    trainer = small_run(
        freeze={"phases": phases}, schedule=linear, optimizer={"type": "SGD", "lr": 1.0}
    )
    seen = []

    def remember(module, inputs):
        slots = trainer.optimizer.param_groups
        seen.append({name: slot["lr"] for slot in slots for name in slot["param_names"]})

    trainer.model.register_forward_pre_hook(remember)
    trainer.fit()
    first = [{"head.weight": f, "head.bias": 0.5 * f, "body.weight": 0.0, "body.bias": 0.0}
             for f in (1, 2 / 3, 1 / 3)]  # fmt: skip
    second = [{"head.weight": f, "head.bias": 0.0, "body.weight": 0.01 * f, "body.bias": 0.02 * f}
              for f in (3 / 6, 2 / 6, 1 / 6)]  # fmt: skip
    assert seen == [pytest.approx(rates) for rates in (*first, *second)]
