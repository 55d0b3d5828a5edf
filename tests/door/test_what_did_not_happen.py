"""What a config asks for and a run does not do is told, by plan, at the start or at the end."""

import json

import pytest

from finetune.cli.plans import preview
from finetune.train.wire import build_trainer

SPLIT = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.2},
}
STANDS = {"type": "SGD", "lr": 1e-12}


def phases(until, last=None):
    first = {"name": "first", "train": ["head"], "until": until}
    second = {"name": "second", "train": [{"all": True}]}
    return {"phases": [first, second | ({} if last is None else {"until": last})]}


@pytest.fixture
def run(small_config, tmp_path, heard):
    """Train; return progress, lines said, and the summary."""

    def train(**sections):
        sections = {"data": SPLIT, "optimizer": STANDS} | sections
        trainer = build_trainer(small_config(**sections), tmp_path / "run", tracker=heard)
        progress = trainer.fit()
        return progress, heard.said, json.loads((tmp_path / "run" / "summary.json").read_text())

    return train


def stopping(patience, epochs=8, **more):
    rule = {"patience": patience, "min_delta": 0.5, **more}
    return {"epochs": epochs, "batch_size": 8, "early_stopping": rule}


def test_phases_that_early_stopping_leaves_out_are_named(run):
    progress, said, summary = run(freeze=phases({"epochs": 5}), train=stopping(2), optimizer=STANDS)
    assert progress.stopped_early
    assert (
        "phase 'second' never ran: early stopping ended the run in phase 'first', at step 12"
        in said
    )
    assert summary["never_ran"] == ["second"]


def test_phases_behind_a_plateau_that_never_came_are_named(run):
    until = {"plateau": "validation/loss", "patience": 3}
    train = {"epochs": 2, "batch_size": 8}
    _, said, summary = run(freeze=phases(until), train=train)
    assert "phase 'second' never ran: the run ended in phase 'first', at step 8" in said
    assert summary["never_ran"] == ["second"]


def test_a_run_through_all_phases_names_none(run):
    _, said, summary = run(freeze=phases({"epochs": 1}), train={"epochs": 2, "batch_size": 8})
    assert not any("never ran" in line for line in said)
    assert summary["never_ran"] == []


@pytest.mark.parametrize(("across", "epochs"), [(False, 6), (True, 4)])
def test_patience_begins_anew_with_each_phase_unless_asked(run, across, epochs):
    progress, *_ = run(freeze=phases({"epochs": 2}), train=stopping(3, across_phases=across))
    # the first evaluation, of the run or of the phase, sets the mark; three more end the run
    assert (progress.stopped_early, progress.step) == (True, epochs * 4)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"steps": 2, "batch_size": 8}}, "16 of 32 training samples are never seen"),
        (
            {"schedule": {"type": "cosine", "warmup": 0.01}},
            "a warmup of 0.01 of 8 steps is none",
        ),
        (
            {"schedule": {"type": "cosine"}, "train": {"steps": 1, "batch_size": 32}},
            "schedule 'cosine' has no effect on 1 step",
        ),
        ({"train": stopping(3, epochs=3)}, "early stopping never takes effect: the run has 3"),
        (
            {
                "train": stopping(3),
                "freeze": phases({"plateau": "validation/loss", "patience": 3}),
            },
            "early stopping (patience 3) ends the run before the plateau (patience 3) ends",
        ),
        (
            {"freeze": phases({"epochs": 1}, {"epochs": 9})},
            "until of phase 'second' never takes effect: it is due after step 40, and the run is "
            "over after 8",
        ),
        (
            {"freeze": phases({"plateau": "validation/loss", "patience": 5})},
            "the plateau of phase 'first' never takes effect: at most 2 evaluations in it",
        ),
        (
            {
                "freeze": phases(
                    {"plateau": "validation/loss", "patience": 1, "at_most": {"epochs": 1}}
                )
            },
            "the plateau of phase 'first' never takes effect: at most 1 evaluation in it",
        ),
    ],
    ids=["unseen", "warmup", "one step", "patience", "both", "until", "plateau", "at most"],
)
def test_a_setting_that_never_takes_effect_is_told_by_plan_and_train(
    small_config, tmp_path, heard, sections, message
):
    sections = {"data": SPLIT, "train": {"epochs": 2, "batch_size": 8}} | sections
    lints = preview(small_config(**sections)).lints
    assert any(message in lint.message for lint in lints)
    build_trainer(small_config(**sections), tmp_path / "run", tracker=heard)
    assert any(line.startswith("run: ") and message in line for line in heard.said)


def test_settings_that_take_effect_are_not_told(small_config):
    sections = {
        "data": SPLIT,
        "train": stopping(3),
        "schedule": {"type": "cosine", "warmup": 0.1},
        "freeze": phases({"plateau": "validation/loss", "patience": 2}),
    }
    assert preview(small_config(**sections)).lints == ()
    sections["freeze"] = phases({"fraction": 0.5}, {"epochs": 4})
    assert preview(small_config(**sections)).lints == ()


EVERY_9 = {"epochs": 2, "batch_size": 8, "evaluate_every": {"steps": 9}}
LATE = [
    (
        EVERY_9,
        "train.evaluate_every is longer than the run: it is due after step 9, and the run is",
    ),
    (
        EVERY_9 | {"evaluate_every": {"epochs": 3}},
        "the validation samples are evaluated once, at its end, so the last weights are used",
    ),
    (
        {"epochs": 2, "batch_size": 8, "checkpoint": {"every": {"steps": 100}}},
        "train.checkpoint.every is longer than the run: it is due after step 100, and the run is",
    ),
]


