"""What a schedule, its warmup or an average cannot do, or never does, is said before the run."""

import json

import pytest

from finetune.cli.plans import preview
from finetune.errors import FinetuneError
from finetune.train.wire import build_trainer

PLATEAU = {"type": "plateau"}
SPLIT = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.2},
}
HELD = {"modules": {"trained_norm": "eval"}, "phases": [{"name": "a", "freeze": []}]}
FALLING = {"type": "SGD", "lr": 0.1}
TWO = {"epochs": 2, "batch_size": 8}  # eight steps


def own(schedule, over=1.0):
    """A phase in which the head has a schedule of its own."""
    rate = {"lr": 0.1, "schedule": schedule, "over": over}
    return {"phases": [{"name": "a", "train": ["head"], "lr": {"head": rate}}]}


def going_back(until):
    """A phase that ends with its best weights, and one more."""
    first = {"name": "one", "train": ["head"], "until": until, "restore_best": True}
    return {"phases": [first, {"name": "two", "train": ["head"]}]}


CONFIG = """\
model: {layers: [{name: head, type: Linear, out_features: 3}]}
data: {source: {type: random, samples: 40, features: 4, targets: 3}}
task: {type: regression}
optimizer: {type: SGD, lr: 0.1}
schedule: SCHEDULE
train: {epochs: 2, batch_size: 8}
"""


