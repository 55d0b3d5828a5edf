"""A run goes on from its own folder or another's, and tells what has changed in its config."""

import shutil
from pathlib import Path

import pytest
import torch

from finetune.errors import CheckpointError, FinetuneError
from finetune.tracking.json_lines import read_metrics
from finetune.tracking.tracker import Tracker
from finetune.train.wire import build_trainer

DATA = {
    "source": {"type": "random", "samples": 60, "features": 4, "targets": 3},
    "split": {"validation": 0.25},
}
TRAIN = {"epochs": 2, "batch_size": 8, "log_every": 1, "evaluate_every": {"steps": 3},
         "checkpoint": {"every": {"steps": 1}, "keep_last": 100}}  # fmt: skip
CLASSES = {"schedule": {"type": "cosine", "warmup": 0.1}}


class Said(Tracker):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def run_of(small_config, tmp_path):
    def build(run, *, train=TRAIN, data=DATA, more=CLASSES, **keywords):
        config = small_config(data=data, train=train, **more)
        return build_trainer(config, tmp_path / run, **keywords)

    return build


def state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(one, other):
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def told(trainer):
    hidden = ("time/", "memory/")
    return [
        {k: v for k, v in line.items() if not k.startswith(hidden)}
        for line in read_metrics(trainer.folder.metrics)
    ]


def test_changes_that_alter_no_step_are_told_and_go_on(run_of):
    run_of("run").fit()
    said = Said()
    run_of("run", train=TRAIN | {"epochs": 3, "log_every": 2}, tracker=said)
    changes = [line for line in said.messages if line.startswith("goes on with")]
    assert changes == [
        "goes on with a changed config: train.epochs: 2 there, 3 now",
        "goes on with a changed config: train.log_every: 1 there, 2 now",
    ]


def test_changes_that_would_alter_steps_done_are_refused_key_by_key(run_of):
    run_of("run").fit()
    with pytest.raises(CheckpointError) as caught:
        run_of("run", train=TRAIN | {"batch_size": 4, "epochs": 9}, more={})
    lines = str(caught.value).splitlines()
    assert "    schedule.type: 'cosine' there, 'constant' now" in lines
    assert "    train.batch_size: 8 there, 4 now" in lines
    assert not any("epochs" in line for line in lines)
    assert lines[-1].strip().startswith("--fresh")


@pytest.mark.parametrize("step", [1, 5, 6, 11])
def test_more_epochs_extend_the_schedule_from_where_the_run_stands(run_of, step):
    """The rates of steps to come are those of the longer run; those behind stay as they were."""
    run_of("run").fit()
    longer = run_of("run", train=TRAIN | {"epochs": 3})
    for path in longer.saver.checkpoints.all()[step:]:
        shutil.rmtree(path)
    longer = run_of("run", train=TRAIN | {"epochs": 3})
    longer.fit()
    fresh = run_of("fresh", train=TRAIN | {"epochs": 3})
    fresh.fit()
    tag = next(tag for tag in told(fresh)[-2] if tag.startswith("train/lr/"))
    rates = [
        {line["step"]: line[tag] for line in told(trainer) if tag in line}
        for trainer in (longer, fresh)
    ]
    assert rates[0].keys() == rates[1].keys()
    assert all(rates[0][s] == rates[1][s] for s in rates[0] if s > step)