@pytest.mark.parametrize(("train", "message"), LATE)
def test_an_interval_beyond_the_end_is_told(small_config, train, message):
    [lint] = preview(small_config(data=SPLIT, train=train)).lints
    assert message in lint.message
    assert lint.hint.endswith("{steps: 2}, say")


@pytest.mark.parametrize(
    ("more", "follows"),
    [
        ({}, "before its end it is saved where a phase ends or an evaluation is the best so far"),
        ({"evaluate_every": {"epochs": 2}}, "it is saved at its end only: after a kill it begins"),
    ],
    ids=["evaluated", "not before the end"],
)
def test_what_is_told_of_late_checkpoints_is_what_is_saved(
    small_config, tmp_path, heard, more, follows
):
    train = {"epochs": 2, "batch_size": 8, "checkpoint": {"every": {"steps": 100}, "keep_last": 9}}
    config = small_config(data=SPLIT, train=train | more)
    trainer = build_trainer(config, tmp_path / "run", tracker=heard)
    assert any(follows in line for line in heard.said)
    trainer.fit(quiet=True)
    is_one = len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
    assert is_one == ("only" in follows)


def test_an_interval_as_long_as_the_run_is_not_told(small_config):
    train = {"epochs": 2, "batch_size": 8}
    for every in ({"steps": 8}, {"epochs": 2}):
        sections = train | {"evaluate_every": every, "checkpoint": {"every": every}}
        assert preview(small_config(data=SPLIT, train=sections)).lints == ()
    # Nobody has asked for an evaluation each epoch, and a run of 2 steps is told anyway.
    [lint] = preview(small_config(data=SPLIT, train={"steps": 2, "batch_size": 8})).lints
    assert "never seen" in lint.message


def test_evaluations_without_validation_samples_are_told(small_config):
    whole = {"source": SPLIT["source"]}
    train = {"epochs": 2, "batch_size": 8, "evaluate_every": {"steps": 2}}
    [lint] = preview(small_config(data=whole, train=train)).lints
    assert lint.message == "train.evaluate_every has no effect: there are no validation samples"


BLOCKS = {
    "name": "blocks",
    "type": "sequential",
    "layers": [{"type": "Linear", "out_features": 4}, {"type": "Linear", "out_features": 4}],
}
DECAYING = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"optimizer": {"type": "SGD", "lr": 0.1, "no_decay": [{"kind": "bias"}]}},
            "optimizer.no_decay has no effect: SGD has a weight decay of 0",
        ),
        (
            {"optimizer": DECAYING | {"no_decay": ["body"]}, "freeze": ["body"]},
            "optimizer.no_decay has no effect: no phase trains any of these parameters",
        ),
        (
            {"optimizer": DECAYING | {"layer_decay": 0.5}, "freeze": ["body"]},
            "optimizer.layer_decay has no effect: all that trains has the factor 1",
        ),
        (
            {"optimizer": DECAYING | {"layer_decay": 0.9, "freeze_below": 0.1}},
            "optimizer.freeze_below freezes nothing: the smallest factor by depth is",
        ),
        (
            {"schedule": {"type": "cosine", "floor": 1.0}},
            "the rate never falls: the floor of schedule 'cosine' is the peak rate",
        ),
        (
            {"freeze": {"method": "lisa", "blocks": 1, "period": 8}},
            "other blocks are never drawn: each draw lasts 8 steps, and the run is over after 8",
        ),
    ],
    ids=["no decay", "frozen", "no blocks", "no limit", "floor", "lisa"],
)
def test_a_setting_of_optimizer_or_method_that_changes_nothing_is_told(
    small_config, sections, message
):
    train = {"epochs": 2, "batch_size": 8}
    lints = preview(small_config(data=SPLIT, train=train, **sections)).lints
    assert any(lint.message.startswith(message) for lint in lints), lints


@pytest.mark.parametrize(
    "optimizer", [{"no_decay": [{"kind": "bias"}]}, {"layer_decay": 0.5, "freeze_below": 0.9}]
)
def test_settings_of_the_optimizer_that_change_something_are_not_told(small_config, optimizer):
    model = {"layers": [BLOCKS, {"name": "head", "type": "Linear", "out_features": 3}]}
    sections = {"optimizer": DECAYING | optimizer, "schedule": {"type": "cosine", "floor": 0.9}}
    train = {"epochs": 2, "batch_size": 8}
    assert preview(small_config(model=model, data=SPLIT, train=train, **sections)).lints == ()


def test_a_warmup_to_a_floor_as_high_as_the_peak_is_not_called_a_schedule_without_effect(
    small_config,
):
    schedule = {"type": "cosine", "floor": 1.0, "warmup": {"steps": 2}}
    train = {"epochs": 2, "batch_size": 8}
    [lint] = preview(small_config(data=SPLIT, train=train, schedule=schedule)).lints
    assert lint.message == "the rate never falls: the floor of schedule 'cosine' is the peak rate"


def test_a_column_of_groups_or_weights_that_says_nothing_is_told(small_config, tmp_path):
    rows = "".join(f"{n},{n % 3},{n},1\n" for n in range(40))
    (tmp_path / "t.csv").write_text(f"x,y,row,weight\n{rows}")
    data = {
        "source": {"type": "csv", "path": str(tmp_path / "t.csv")},
        "split": {"validation": 0.2, "group": "row"},
        "inputs": ["x"],
        "target": "y",
        "transforms": [{"type": "stack"}],
        "balance": {"weights": "weight"},
    }
    model = {"layers": [{"name": "head", "type": "Linear", "out_features": 1}]}
    notes = preview(small_config(data=data, model=model)).parts.data.notes_on_all
    group = "split.group: each of 40 samples has a value of its own in column 'row': it keeps"
    assert any(note.startswith(group) for note in notes), notes
    same = "balance: all samples have the same weight in 'weight': none is drawn more often"
    assert same in notes