@pytest.fixture
def told(tmp_path):
    """Return what is told of a config with a schedule."""
    from finetune.config.loader import load_config

    def load(schedule):
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG.replace("SCHEDULE", schedule))
        with pytest.raises(FinetuneError) as error:
            load_config(path)
        return str(error.value).replace(f"{path}:5: ", "")

    return load


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        ("{type: step}", "schedule.every: needs exactly one of 'every' and 'at', got neither"),
        (
            "{type: step, every: {steps: 2}, at: {steps: [2]}}",
            "schedule.at: needs exactly one of 'every' and 'at', got both",
        ),
        ("{type: step, at: [3, 6]}", "schedule.at: needs a unit, got [3, 6]"),
        ("{type: step, at: {epochs: [6, 3]}}", "schedule.at: the points must rise, got [6, 3]"),
        (
            "{type: step, at: {epochs: [1], steps: [3]}}",
            "schedule.at: needs exactly one of 'steps' and 'epochs'",
        ),
        ("{type: step, milestones: [3]}", "milestones: unknown key\n    did you mean 'at'?"),
        ("{type: cosine, warmup: 500}", "schedule.warmup: a plain number is a share of the run"),
        (
            "{type: cosine, warmup: {steps: 3, epochs: 1}}",
            "schedule.warmup: needs exactly one of 'steps', 'epochs' and 'fraction'",
        ),
        ("{type: cosine, growth: 2}", "schedule.growth: goes with 'restarts'"),
        ("{type: polynomial}", "schedule.power: missing"),
        ("{type: exponential, decay: 1.5}", "schedule.decay: must be less than 1"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_told_in_words(told, schedule, line):
    assert line in told(schedule)


def test_a_plateau_without_validation_samples_is_refused_as_every_rule_is(small_config, tmp_path):
    rules = {
        "schedule": {"schedule": PLATEAU},
        "stopping": {"train": TWO | {"early_stopping": {"patience": 1}}},
    }
    told = {}
    for name, sections in rules.items():
        with pytest.raises(FinetuneError) as error:
            build_trainer(small_config(**sections), tmp_path / name)
        told[name] = error.value.message
    assert told["schedule"] == told["stopping"]
    assert "there are: none, for there are no validation samples" in told["schedule"]


def test_a_plateau_of_a_metric_that_is_never_logged_is_refused(small_config, tmp_path):
    schedule = PLATEAU | {"metric": "validation/los"}
    with pytest.raises(FinetuneError, match="no metric 'validation/los' is ever logged") as error:
        build_trainer(small_config(data=SPLIT, schedule=schedule), tmp_path / "run")
    assert error.value.key == ("schedule", "metric")


def test_a_plateau_for_some_parameters_alone_is_refused(small_config):
    freeze = {
        "phases": [
            {"name": "all", "freeze": [], "lr": {"head": {"lr": 0.1, "schedule": PLATEAU}}},
        ]
    }
    with pytest.raises(ValueError, match="a plateau lowers all rates of the run"):
        small_config(data=SPLIT, freeze=freeze)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"schedule": {"type": "step", "at": {"epochs": [1, 2, 5]}}},
            "2 of 3 falls never come: at step 8 the rate would fall, and its schedule ends after 8",
        ),
        (
            {"schedule": {"type": "step", "at": {"steps": [9]}}},
            "the rate never falls: at step 9",
        ),
        (
            {"schedule": {"type": "step", "every": {"epochs": 3}}},
            "the rate never falls: it would after 12 steps, and its schedule ends after 8",
        ),
        (
            {"schedule": {"type": "cosine", "warmup": {"steps": 8}}},
            "the rate only rises: its warmup takes 8 steps, and its schedule ends after 8",
        ),
        (
            {"schedule": {"type": "cosine", "restarts": 9}},
            "9 restarts in 8 steps: not every one has a step",
        ),
        (
            {"schedule": {"type": "constant", "warmup": {"fraction": 0.01}}},
            "a warmup of 0.01 of 8 steps is none",
        ),
        ({"schedule": PLATEAU}, "the rate never falls: the run has 1 evaluation before its last"),
        (
            {
                "schedule": PLATEAU,
                "train": {"epochs": 9, "batch_size": 8, "early_stopping": {"patience": 2}},
            },
            "early stopping (patience 2) ends the run before the rate falls (patience 2)",
        ),
        (
            {"train": TWO | {"average": {"decay": 0.99}}},
            "after 8 steps the average still holds 92% of the weights that the run begins with",
        ),
        (
            {"freeze": own({"type": "step", "every": {"epochs": 50}})},
            "the rate never falls: it would after 200 steps, and its schedule ends after 8",
        ),
        (
            {"freeze": own({"type": "cosine", "warmup": {"fraction": 0.01}}, over=0.5)},
            "a warmup of 0.01 of 4 steps is none",
        ),
        (
            {"freeze": own({"type": "cosine", "restarts": 5}, over=0.5)},
            "5 restarts in 4 steps: not every one has a step",
        ),
        (
            {"freeze": going_back({"epochs": 1}), "train": TWO | {"evaluate_every": {"epochs": 2}}},
            "restore_best of phase 'one' never takes effect: no evaluation comes before its end",
        ),
        (
            {"freeze": going_back({"epochs": 1})},
            "restore_best of phase 'one' never takes effect: no evaluation comes before its end",
        ),
        (
            {"freeze": HELD},
            "trained_norm: eval has no effect: no norm that trains keeps running statistics",
        ),
        (
            {
                "model": {"layers": [{"name": "norm", "type": "BatchNorm1d"},
                                     {"name": "head", "type": "Linear", "out_features": 3}]},
                "train": TWO | {"average": {"decay": 0.1}},
            },
            "running statistics are not averaged: in evaluation 'norm' uses those of the weights",
        ),
    ],
    ids=["points", "point", "every", "warmup", "restarts", "share", "plateau", "stopping", "decay",
         "own", "own warmup", "own restarts", "unseen best", "best at the end",
         "no norms", "statistics"],
)  # fmt: skip
def test_what_never_takes_effect_is_told_by_plan_and_train(
    small_config, tmp_path, heard, sections, message
):
    sections = {"data": SPLIT, "train": TWO} | sections
    assert any(message in lint.message for lint in preview(small_config(**sections)).lints)
    build_trainer(small_config(**sections), tmp_path / "run", tracker=heard)
    assert any(line.startswith("run: ") and message in line for line in heard.said)


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "step", "at": {"epochs": [1]}, "warmup": {"steps": 2}},
        {"type": "step", "every": {"steps": 3}},
        {"type": "cosine", "restarts": 2, "growth": 1.5},
        {"type": "exponential", "decay": 0.5},
        {"type": "polynomial", "power": 2.0},
        PLATEAU | {"patience": 1, "warmup": {"epochs": 1}},
    ],
    ids=lambda schedule: schedule["type"],
)
def test_a_schedule_that_takes_effect_is_not_told(small_config, schedule):
    train = TWO | {"evaluate_every": {"steps": 2}, "average": {"decay": 0.5}}
    assert preview(small_config(data=SPLIT, schedule=schedule, train=train)).lints == ()