@pytest.mark.parametrize("step", [1, 4, 6, 11, 12])
def test_a_run_goes_on_in_a_folder_of_its_own_from_anothers_checkpoint(run_of, tmp_path, step):
    whole = run_of("whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "origin")
    for path in run_of("origin").saver.checkpoints.all()[step:]:
        shutil.rmtree(path)
    before = sorted(path.name for path in (tmp_path / "origin" / "checkpoints").iterdir())
    branch = run_of("branch", resume=tmp_path / "origin")
    assert branch.progress.step == step
    assert not (tmp_path / "branch").exists()
    branch.fit()
    assert_equal(state(branch), state(whole))
    assert told(branch) == told(whole)
    assert sorted(p.name for p in (tmp_path / "origin" / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("also_names_its_origin", [False, True])
def test_a_branch_that_was_stopped_goes_on_by_itself(run_of, tmp_path, also_names_its_origin):
    run_of("origin", train=TRAIN | {"epochs": 1}).fit()
    more = {"resume": tmp_path / "origin"} if also_names_its_origin else {}
    branch = run_of("branch", resume=tmp_path / "origin")
    branch.folder.begin()
    again = run_of("branch", **more)
    assert again.progress.step == branch.progress.step
    again.fit()
    said = Said()
    done = run_of("branch", **more, tracker=said)
    assert done.progress.step == again.progress.step
    done.fit()
    assert "already done; --fresh begins anew" in said.messages[-1]
    assert any("that began from" in line for line in said.messages) == also_names_its_origin


def test_a_branch_goes_on_wherever_its_beginning_was_killed(run_of, tmp_path, monkeypatch):
    run_of("origin", train=TRAIN | {"epochs": 1}).fit()
    expected = run_of("expected", resume=tmp_path / "origin")
    expected.fit()
    replace = Path.replace
    for kill in range(1, 6):
        moves = []

        def killed(path, target, moves=moves, kill=kill):
            moves.append(path)
            if len(moves) == kill:
                raise KeyboardInterrupt
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", killed)
        monkeypatch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(f"branch{kill}", resume=tmp_path / "origin").folder.begin()
        monkeypatch.undo()
        again = run_of(f"branch{kill}", resume=tmp_path / "origin")
        again.fit()
        assert_equal(state(again), state(expected))
        assert told(again) == told(expected)


def test_a_run_goes_on_from_itself_but_not_from_what_fresh_would_remove(run_of, tmp_path):
    run_of("run", train=TRAIN | {"epochs": 1}).fit()
    assert run_of("run", resume=tmp_path / "run").progress.step == 6
    with pytest.raises(CheckpointError, match="--fresh would remove the run"):
        run_of("run", resume=tmp_path / "run", fresh=True)


@pytest.mark.parametrize("record", [None, "{", "[1]", '{"run": "elsewhere"}'])
def test_a_run_that_began_elsewhere_does_not_go_on_with_another(run_of, tmp_path, record):
    run_of("origin").fit()
    run_of("run").fit()
    if record is not None:
        (tmp_path / "run" / "origin.json").write_text(record)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run_of("run", resume=tmp_path / "origin")


def test_a_fresh_run_forgets_where_an_earlier_one_began(run_of, tmp_path):
    run_of("origin", train=TRAIN | {"epochs": 1}).fit()
    run_of("branch", resume=tmp_path / "origin").fit()
    run_of("branch", fresh=True).fit()
    with pytest.raises(CheckpointError, match="holds a run already"):
        run_of("branch", resume=tmp_path / "origin")


def test_a_run_whose_folder_was_removed_ends_and_makes_none_anew(run_of, tmp_path):
    run = run_of("run")

    def remove(module, inputs):
        if run.progress.step == 3:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    run.model.register_forward_pre_hook(remove)
    with pytest.raises(FinetuneError, match="run") as caught:
        run.fit()
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_cannot_be_gone_on_from(run_of, tmp_path):
    with pytest.raises(CheckpointError, match=r"no run here: there is no config\.yaml"):
        run_of("branch", resume=tmp_path / "nowhere")
    origin = run_of("origin")
    origin.folder.begin()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        run_of("branch", resume=tmp_path / "origin")


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 13))
def test_the_number_of_workers_changes_nothing_not_even_in_the_middle(run_of, step, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "torture")
    noise = {"type": "import", "path": "slow_steps:jitter", "random": True}
    more = {"trust": ["slow_steps"]} | CLASSES

    def data(workers):
        return DATA | {"transforms": [noise], "workers": workers}

    whole = run_of("whole", data=data(0), more=more)
    whole.fit()
    run_of("cut", data=data(step % 3), more=more).fit()
    for path in run_of("cut", data=data(0), more=more).saver.checkpoints.all()[step:]:
        shutil.rmtree(path)
    resumed = run_of("cut", data=data((step + 1) % 3), more=more)
    assert resumed.progress.step == step
    resumed.fit()
    assert_equal(state(resumed), state(whole))
    assert told(resumed) == told(whole)
