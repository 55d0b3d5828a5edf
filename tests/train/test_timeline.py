"""The timeline knows where a run is, whether its phases are listed or made on the way."""

import pytest
from torch import nn

from finetune.config.freeze import FreezeConfig, Lisa
from finetune.config.optim import ConstantSchedule, OptimizerConfig
from finetune.config.train import TrainConfig
from finetune.data.parts.epoch_order import EpochOrder
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory
from finetune.optim.rates import Rates
from finetune.runs.progress import Progress
from finetune.train.timeline import Timeline

BLOCKS = ("0", "1", "2", "3")


def make_net():
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))


def timeline_of(freeze, steps=12, progress=None, **settings):
    optimizer = OptimizerConfig.model_validate({"type": "SGD", "lr": 0.1})
    train = TrainConfig(steps=steps, batch_size=4, **settings)
    return Timeline(
        plan=make_plan(freeze, optimizer, take_inventory(make_net())),
        settings=train,
        seed=0,
        order=EpochOrder(12),
        rates=Rates(ConstantSchedule(type="constant"), ()),
        progress=progress or Progress(),
    )


def listed(*phases):
    return FreezeConfig.model_validate({"phases": phases})


def trained(phase):
    return {name.split(".")[0] for name in phase.rates}


def walked(timeline):
    """Take every step; return for each the number, name and end of its phase."""
    seen = []
    while not timeline.run_is_over:
        seen.append((timeline.progress.phase, timeline.phase.name, timeline.span.ends))
        timeline.progress.step += 1
        timeline.observe(is_evaluation=False)
        if timeline.phase_is_over and not timeline.run_is_over:
            timeline.next_phase()
    return seen


@pytest.mark.parametrize(
    ("wish", "expected"),
    [("reset", {"3.weight", "3.bias"}), ("keep", set()),
     ("fresh", {"3.weight", "3.bias", "4.weight", "4.bias"})],
)  # fmt: skip
def test_what_begins_anew_with_a_phase(wish, expected):
    freeze = listed(
        {"name": "one", "train": ["4", "0"], "until": {"steps": 1}},
        {"name": "two", "train": ["4", "3"], "optimizer_state": wish},
    )
    timeline = timeline_of(freeze)
    assert timeline.loses_state == frozenset()
    assert timeline.can_change == frozenset(timeline.plan.ever_trained)
    timeline.next_phase()
    assert timeline.loses_state == expected
    assert timeline.can_change == {"3.weight", "3.bias", "4.weight", "4.bias"}


def test_listed_phases_are_walked_in_order():
    freeze = listed(
        {"name": "one", "train": ["4"], "until": {"steps": 2}},
        {"name": "two", "train": ["3"], "until": {"epochs": 1}},
        {"name": "three", "train": ["2"]},
    )
    seen = walked(timeline_of(freeze, steps=7))
    expected = [(0, "one", 2)] * 2 + [(1, "two", 5)] * 3 + [(2, "three", 7)] * 2
    assert seen == expected


def test_phases_that_a_policy_makes_are_walked_like_listed_ones():
    timeline = timeline_of(Lisa(method="lisa", period=5, blocks=2))
    seen = walked(timeline)
    names = [f"lisa {number}" for number in range(3)]
    assert seen == [(n, names[n], min(12, 5 * n + 5)) for n in range(3) for _ in range(5)][:12]
    assert timeline.progress.transitions == [5, 10]
    assert [phase.name for phase in timeline.begun] == names
    assert timeline.following == ()
    for phase, mask in zip(timeline.begun, timeline.progress.masks, strict=True):
        assert trained(phase) == {"4", *map(str, mask)}


def test_a_walk_that_is_broken_anywhere_goes_on_as_it_would_have():
    lisa = Lisa(method="lisa", period=3, blocks=1)
    whole = timeline_of(lisa)
    walked(whole)
    for stop in range(12):
        timeline = timeline_of(lisa)
        for _ in range(stop):
            timeline.progress.step += 1
            timeline.observe(is_evaluation=False)
            if timeline.phase_is_over and not timeline.run_is_over:
                timeline.next_phase()
        resumed = timeline_of(lisa, progress=Progress.from_json(timeline.progress.to_json()))
        walked(resumed)
        assert resumed.progress.masks == whole.progress.masks, stop
        assert resumed.progress.transitions == whole.progress.transitions, stop


@pytest.mark.parametrize(
    ("change", "at_the_end"),
    [
        ({}, True),
        ({"checkpoint": {"every": {"steps": 4}}}, False),
        ({"checkpoint": {"every": {"steps": 5}}}, True),
    ],
    ids=["each epoch", "each 4 steps", "each 5 steps"],
)
def test_ends_of_made_phases_are_saved_only_where_something_asks_for_it(change, at_the_end):
    # an epoch has 3 steps
    timeline = timeline_of(Lisa(method="lisa", period=3 if not change else 5, blocks=1), **change)
    timeline.progress.step = timeline.span.ends
    assert timeline.phase_end_is_saved == at_the_end
    listed_one = timeline_of(listed({"name": "one", "train": ["4"]}), **change)
    assert listed_one.phase_end_is_saved