def test_weights_that_a_phase_can_go_back_to_are_not_told(small_config):
    train = TWO | {"evaluate_every": {"steps": 3}}
    config = small_config(data=SPLIT, freeze=going_back({"steps": 4}), train=train)
    assert preview(config).lints == ()


def test_each_fall_of_the_rate_is_told_with_its_step(small_config, tmp_path, heard):
    train = {"steps": 12, "batch_size": 8, "evaluate_every": {"steps": 1}}
    schedule = PLATEAU | {"min_delta": 9.0, "factor": 0.5, "floor": 0.25, "patience": 2}
    config = small_config(data=SPLIT, schedule=schedule, train=train)
    trainer = build_trainer(config, tmp_path / "run", tracker=heard)
    trainer.fit(quiet=True)
    told = [line for line in heard.said if "the rate falls" in line and line.startswith("step")]
    assert told == [
        "step 3: validation/loss has not improved in 2 evaluations, the rate falls to 0.5 of its "
        "peak",
        "step 5: validation/loss has not improved in 2 evaluations, the rate falls to 0.25 of its "
        "peak",
    ]
    assert trainer.optimizer.param_groups[0]["lr"] == 0.05 * 0.25


def test_a_schedule_of_each_phase_begins_anew_after_its_falls(small_config, tmp_path):
    train = {"steps": 8, "batch_size": 8, "evaluate_every": {"steps": 1}, "log_every": 1}
    schedule = PLATEAU | {"min_delta": 9.0, "factor": 0.5, "patience": 1}
    first = {"name": "first", "freeze": ["body"], "until": {"steps": 4}}
    rates = {}
    for kind in ("per_phase", "whole_run"):
        phases = [first | {"schedule": kind}, {"name": "second", "freeze": [], "schedule": kind}]
        config = small_config(data=SPLIT, schedule=schedule, train=train, freeze={"phases": phases})
        trainer = build_trainer(config, tmp_path / kind)
        trainer.fit(quiet=True)
        lines = map(json.loads, trainer.folder.metrics.read_text().splitlines())
        rates[kind] = [line["train/lr/head"] for line in lines if "train/lr/head" in line]
    peak = 0.05
    assert rates["per_phase"] == [peak, peak, peak / 2, peak / 4] * 2
    assert rates["whole_run"] == [peak, *(peak / 2**n for n in range(7))]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_longer_run_that_moves_the_rate_of_its_next_step_is_told(
    small_config, tmp_path, heard, schedule
):
    def train(steps):
        config = small_config(
            train={"steps": steps, "batch_size": 8}, schedule={"type": schedule}, optimizer=FALLING
        )
        heard.said.clear()
        build_trainer(config, tmp_path / "run", tracker=heard).fit()
        return [line for line in heard.said if line.startswith("the schedule is that of a run")]

    assert train(4) == []
    assert train(4) == []
    line = (
        "the schedule is that of a run of 8 steps now: the next step is at the rate 0.05; "
        "in the run of 4 steps that it was, at 0"
    )
    assert train(8) == ([line] if schedule == "cosine" else [])
