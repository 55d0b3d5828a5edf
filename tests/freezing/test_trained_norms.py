"""`modules.trained_norm: eval`: norms that train keep their running statistics, and are proven."""

import pytest
import torch
from torch import nn

from finetune.cli.plans import preview
from finetune.config.freeze import ModulesConfig
from finetune.freezing.apply import take_on

HELD = ModulesConfig(trained_norm="eval")
NET = {
    "layers": [
        {"name": "body", "type": "Linear", "out_features": 6},
        {"name": "norm", "type": "BatchNorm1d"},
        {"name": "drop", "type": "Dropout", "p": 0.5},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}
DATA = {"source": {"type": "random", "samples": 40, "features": 4, "targets": 3}}
LONE = {"source": DATA["source"] | {"samples": 41}}


def freeze(trained_norm, *frozen):
    modules = {"trained_norm": trained_norm}
    return {"modules": modules, "phases": [{"name": "a", "freeze": list(frozen)}]}


def test_norms_that_train_are_held_and_other_modules_are_not():
    bare = nn.BatchNorm1d(4, affine=False)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), bare, nn.LayerNorm(4))
    take_on(model, frozenset(), HELD)
    assert [module.training for module in model] == [True, False, True, False, False]
    model.eval()
    model.train()
    assert [module.training for module in model] == [True, False, True, False, False]
    assert all(parameter.requires_grad for parameter in model.parameters())
    take_on(model, frozenset(), ModulesConfig())
    assert all(module.training for module in model)


@pytest.mark.parametrize("partly", [False, True], ids=["all", "its bias frozen"])
def test_statistics_stay_while_weights_train_and_the_proof_covers_them(small_run, partly):
    section = freeze("eval", *(["norm.bias"] if partly else []))
    trainer = small_run(model=NET, freeze=section, data=DATA)
    norm = trainer.model.norm
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    trainer.fit(quiet=True)
    after = norm.state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["weight"], before["weight"])
    (proof,) = trainer.progress.proofs
    assert {"norm.running_mean", "norm.running_var"} <= proof["digests"].keys()


def test_norms_that_train_move_their_statistics_unless_asked(small_run):
    trainer = small_run(model=NET, freeze=freeze("train"), data=DATA)
    trainer.fit(quiet=True)
    assert trainer.model.norm.num_batches_tracked == 6


def test_a_phase_may_say_otherwise_than_the_others(small_run):
    phases = [
        {"name": "a", "freeze": [], "until": {"steps": 2}},
        {"name": "b", "freeze": [], "modules": {"trained_norm": "eval"}},
    ]
    trainer = small_run(model=NET, freeze={"phases": phases}, data=DATA)
    trainer.fit(quiet=True)
    assert trainer.model.norm.num_batches_tracked == 2


def test_a_frozen_norm_follows_its_own_key(small_run):
    section = freeze("eval", "norm") | {"modules": {"trained_norm": "eval", "norm": "train"}}
    trainer = small_run(model=NET, freeze=section, data=DATA)
    trainer.fit(quiet=True)
    assert trainer.model.norm.num_batches_tracked == 6


def test_a_batch_of_one_sample_is_no_trouble_for_a_held_norm(small_config):
    """41 samples in windows of 8 leave one alone."""
    told = {
        kind: [lint.message for lint in preview(small_config(
            model=NET, freeze=freeze(kind), data=LONE)).lints]
        for kind in ("train", "eval")
    }  # fmt: skip
    assert any("leaves a batch of one sample" in line for line in told["train"])
    assert not any("leaves a batch of one sample" in line for line in told["eval"])


def test_a_thaw_of_held_norms_changes_no_features_and_is_not_told(small_config):
    phases = [
        {"name": "a", "freeze": ["body", "norm"], "until": {"steps": 2}},
        {"name": "b", "freeze": []},
    ]
    told = {
        kind: [
            lint.message
            for lint in preview(
                small_config(
                    model=NET,
                    freeze={"phases": phases, "modules": {"trained_norm": kind}},
                    data=DATA,
                )
            ).lints
        ]
        for kind in ("train", "eval")
    }
    assert any("thaws batch norms" in line for line in told["train"])
    assert not any("thaws batch norms" in line for line in told["eval"])


def test_plan_shows_which_norms_are_held(small_config, tmp_path, command_line):
    from finetune.config.dumping import dump_config

    path = tmp_path / "run.yaml"
    path.write_text(dump_config(small_config(model=NET, freeze=freeze("eval"), data=DATA)))
    assert "norm eval" in command_line("plan", path).out
