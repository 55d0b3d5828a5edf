"""Nothing that is not finite gets into the weights, and memory that runs out costs no step."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.errors import FinetuneError, NonFiniteError

DATA = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.2},
}


@pytest.fixture(autouse=True)
def nets(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def limit(small_run):
    """Return a bound that one training sample alone exceeds, in its first feature."""
    column = small_run(data=DATA).splits.train.fetch(torch.arange(32)).inputs["features"][:, 0]
    return float(column.sort().values[-2])


@pytest.fixture
def run_of(small_run):
    def build(net, run="run", *, args, fresh=False, steps=12, **train):
        layer = {"name": "net", "type": "import", "path": f"fault_nets:{net}", "args": args}
        train = {"steps": steps, "batch_size": 8, "log_every": 1,
                 "evaluate_every": {"steps": 2}, "checkpoint": {"every": {"steps": 1},
                 "keep_last": 100}} | train  # fmt: skip
        return small_run(
            run, fresh=fresh, trust=["fault_nets"], model={"layers": [layer]}, data=DATA,
            train=train, inference={"batch_size": 8},
        )  # fmt: skip

    return build


def state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def told(trainer):
    lines = map(json.loads, trainer.folder.metrics.read_text().splitlines())
    hidden = ("time/", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(hidden)} for line in lines]


def assert_all_on_disk_are_finite(trainer):
    for path in trainer.saver.checkpoints.all():
        for name, tensor in load_file(path / "weights.safetensors").items():
            assert not tensor.is_floating_point() or tensor.isfinite().all(), (path.name, name)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("loss", "the loss is nan"), ("gradient", r"gradients are not finite: net\.body\.weight")],
)
def test_what_is_not_finite_ends_the_run_before_its_update(run_of, limit, fault, says):
    trainer = run_of("Poisoned", args={"limit": limit, "fault": fault})
    with pytest.raises(NonFiniteError, match=rf"{says}.*in step \d+, before its update"):
        trainer.fit()
    kept = state(trainer)
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert trainer.saver.checkpoints.all()[-1] == trainer.saver.checkpoints.path_of(
        trainer.progress.step
    )
    assert_all_on_disk_are_finite(trainer)
    again = run_of("Poisoned", args={"limit": limit, "fault": fault})
    assert_equal(state(again), kept)


def test_the_command_line_ends_with_exit_code_3(run_of, limit, tmp_path, monkeypatch, capsys):
    trainer = run_of("Poisoned", args={"limit": limit})
    trainer.folder.begin()
    (tmp_path / "poisoned.yaml").write_text((trainer.folder.path / "config.yaml").read_text())
    argv = ["finetune", "train", str(tmp_path / "poisoned.yaml"), "--trust", "fault_nets",
            "--run", str(tmp_path / "cli")]  # fmt: skip
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert "the loss is nan in step" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_skip_leaves_out_the_windows_that_are_not_finite_and_nothing_else(run_of, limit, fault):
    trainer = run_of("Poisoned", args={"limit": limit, "fault": fault}, nan="skip")
    progress = trainer.fit()
    assert progress.step == 12
    assert len(progress.left_out) == 3  # one sample, in each of three epochs
    assert_all_on_disk_are_finite(trainer)
    for step in progress.left_out:
        before, after = (trainer.saver.checkpoints.path_of(s) for s in (step, step + 1))
        if step:
            assert_equal(*(load_file(path / "weights.safetensors") for path in (before, after)))


@pytest.mark.slow
@pytest.mark.parametrize("nan", ["skip", "rollback"])
def test_a_run_that_leaves_windows_out_goes_on_exactly_from_every_step(run_of, limit, nan):
    args = {"limit": limit}
    whole = run_of("Poisoned", "whole", args=args, nan=nan)
    whole.fit()
    for step in range(1, 12):
        run_of("Poisoned", "cut", args=args, nan=nan, fresh=True, steps=step).fit()
        resumed = run_of("Poisoned", "cut", args=args, nan=nan)
        assert resumed.progress.step == step
        resumed.fit()
        assert_equal(state(resumed), state(whole))
        assert resumed.progress.left_out == whole.progress.left_out


def test_rollback_ends_like_skip_and_tells_no_step_twice(run_of, limit):
    args = {"limit": limit, "fault": "gradient"}
    skipped = run_of("Poisoned", "skip", args=args, nan="skip")
    back = run_of("Poisoned", "back", args=args, nan="rollback",
                  checkpoint={"every": {"steps": 5}})  # fmt: skip
    skipped.fit()
    back.fit()
    assert back.progress.left_out == skipped.progress.left_out
    assert_equal(state(back), state(skipped))
    assert told(back) == told(skipped)


@pytest.mark.parametrize("nan", ["skip", "rollback"])
def test_no_more_windows_are_left_out_than_the_limit_says(run_of, limit, nan):
    trainer = run_of("Poisoned", args={"limit": limit}, nan=nan, nan_limit=2)
    with pytest.raises(NonFiniteError, match="2 windows are left out already"):
        trainer.fit()
    assert len(trainer.progress.left_out) == 2


@pytest.mark.parametrize("message", ["", "DefaultCPUAllocator: can't allocate memory: you tried"])
@pytest.mark.parametrize("limit", [4, 2, 1])
def test_memory_that_runs_out_halves_the_passes_and_changes_nothing_else(run_of, limit, message):
    small = run_of("Hungry", "small", args={"limit": limit}, micro_batch=limit)
    halved = run_of("Hungry", "halved", args={"limit": limit, "message": message})
    small.fit()
    halved.fit()
    assert halved.progress.micro_batch == limit
    assert_equal(state(halved), state(small))
    assert told(halved) == told(small)


def test_memory_that_runs_out_in_a_loss_halves_the_passes_too(small_run):
    layer = {"name": "head", "type": "Linear", "out_features": 3}
    loss = {"type": "import", "path": "fault_nets:hungry_loss", "args": {"limit": 2}}
    trainer = small_run(
        trust=["fault_nets"], model={"layers": [layer]}, data=DATA,
        task={"type": "regression", "losses": [loss]}, train={"steps": 2, "batch_size": 8},
    )  # fmt: skip
    trainer.fit()
    assert trainer.progress.micro_batch == 2


def test_a_continued_run_keeps_the_size_that_was_found(run_of):
    args = {"limit": 2}
    whole = run_of("Hungry", "whole", args=args)
    whole.fit()
    run_of("Hungry", "cut", args=args, steps=5).fit()
    resumed = run_of("Hungry", "cut", args=args)
    resumed.fit()
    assert max(resumed.model.net.sizes) == 2
    assert_equal(state(resumed), state(whole))


def test_a_single_sample_that_memory_does_not_hold_is_told(run_of):
    with pytest.raises(FinetuneError, match="memory does not hold a single sample"):
        run_of("Hungry", args={"limit": 0}).fit()


def test_other_faults_of_torch_are_no_lack_of_memory(run_of):
    trainer = run_of("Hungry", args={"limit": 4, "message": "shapes do not fit"})
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.fit()
    assert trainer.progress.micro_batch is None
