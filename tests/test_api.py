"""The Python API, as the README shows it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import finetune
from finetune import errors

CONFIG = Path(__file__).parents[1] / "configs" / "digits_freeze.yaml"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_importing_finetune_loads_neither_torch_nor_pydantic():
    program = "import finetune, sys; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["False", "False"]


def test_every_public_name_can_be_had_and_no_other():
    for name in finetune.__all__:
        assert getattr(finetune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'finetune_everything'"):
        _ = finetune.finetune_everything


def test_every_public_name_is_listed_and_says_what_it_is():
    assert dir(finetune) == finetune.__all__
    for name in finetune.__all__:
        assert len(inspect.getdoc(getattr(finetune, name)) or "") > 20, name


def test_every_error_that_a_user_may_catch_is_public():
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind)
        and issubclass(kind, Exception)
        and kind.__module__ == "finetune.errors"
    }
    assert len(kinds) > 8
    for name, kind in kinds.items():
        assert name in dir(finetune)
        assert getattr(finetune, name) is kind


def test_type_checkers_see_the_names_that_there_are():
    """They read the imports that never run."""
    tree = ast.parse(Path(finetune.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {
        alias.asname: getattr(sys.modules[node.module], alias.name)
        for node in imports
        for alias in node.names
        if alias.asname and getattr(finetune, alias.asname)
    }
    assert seen == {name: getattr(finetune, name) for name in finetune.__all__}


@pytest.mark.slow
def test_a_config_is_trained_and_used_from_python(tmp_path):
    overrides = ["train.steps=3", "train.epochs=null"]
    config = finetune.load_config(CONFIG, overrides=overrides, trust=["my_pkg"])
    assert config.train.steps == 3
    assert config.trust == {"my_pkg"}
    trainer = finetune.build_trainer(config, run_dir=tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
    assert isinstance(trainer.model, nn.Module)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.progress.step == 0
    assert {"conv1.weight", "norm1.bias"} <= trainer.plan.phases[0].frozen
    assert "conv1.weight" not in trainer.plan.ever_trained
    trainer.fit()
    assert trainer.progress.step == 3
    predictor = finetune.load_predictor(tmp_path / "digits")
    assert not predictor.model.training
    images = torch.rand(2, 1, 8, 8)
    outputs = predictor(images)
    figures = finetune.evaluate(tmp_path / "digits", "validation")
    measured = trainer.progress.metrics
    assert figures.keys() >= {"loss", "accuracy"}
    for name, figure in figures.items():
        assert figure == pytest.approx(measured[f"validation/{name}"])
    assert [prediction.label in config_classes() for prediction in outputs] == [True, True]
    with torch.no_grad():
        raw = predictor.model(image=images)
    assert [prediction.values for prediction in outputs] == [
        pytest.approx(row) for row in raw.tolist()
    ]


def config_classes():
    return [str(digit) for digit in range(10)]


def test_the_verbs_of_freezing_work_on_any_module(model):
    inventory = finetune.take_inventory(model)
    assert finetune.select(["0", {"kind": "norm"}], inventory) == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    assert finetune.select([{"all": True}, "!3"], inventory) == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    finetune.freeze(model, ["0", {"kind": "norm"}])
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {"3.weight", "3.bias"}
    model.train()
    assert not model[1].training, "a wholly frozen norm stays in evaluation mode"
    assert "trained 10 of 38 parameters" in finetune.freeze_map(model)
    finetune.thaw(model, ["0"])
    assert "trained 30 of 38 parameters" in finetune.freeze_map(model)


def test_fingerprints_prove_what_a_hand_written_loop_left_alone(model):
    finetune.freeze(model, ["0", "1"])
    before = finetune.fingerprints(model)
    assert before.keys() == {
        "0.weight", "0.bias", "1.weight", "1.bias",
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip
    trained = finetune.fingerprints(model, ["3.weight"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    finetune.verify(model, before)
    with pytest.raises(finetune.FrozenWeightError, match=r"3\.weight"):
        finetune.verify(model, before | trained)


def test_mistakes_are_errors_of_one_kind(model, tmp_path):
    with pytest.raises(finetune.FinetuneError, match="no such file"):
        finetune.load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(finetune.FinetuneError, match="'nowhere' takes no parameter"):
        finetune.freeze(model, ["nowhere"])
    with pytest.raises(finetune.FinetuneError, match="no run here"):
        finetune.load_predictor(tmp_path)
