"""Phases end when they should, begin as they should, and are told the same by every stop."""

import json
import shutil

import pytest
import torch

from finetune.cli import main
from finetune.errors import FrozenWeightError
from finetune.optim.groups import state_by_name
from finetune.train.after.trained import load_run

EVERY_STEP = {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}
NET = {
    "layers": [
        {"name": "body", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
DATA = {
    "source": {"type": "random", "samples": 60, "features": 4, "targets": 3},
    "split": {"validation": 0.25, "test": 0.1},
}


def train(steps, **more):
    steady = {"batch_size": 8, "evaluate_every": {"steps": 2}, "log_every": 1}
    return {"steps": steps} | steady | more


def phase(name, *frozen, until=None, **more):
    steps = {"steps": until} if isinstance(until, int) else until
    return {"name": name, "freeze": list(frozen)} | ({"until": steps} if steps else {}) | more


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def states(trainer):
    named = state_by_name(trainer.optimizer).items()
    return {f"{n}//{e}": v.clone() for n, entries in named for e, v in entries.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def lines(trainer, *, tag=""):
    entries = map(json.loads, trainer.folder.metrics.read_text().splitlines())
    hidden = ("time/", "memory/")
    return [
        {k: v for k, v in entry.items() if not k.startswith(hidden)}
        for entry in entries
        if tag in "".join(entry)
    ]


def proofs(trainer):
    return json.loads((trainer.folder.path / "freeze_proof.json").read_text())


def phase_of_steps(trainer):
    return [entry["phase"] for entry in lines(trainer, tag="train/loss")]


@pytest.mark.parametrize(
    ("until", "steps"),
    [
        ({"steps": 3}, 3),
        ({"epochs": 1}, 5),  # 40 samples, 8 in a step
        ({"fraction": 0.4}, 4),
        ({"plateau": "validation/loss", "patience": 1, "min_delta": 1e9}, 4),
        ({"plateau": "validation/loss", "patience": 9, "at_most": {"steps": 7}}, 7),
        ({"plateau": "validation/loss", "patience": 9, "at_most": {"fraction": 0.5}}, 5),
    ],
    ids=str,
)
def test_a_phase_ends_by_its_trigger(small_run, until, steps):
    """The first evaluation of a plateau sets the mark; `patience` more may pass it by."""
    data = {"source": {"type": "random", "samples": 50, "features": 4, "targets": 3},
            "split": {"validation": 0.2}}  # fmt: skip
    phases = [phase("one", "body", until=until), phase("two")]
    trainer = small_run(data=data, freeze={"phases": phases}, train=train(10))
    progress = trainer.fit()
    assert progress.transitions == [steps]
    assert phase_of_steps(trainer) == ["one"] * steps + ["two"] * (10 - steps)


@pytest.mark.parametrize(
    "until",
    [{"steps": 3}, {"plateau": "validation/loss", "patience": 1, "min_delta": 1e9}],
    ids=str,
)
def test_the_trigger_of_the_last_phase_ends_the_run_after_an_evaluation(small_run, until):
    phases = [phase("one", "body", until=1), phase("two", until=until)]
    trainer = small_run(data=DATA, freeze={"phases": phases}, train=train(40))
    progress = trainer.fit()
    assert progress.step == 4
    assert progress.transitions == [1]
    assert lines(trainer, tag="validation/loss")[-1]["step"] == 4
    again = small_run(data=DATA, freeze={"phases": phases}, train=train(40))
    assert again.fit().step == 4


def test_a_phase_whose_time_is_over_before_it_begins_takes_no_step(small_run):
    """A plateau may come later than the share of the run at which the phase after it ends."""
    phases = [
        phase("one", until={"plateau": "validation/loss", "patience": 1, "min_delta": 1e9}),
        phase("two", "body", until={"fraction": 0.2}),
        phase("three", "head"),
    ]
    trainer = small_run(data=DATA, freeze={"phases": phases}, train=train(10))
    assert trainer.fit().transitions == [4, 4]
    assert phase_of_steps(trainer) == ["one"] * 4 + ["three"] * 6


FIVE = [
    phase("head", "body", "norm", until=6, modules={"norm": "train"}),
    phase("low", "head", until={"plateau": "validation/loss", "patience": 2, "min_delta": 0.02,
          "at_most": {"steps": 14}}, restore_best=True),
    phase("rows", {"rows": "body.weight[1:5:2]"}, "norm", until=5, optimizer_state="keep"),
    phase("again", "body", until={"plateau": "validation/loss", "patience": 1, "min_delta": 0.01,
          "at_most": {"steps": 9}}, restore_best=True, schedule="per_phase"),
    phase("all", lr={"body": 1e-3}, optimizer_state="reset"),
]  # fmt: skip
FIVE_RUN = {
    "model": NET,
    "data": DATA,
    "freeze": {"phases": FIVE, "verify": "checkpoint"},
    "optimizer": {"type": "AdamW", "lr": 0.03, "weight_decay": 0.1},
    "schedule": {"type": "cosine", "warmup": 0.1, "floor": 0.1},
    "train": train(40, **EVERY_STEP),
}


@pytest.mark.slow
def test_five_phases_with_two_plateaus_run_twice_end_equal(small_run):
    one, two = small_run("one", **FIVE_RUN), small_run("two", **FIVE_RUN)
    first, second = one.fit(), two.fit()
    assert len(first.transitions) == 4
    assert first.transitions == second.transitions
    ends = [6, *(b - a for a, b in zip(first.transitions, first.transitions[1:], strict=False))]
    assert ends[1] < 14, "the plateau ends the second phase, not its latest end"
    assert ends[3] < 9, "the plateau ends the fourth phase, not its latest end"
    assert_equal(weights(one), weights(two))
    assert lines(one) == lines(two)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param("around transitions", id="around transitions"),
        pytest.param("everywhere", id="everywhere", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_any_step_ends_bit_identical_to_an_unbroken_one(small_run, stops):
    """Each stop is cut out of one unbroken run of forty steps, from the last to the first."""
    unbroken = small_run(**FIVE_RUN)
    progress = unbroken.fit()
    expected = weights(unbroken), states(unbroken), lines(unbroken), progress.transitions
    first, *_, last = progress.transitions
    chosen = (last + 1, last, first + 3, first - 1) if stops != "everywhere" else range(39, 0, -1)
    for stop in chosen:
        for path in unbroken.saver.checkpoints.all():
            if path.name > f"step-{stop:08d}":
                shutil.rmtree(path)
        (unbroken.folder.path / "summary.json").unlink()
        resumed = small_run(**FIVE_RUN)
        assert resumed.progress.step == stop
        resumed.fit()
        assert_equal(weights(resumed), expected[0])
        assert_equal(states(resumed), expected[1])
        assert lines(resumed) == expected[2], stop
        assert resumed.progress.transitions == expected[3], stop
        assert proofs(resumed)["intact"]


def test_a_stop_between_the_last_step_of_a_phase_and_the_next_phase_adds_no_step(small_run):
    """The best weights of a run are saved as they are found, be it where their phase ends."""
    phases = [phase("one", "body", until=4), phase("two")]
    changes = {"data": DATA, "freeze": {"phases": phases}, "train": train(6, **EVERY_STEP)}
    unbroken = small_run("unbroken", **changes)
    unbroken.fit()
    stopped = small_run("stopped", **changes)
    stopped.folder.begin()
    stopped._enter_phase()
    for window in stopped._windows():
        stopped._after_step(stopped.train_step(window))
    stopped.saver.save()
    resumed = small_run("stopped", **changes)
    assert (resumed.progress.step, resumed.progress.phase) == (4, 0)
    assert resumed.fit().transitions == [4]
    assert_equal(weights(resumed), weights(unbroken))


def test_a_run_killed_before_its_summary_tests_again_and_says_so_once(small_run):
    phases = [phase("one", "body", until=4), phase("two")]
    changes = {"data": DATA, "freeze": {"phases": phases}, "train": train(6, **EVERY_STEP)}
    unbroken = small_run(**changes)
    unbroken.fit()
    expected = lines(unbroken)
    (unbroken.folder.path / "summary.json").unlink()
    resumed = small_run(**changes)
    resumed.fit()
    assert "test/loss" in expected[-1]
    assert lines(resumed) == expected
    assert (resumed.folder.path / "summary.json").is_file()


def test_restore_best_goes_back_to_the_weights_of_the_best_evaluation(small_run):
    """With a rate that ruins the head, the first evaluation is the best."""
    ruin = phase("ruin", "body", lr={"head": 30.0}, restore_best=True)
    changes = {"data": DATA, "optimizer": {"type": "SGD", "lr": 1e-30}}
    trainer = small_run(freeze={"phases": [ruin | {"until": {"steps": 6}}, phase("after")]},
                        train=train(7), **changes)  # fmt: skip
    trainer.fit()
    losses = {entry["step"]: entry["validation/loss"] for entry in lines(trainer, tag="validation")}
    assert losses[2] < losses[4] < losses[6]
    short = small_run("short", freeze={"phases": [ruin]}, train=train(2), **changes)
    short.fit()
    assert_equal(weights(trainer), weights(short))


TWO_BESTS = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 8},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {"source": {"type": "sklearn", "name": "iris"}, "split": {"validation": 0.3}},
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.02},
    "freeze": {
        "phases": [
            phase(
                "one",
                until={"plateau": "validation/accuracy", "patience": 99, "at_most": {"steps": 15}},
                restore_best=True,
            ),
            phase("two", "body", lr={"head": 1e-30}),
        ]
    },
    "train": {
        "steps": 18,
        "batch_size": 32,
        "evaluate_every": {"steps": 5},
        "checkpoint": {"best": "validation/loss", "keep_last": 1},
    },
}
"""The loss is best as the first phase ends, but the phase goes back to its best accuracy."""


def test_the_best_weights_of_the_run_survive_a_phase_that_goes_back_by_another_metric(small_run):
    trainer = small_run(**TWO_BESTS)
    progress = trainer.fit()
    losses = {entry["step"]: entry["validation/loss"] for entry in lines(trainer, tag="validation")}
    assert min(losses, key=losses.get) == progress.best.step == 15
    assert losses[18] > losses[15], "the phase has gone back"
    assert trainer.evaluate(trainer.splits.validation)["loss"] == progress.best.value == losses[15]
    assert_equal(load_run(trainer.folder.path).model.state_dict(), weights(trainer))


def test_a_phase_that_is_left_twice_is_said_to_begin_once(small_run):
    """The checkpoint of the best weights is from before the phase is left."""
    rules = TWO_BESTS["train"]["checkpoint"] | {"keep_last": 100}
    changes = TWO_BESTS | {"train": TWO_BESTS["train"] | {"checkpoint": rules}}
    unbroken = small_run(**changes)
    unbroken.fit()
    expected = lines(unbroken)
    for path in unbroken.saver.checkpoints.all():
        if path > unbroken.saver.checkpoints.path_of(15):
            shutil.rmtree(path)
    (unbroken.folder.path / "summary.json").unlink()
    resumed = small_run(**changes)
    assert (resumed.progress.step, resumed.progress.phase) == (15, 0)
    resumed.fit()
    assert lines(resumed) == expected


@pytest.mark.parametrize(
    ("wish", "body", "head"), [("reset", 2, 6), ("keep", 4, 6), ("fresh", 2, 2)]
)
def test_momentum_of_what_is_thawed_is_lost_or_kept_as_wished(small_run, wish, body, head):
    """Adam counts the steps that its state has seen."""
    phases = [phase("all", until=2), phase("top", "body", until=2),
              phase("again", optimizer_state=wish)]  # fmt: skip
    trainer = small_run(optimizer={"type": "Adam", "lr": 0.01}, freeze={"phases": phases})
    trainer.fit()
    state = state_by_name(trainer.optimizer)
    assert state["body.weight"]["step"] == body
    assert state["head.weight"]["step"] == head


def test_after_a_reset_the_first_step_is_that_of_a_new_optimizer(small_run):
    """Adam's first step is the rate itself, in the direction of the gradient."""
    phases = [phase("all", until=3), phase("top", "body", until=1), phase("again")]
    trainer = small_run(optimizer={"type": "Adam", "lr": 0.01, "eps": 1e-30},
                        freeze={"phases": phases}, train=train(5))  # fmt: skip
    before = {}
    trainer.model.register_forward_pre_hook(
        lambda module, _: before.update({trainer.progress.step: weights(trainer)})
    )
    trainer.fit()
    moved = (weights(trainer)["body.weight"] - before[4]["body.weight"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad"])
def test_state_of_what_never_trains_again_is_dropped(small_run, optimizer):
    phases = [phase("all", until=2), phase("top", "body")]
    trainer = small_run(optimizer={"type": optimizer, "lr": 0.01}, freeze={"phases": phases})
    trainer.fit()
    assert set(state_by_name(trainer.optimizer)) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_trained_parameter_without_a_part_in_a_step_is_left_alone_by_it(
    small_run, monkeypatch, request, momentum
):
    """A gradient of zeros in place of none would let decay and momentum move it."""
    monkeypatch.syspath_prepend(request.path.parents[1] / "freezing")
    layer = {"name": "net", "type": "import", "path": "trap_nets:Forgetful"}
    head = {"name": "head", "type": "Linear", "out_features": 3}
    trainer = small_run(
        model={"layers": [layer, head]},
        optimizer={"type": "SGD", "lr": 0.1, "momentum": momentum, "weight_decay": 0.1},
        trust=["trap_nets"],
    )
    after = {}
    trainer.model.register_forward_pre_hook(
        lambda module, _: after.update({trainer.progress.step: weights(trainer)})
    )
    trainer.fit()
    used = trainer.model.get_submodule("net").called - 6  # building it calls it, too
    name = "net.sometimes.weight"
    first_without = 3 - used
    assert not torch.equal(after[0][name], after[first_without][name])
    assert torch.equal(after[first_without][name], weights(trainer)[name])


PROOF_PHASES = [
    phase("one", "body", until=3),
    phase("two", "head", until=3),
    phase("three", "body"),
]


@pytest.mark.parametrize(
    ("verify", "names"),
    [("phase", ["one", "two", "three"]), ("checkpoint", ["one", "two", "three"]),
     ("end", ["whole run"]), ("off", None)],
)  # fmt: skip
def test_the_proof_is_taken_when_the_config_says(small_run, verify, names):
    trainer = small_run(freeze={"phases": PROOF_PHASES, "verify": verify}, train=train(9))
    trainer.fit()
    if names is None:
        assert not (trainer.folder.path / "freeze_proof.json").exists()
        return
    assert [proof["phase"] for proof in proofs(trainer)["phases"]] == names
    assert proofs(trainer)["intact"]


def test_the_proof_at_the_end_covers_what_was_frozen_throughout(small_run):
    phases = [phase("one", "body", until=2), phase("two", "body.weight", "head")]
    trainer = small_run(freeze={"phases": phases, "verify": "end"})
    trainer.fit()
    (proof,) = proofs(trainer)["phases"]
    assert set(proof["digests"]) == {"body.weight"}
    assert (proof["first_step"], proof["last_step"]) == (0, 6)


@pytest.fixture
def creeping_run(small_run, monkeypatch, request):
    """A run whose frozen layer changes its own bias after some calls."""
    monkeypatch.syspath_prepend(request.path.parents[1] / "freezing")

    def build(run="run", **changes):
        layer = {"name": "net", "type": "import", "path": "trap_nets:Creeping",
                 "args": {"calls": 6}}  # fmt: skip
        head = {"name": "head", "type": "Linear", "out_features": 3}
        return small_run(run, model={"layers": [layer, head]}, trust=["trap_nets"], **changes)

    return build


def test_a_failed_proof_in_a_middle_phase_names_tensor_and_change_and_saves_nothing(creeping_run):
    phases = [phase("one", until=3), phase("two", "net", until=5), phase("three", "net")]
    trainer = creeping_run(freeze={"phases": phases}, train=train(12, **EVERY_STEP))
    with pytest.raises(FrozenWeightError) as caught:
        trainer.fit()
    told = str(caught.value)
    assert "1 of 2 frozen tensors changed in phase 'two' between steps 3 and 8" in told
    changes = trainer.progress.proofs[-1]["largest_change"]
    assert changes.keys() == {"net.inner.bias"}
    assert f"net.inner.bias (by up to {changes['net.inner.bias']:.3g})" in told
    assert changes["net.inner.bias"] / 0.25 == pytest.approx(
        round(changes["net.inner.bias"] / 0.25)
    )
    assert trainer.saver.checkpoints.all()[-1].name == "step-00000007"
    assert [proof["intact"] for proof in proofs(trainer)["phases"]] == [True, False]


def test_verify_checkpoint_stops_at_the_first_checkpoint_that_would_hold_a_change(creeping_run):
    changes = {"freeze": {"phases": [phase("all", "net")], "verify": "checkpoint"},
               "train": train(12, checkpoint={"every": {"steps": 2}})}  # fmt: skip
    trainer = creeping_run(**changes)
    with pytest.raises(FrozenWeightError, match=r"net\.inner\.bias \(by up to 0\.\d+\)"):
        trainer.fit()
    assert trainer.progress.step < 12
    assert trainer.saver.checkpoints.all()[-1].name == f"step-{trainer.progress.step - 2:08d}"


@pytest.mark.parametrize("verify", ["phase", "end"])
def test_a_change_after_a_stop_is_found_by_the_proof_that_began_before_it(creeping_run, verify):
    changes = {"freeze": {"phases": [phase("all", "net")], "verify": verify},
               "train": train(5, **EVERY_STEP)}  # fmt: skip
    whole = creeping_run(**changes)
    whole.fit()
    for path in whole.saver.checkpoints.all()[3:]:
        shutil.rmtree(path)
    resumed = creeping_run(**changes)
    assert resumed.progress.step == 3
    with torch.no_grad():
        resumed.model.get_parameter("net.inner.weight")[0, 0] += 1
    with pytest.raises(FrozenWeightError, match=r"net\.inner\.weight$"):
        resumed.fit()


def test_verify_off_lets_a_change_pass(creeping_run):
    trainer = creeping_run(freeze={"phases": [phase("all", "net")], "verify": "off"},
                           train=train(12))  # fmt: skip
    assert trainer.fit().step == 12
    assert trainer.saver.prover.copies == {}


def test_the_command_line_ends_with_exit_code_1_and_no_traceback(
    creeping_run, tmp_path, monkeypatch, capsys
):
    trainer = creeping_run(freeze={"phases": [phase("all", "net")]}, train=train(12))
    trainer.folder.begin()
    (tmp_path / "creep.yaml").write_text((trainer.folder.path / "config.yaml").read_text())
    argv = ["finetune", "train", str(tmp_path / "creep.yaml"), "--run", str(tmp_path / "cli"),
            "--trust", "trap_nets"]  # fmt: skip
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "proof failed: 1 of 2 frozen tensors changed" in capsys.readouterr().err


def test_norm_train_lets_statistics_move_and_the_proof_says_which_it_leaves_out(small_run):
    phases = [
        phase("moving", "body", "norm", until=3, modules={"norm": "train"}),
        phase("still", "body", "norm"),
    ]
    trainer = small_run(model=NET, data=DATA, freeze={"phases": phases}, train=train(6))
    before = weights(trainer)
    trainer.fit()
    moving, still = proofs(trainer)["phases"]
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(moving["left_out"]) == statistics
    assert not statistics & set(moving["digests"])
    assert still["left_out"] == []
    assert statistics <= set(still["digests"])
    after = weights(trainer)
    assert after["norm.num_batches_tracked"] - before["norm.num_batches_tracked"] == 3
    assert torch.equal(after["norm.weight"], before["norm.weight"])


def test_the_cost_of_the_proof_is_told(small_run):
    trainer = small_run(freeze={"phases": [phase("all", "body")]})
    trainer.fit()
    summary = json.loads((trainer.folder.path / "summary.json").read_text())
    assert 0 < summary["seconds"]["proof"] < 1
