"""A run that goes on with changed data keeps every row's part, and begins with a whole epoch."""

import json
import random

import numpy as np
import pytest
import torch

from finetune.data.batches import sample_order
from finetune.data.identify.identity import DataIdentity
from finetune.errors import CheckpointError, DataError
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

HEADER = "a,b,y"
MODEL = {"layers": [{"name": "linear", "type": "Linear", "out_features": "classes"}]}
EPOCHS = {"epochs": 4, "batch_size": 4, "checkpoint": {"every": {"steps": 3}}}


class Said(Tracker):
    """Keeps the lines told to the person who watches."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)

    @property
    def in_all(self):
        return "\n".join(self.lines)


def rows_of(seed, count, labels="uv"):
    draw = random.Random(seed)
    return [f"{draw.random():.4f},{draw.random():.4f},{labels[n % 2]}" for n in range(count)]


OLD, NEW = rows_of(0, 40), rows_of(1, 20)
"""28 of the old rows train: 7 steps an epoch."""


@pytest.fixture
def table(tmp_path):
    def write(rows):
        (tmp_path / "d.csv").write_text("\n".join([HEADER, *rows]) + "\n")

    write(OLD)
    return write


@pytest.fixture
def build(small_config, tmp_path):
    def build_(said=None, run="run", train=EPOCHS, split=None, freeze=None, **keywords):
        data = {
            "source": {"type": "csv", "path": str(tmp_path / "d.csv")},
            "inputs": ["a", "b"],
            "target": "y",
            "transforms": [{"type": "stack"}],
            "split": split or {"validation": 0.1, "test": 0.2},
        }
        more = {"freeze": freeze} if freeze else {}
        task = {"type": "classification"}
        config = small_config(model=MODEL, data=data, task=task, train=train, **more)
        return build_trainer(config, tmp_path / run, tracker=said, **keywords)

    return build_


class Killed(BaseException):
    """Ends a run as a kill does."""


def kill_after(trainer, step):
    """Train until a step is done; what was saved last stays."""
    train_step = trainer.train_step

    def counted(window):
        if trainer.progress.step == step:
            raise Killed
        return train_step(window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), "train_step", lambda self, window: counted(window))
        with pytest.raises(Killed):
            trainer.fit()


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[n], others[n]) for n in some)


def identity(folder):
    document = json.loads((folder / "data.json").read_text())
    return DataIdentity.read(document["identity"], document["classes"])


@pytest.mark.parametrize("data_changed", [False, True])
def test_unchanged_data_changes_no_bit_whatever_is_accepted(build, table, data_changed):
    unbroken = build(run="unbroken")
    unbroken.fit()
    kill_after(build(), 17)
    said = Said()
    resumed = build(said, data_changed=data_changed)
    assert resumed.progress.step == 15
    resumed.fit()
    assert same(weights(resumed), weights(unbroken))
    assert "other data" not in said.in_all
    assert resumed.progress.past_epochs == []


def test_a_run_goes_on_at_the_start_of_the_next_epoch(build, table):
    kill_after(build(), 17)
    table([*OLD, *NEW])
    said = Said()
    trainer = build(said, data_changed=True)
    count = len(trainer.splits.train)
    assert count > 28
    assert trainer.progress.step == 15  # one step into the third epoch
    assert "goes on at the start of epoch 4 with other data: the rest of epoch 3" in said.in_all
    first = torch.cat(trainer.timeline.windows())
    assert torch.equal(first, sample_order(count, trainer.timeline.seed, 3))
    progress = trainer.fit()
    assert progress.step == 15 + trainer.timeline.steps_per_epoch
    line = json.loads((trainer.folder.metrics).read_text().splitlines()[-1])
    assert line["epoch"] == 4.0
    assert build().fit().step == progress.step  # done, and it stays so


def test_at_the_end_of_an_epoch_nothing_is_left_out(build, table):
    kill_after(build(train=EPOCHS | {"checkpoint": {"every": {"epochs": 1}}}), 15)
    table([*OLD, *NEW])
    said = Said()
    trainer = build(
        said, train=EPOCHS | {"checkpoint": {"every": {"epochs": 1}}}, data_changed=True
    )
    assert trainer.progress.step == 14
    assert "goes on at the start of epoch 3 with other data" in said.in_all
    assert "is left out" not in said.in_all
    assert trainer.timeline.total_steps == 14 + 2 * trainer.timeline.steps_per_epoch


@pytest.mark.parametrize("again", [15, 16, 20, 22])
def test_killed_after_the_change_it_ends_as_if_it_were_not(build, table, tmp_path, again):
    kill_after(build(), 17)
    kill_after(build(run="other"), 17)
    table([*OLD, *NEW])
    unbroken = build(run="other", data_changed=True)
    unbroken.fit()
    kill_after(build(data_changed=True), again)
    said = Said()
    resumed = build(said)  # the change was accepted once
    resumed.fit()
    assert same(weights(resumed), weights(unbroken))
    assert resumed.progress.step == unbroken.progress.step
    assert "changed data" not in said.in_all


def test_rows_keep_their_part_and_new_ones_are_told(build, table, tmp_path):
    kill_after(build(), 17)
    before = identity(tmp_path / "run")
    table([*NEW, *random.Random(3).sample(OLD, len(OLD))])
    said = Said()
    kill_after(build(said, data_changed=True), 16)
    now = identity(tmp_path / "run")
    for part, rows in before.parts.items():
        assert np.isin(rows, now.parts[part]).all()
    assert "goes on with changed data: rows that the run does not know: 20" in said.in_all
    assert not set(now.inputs["train"]) & {*now.inputs["validation"], *now.inputs["test"]}


@pytest.mark.parametrize("change", ["labels", "copies", "form of the numbers"])
def test_what_was_trained_on_is_neither_validated_nor_tested(build, table, tmp_path, change):
    kill_after(build(), 17)
    trained = set(identity(tmp_path / "run").inputs["train"].tolist())
    other = {"u": "v", "v": "u"}
    table(
        {
            "labels": [f"{row[:-1]}{other[row[-1]]}" for row in OLD],
            "copies": [*OLD, *OLD, *NEW],
            "form of the numbers": [row.replace(",", "00,", 1) for row in OLD],
        }[change]
    )
    trainer = build(data_changed=True)
    assert len(trainer.splits.train) >= 28
    kill_after(trainer, 16)
    now = identity(tmp_path / "run")
    for part in ("validation", "test"):
        assert not trained & set(now.inputs[part].tolist())


def test_a_trained_row_that_was_away_comes_back_into_training(build, table, tmp_path):
    kill_after(build(), 17)
    trained = identity(tmp_path / "run").inputs["train"]
    for some in (OLD[:20], OLD, OLD[20:], OLD):
        table([*some, *NEW])
        kill_after(build(data_changed=True), 16)
        now = identity(tmp_path / "run")
        assert not np.isin(
            trained, np.concatenate([now.inputs["validation"], now.inputs["test"]])
        ).any()


def test_where_only_other_parts_have_changed_the_epoch_goes_on(build, table, tmp_path):
    kill_after(build(), 17)
    before = identity(tmp_path / "run")
    unbroken = build(run="unbroken")
    unbroken.fit()
    tested = set(before.parts["test"].tolist())
    table(OLD)
    whole = identity(tmp_path / "run").parts
    order = [*whole["train"], *whole["validation"], *whole["test"]]
    assert len(order) == len(OLD)
    # a row of the test is taken out: which one, its hash tells by trial
    for row in OLD:
        table([other for other in OLD if other != row])
        said = Said()
        trainer = build(said, data_changed=True)
        if len(trainer.splits.test) < len(tested):
            trainer.fit()
            assert "other data" not in said.in_all
            assert same(weights(trainer), weights(unbroken))
            return
    pytest.fail("no row was tested")


def test_phases_count_their_epochs_over_a_change(build, table):
    freeze = {
        "phases": [
            {"name": "first", "train": ["linear.bias"], "until": {"epochs": 3}},
            {"name": "second", "train": ["linear"]},
        ]
    }
    kill_after(build(freeze=freeze), 17)
    table([*OLD, *NEW])
    trainer = build(freeze=freeze, data_changed=True)
    # two epochs and a piece, which counts as one: the first phase is over
    assert trainer.progress.step == 15
    assert trainer.timeline.span.ends == 15
    progress = trainer.fit()
    assert progress.transitions == [15]
    assert progress.step == 15 + trainer.timeline.steps_per_epoch
    assert build(freeze=freeze).fit().transitions == [15]


def test_a_branch_keeps_the_parts_of_its_origin(build, table, tmp_path):
    kill_after(build(), 17)
    before = identity(tmp_path / "run")
    table([*NEW, *OLD])
    with pytest.raises(CheckpointError, match="20 added"):
        build(run="branch", resume=tmp_path / "run")
    trainer = build(run="branch", resume=tmp_path / "run", data_changed=True)
    trainer.fit()
    now = identity(tmp_path / "branch")
    assert all(np.isin(rows, now.parts[part]).all() for part, rows in before.parts.items())
    assert identity(tmp_path / "run").parts["train"].tolist() == before.parts["train"].tolist()


def test_steps_that_the_config_counts_stay_as_many(build, table):
    train = {"steps": 20, "batch_size": 4, "checkpoint": {"every": {"steps": 3}}}
    kill_after(build(train=train), 17)
    table([*OLD, *NEW])
    assert build(train=train, data_changed=True).fit().step == 20


def test_another_number_of_classes_is_an_error_with_both_lists(build, table):
    kill_after(build(), 17)
    table([*OLD, "0.5,0.5,w"])
    with pytest.raises(DataError, match=r"unknown are 'w' .*; training has 'u', 'v'"):
        build(data_changed=True)


def test_other_names_of_as_many_classes_are_told_one_by_one(build, table):
    kill_after(build(), 17)
    table([row.replace("v", "w") for row in OLD])
    said = Said()
    build(said, data_changed=True).fit()
    assert "outputs change their class: 'v' to 'w'" in said.in_all
    assert build().fit()


def test_epochs_that_a_forged_checkpoint_counts_wrongly_are_refused(build, table, tmp_path):
    kill_after(build(), 17)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    progress = json.loads((newest / "progress.json").read_text())["progress"]
    assert (progress["epoch_steps"], progress["past_epochs"]) == (7, [])
    trainer = build()
    for fault in ({"epoch_steps": 3}, {"past_epochs": [(99, 3)]}, {"past_epochs": [(3, 0)]}):
        changed = trainer.saver.checkpoints.misfit
        assert changed(newest) is None
        document = json.loads((newest / "progress.json").read_text())
        kept = json.dumps(document)
        document["progress"] |= fault
        (newest / "progress.json").write_text(json.dumps(document))
        assert changed(newest) is not None
        (newest / "progress.json").write_text(kept)


OTHERS = "the validation samples are others"


@pytest.fixture
def validated(small_config, tmp_path):
    """Train on numbers, validated on a file of its own; return the progress and what was said."""

    def train(epochs, *, far):
        for name, first, lift in (("train", 0, 0), ("validation", 0.5, far)):
            rows = [f"{first + n / 12},{n % 3},{n % 2 + lift}" for n in range(12)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
        sources = {
            name: {"type": "csv", "path": str(tmp_path / f"{name}.csv")}
            for name in ("train", "validation")
        }
        data = {"inputs": ["a", "b"], "target": "y", "transforms": [{"type": "stack"}], **sources}
        said = Said()
        config = small_config(
            model={"layers": [{"name": "linear", "type": "Linear", "out_features": 1}]},
            data=data,
            train={"epochs": epochs, "batch_size": 4, "early_stopping": {"patience": 2}},
            optimizer={"type": "SGD", "lr": 1e-3},
        )
        trainer = build_trainer(config, tmp_path / "run", tracker=said, data_changed=True)
        trainer.fit()
        return trainer.progress, said.in_all

    return train


def test_a_figure_of_other_validation_samples_is_no_mark_to_beat(validated, tmp_path):
    validated(2, far=0)
    progress, said = validated(4, far=100)
    assert OTHERS in said
    # the loss of the first samples was far lower, and none of the later ones can reach it
    assert progress.best.step == 12
    assert not progress.stopped_early
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert figures["validation/loss"] > 1_000


def test_a_run_that_is_done_keeps_the_figures_of_its_own_samples(validated):
    done, _ = validated(2, far=0)
    progress, said = validated(2, far=100)
    assert OTHERS not in said
    assert progress.best == done.best
    # it is told as soon as the run goes on
    assert OTHERS in validated(3, far=100)[1]
