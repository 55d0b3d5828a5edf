"""Every dense optimizer of torch leaves what is frozen as it is, to the bit, and moves the rest."""

import shutil
from itertools import pairwise

import pytest
import torch

from finetune.config.catalogue import OPTIMIZERS
from finetune.optim.groups import state_by_name

WARM = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}, "Muon": {"momentum": 0.9}}
RATES = {"Adadelta": 1.0}
DECAYS = [
    (name, decay)
    for name in sorted(OPTIMIZERS)
    for decay in ((0.0, 0.3) if "weight_decay" in OPTIMIZERS[name].arguments else (None,))
]

ALL = {"name": "everything", "train": [{"all": True}], "until": {"steps": 3}}
TOP = {"name": "head alone", "freeze": ["body"], "until": {"steps": 2}}
AGAIN = TOP | {"name": "head again"}
LOW = {"name": "low rows", "freeze": [{"rows": "body.weight[:2]"}], "until": {"steps": 2}}
HIGH = {"name": "high rows", "freeze": [{"rows": "body.weight[1:5:2]"}], "until": {"steps": 2}}
SCENARIOS = {
    "frozen from the start, thawed, frozen with warm momentum": [TOP, ALL, AGAIN],
    "rows frozen with warm momentum": [ALL, LOW, HIGH],
}
HELD_ROWS = {"low rows": {0, 1}, "high rows": {1, 3}}
HEAD = {"head.weight", "head.bias"}
TRAINED = {
    "everything": {"body.weight", "body.bias"} | HEAD,
    "head alone": HEAD,
    "head again": HEAD,
}


def settings_of(optimizer, decay):
    given = {} if decay is None else {"weight_decay": decay}
    rate = RATES.get(optimizer, 0.05)
    return {"type": optimizer, "lr": rate} | WARM.get(optimizer, {}) | given


def net_for(optimizer):
    """Muon takes matrices alone: its network has no biases."""
    bias = optimizer != "Muon"
    return {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6, "bias": bias},
            {"name": "act", "type": "Tanh"},
            {"name": "head", "type": "Linear", "out_features": 3, "bias": bias},
        ]
    }


def changes_for(optimizer, decay, phases):
    return {
        "model": net_for(optimizer),
        "optimizer": settings_of(optimizer, decay),
        "freeze": {"phases": phases},
        "train": {"steps": sum(phase["until"]["steps"] for phase in phases), "batch_size": 8},
    }


def rows_moved(before, after):
    pairs = zip(before["body.weight"], after["body.weight"], strict=True)
    return [row for row, (one, other) in enumerate(pairs) if not torch.equal(one, other)]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(("optimizer", "decay"), DECAYS, ids=str)
def test_what_is_frozen_keeps_every_bit_in_every_step_and_what_is_trained_moves(
    small_run, weights_by_step, moved_in, optimizer, decay, scenario
):
    phases, step = SCENARIOS[scenario], 0
    history = weights_by_step(small_run(**changes_for(optimizer, decay, phases)))
    for phase in phases:
        steps = history[step : step + phase["until"]["steps"] + 1]
        trained = {n for n in steps[0] if phase["name"] in HELD_ROWS or n in TRAINED[phase["name"]]}
        assert moved_in(steps[0], steps[-1]) == trained
        assert all(moved_in(*pair) <= trained for pair in pairwise(steps))
        rows = set(range(6)) - HELD_ROWS.get(phase["name"], set())
        if "body.weight" in trained:
            assert set(rows_moved(steps[0], steps[-1])) == rows
            assert all(set(rows_moved(*pair)) <= rows for pair in pairwise(steps))
        step += len(steps) - 1
    assert step == len(history) - 1


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_goes_on_after_a_stop_as_if_there_had_been_none(small_run, optimizer):
    changes = changes_for(optimizer, None, [TOP, ALL, AGAIN])
    changes["train"] |= {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}
    unbroken = small_run(**changes)
    unbroken.fit()
    expected = {n: t.clone() for n, t in unbroken.model.state_dict().items()}
    for path in unbroken.saver.checkpoints.all()[4:]:
        shutil.rmtree(path)
    resumed = small_run(**changes)
    assert resumed.progress.step == 4
    resumed.fit()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_state_exists_for_trained_rows_alone(small_run, optimizer):
    trainer = small_run(**changes_for(optimizer, None, [LOW]))
    trainer.fit()
    state = state_by_name(trainer.optimizer)
    assert "body.weight" not in state
    assert "body.weight[0:2]" not in state
    for entry, value in state["body.weight[2:6]"].items():
        shaped = isinstance(value, torch.Tensor) and value.ndim == 2
        assert not shaped or value.shape[0] in (4, 1), entry


@pytest.mark.parametrize(("optimizer", "reason"), [("LBFGS", "without a gradient"),
                         ("SparseAdam", "sparse gradients")])  # fmt: skip
def test_an_optimizer_that_freezing_is_not_safe_from_is_refused_with_the_reason(
    small_config, optimizer, reason
):
    with pytest.raises(ValueError, match=reason):
        small_config(optimizer={"type": optimizer, "lr": 0.1})
