"""Training with a stored prefix ends with the very bits of training without one."""

from contextlib import nullcontext

import pytest
import torch

from finetune.activations.cache import ActivationCache
from finetune.activations.estimate import Use
from finetune.activations.forward import UncachedForward
from finetune.config.activation_cache import CacheConfig
from finetune.config.run import RunConfig
from finetune.train.wire import build_trainer

CONV = [
    {"name": "conv1", "type": "Conv2d", "out_channels": 16, "kernel_size": 3, "padding": 1},
    {"name": "norm1", "type": "BatchNorm2d"},
    {"name": "relu1", "type": "ReLU"},
    {"name": "conv2", "type": "Conv2d", "out_channels": 16, "kernel_size": 3, "padding": 1},
    {"name": "relu2", "type": "ReLU"},
    {"name": "flat", "type": "Flatten"},
    {"name": "drop", "type": "Dropout", "p": 0.3},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]
SKIP = [
    *CONV[:5],
    {"name": "joined", "type": "concat", "inputs": ["relu1", "relu2"]},
    *CONV[5:],
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def run(folder, *, cache, layers=CONV, phases, epochs=4, **train):
    config = RunConfig.model_validate(
        {
            "model": {"layers": layers},
            "data": {
                "source": {"type": "sklearn", "name": "digits"},
                "split": {"validation": 0.1, "test": 0.7, "stratify": True},
            },
            "task": {"type": "classification"},
            "freeze": {"phases": phases},
            "optimizer": {"type": "AdamW", "lr": 1e-2},
            "train": {"epochs": epochs, "batch_size": 32, **train},
            "cache": cache,
        }
    )
    trainer = build_trainer(config, folder)
    trainer.fit()
    return trainer


def assert_equal_weights(one, other):
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


PHASES = {
    "frozen front": [{"name": "a", "freeze": ["conv1", "norm1"]}],
    "all but the head": [{"name": "a", "train": ["head"]}],
    "gradual thaw": [
        {"name": "a", "train": ["head"], "until": {"epochs": 2}},
        {"name": "b", "train": ["head", "conv2"], "until": {"epochs": 1}},
        {"name": "c", "freeze": ["norm1"]},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("layers", [CONV, SKIP], ids=["straight", "skip across the boundary"])
@pytest.mark.parametrize("phases", PHASES.values(), ids=PHASES.keys())
def test_a_stored_prefix_changes_no_bit(tmp_path, always, layers, phases):
    stored = run(tmp_path / "stored", cache="auto", layers=layers, phases=phases)
    whole = run(tmp_path / "whole", cache="off", layers=layers, phases=phases)
    assert_equal_weights(stored, whole)
    assert stored.progress.metrics == whole.progress.metrics
    assert stored.cache.statistics.answered > 0
    assert whole.cache.statistics.answered == 0


def test_the_prefix_runs_once_per_sample_in_training(tmp_path, always):
    trainer = run(tmp_path / "run", cache="auto", phases=PHASES["all but the head"])
    seen_again = len(trainer.splits.train) + len(trainer.splits.validation)
    assert trainer.cache.statistics.recorded == seen_again + len(trainer.splits.test)
    assert trainer.cache.statistics.answered == 3 * seen_again


@pytest.mark.slow
def test_a_second_run_starts_warm_and_one_with_other_frozen_weights_does_not(tmp_path, always):
    phases = PHASES["all but the head"]
    first = run(tmp_path / "1", cache="auto", phases=phases)
    again = run(tmp_path / "2", cache="auto", phases=phases, precision="float32")
    assert again.cache.statistics.recorded == 0
    assert_equal_weights(first, again)
    other = [{"name": "norm0", "type": "BatchNorm2d"}, *CONV]
    assert run(tmp_path / "3", cache="auto", phases=phases, layers=other).cache.statistics.recorded


@pytest.mark.slow
def test_micro_batches_change_nothing(tmp_path, always):
    phases = PHASES["frozen front"]
    stored = run(tmp_path / "stored", cache="auto", phases=phases, micro_batch=16)
    whole = run(tmp_path / "whole", cache="off", phases=phases, micro_batch=16)
    assert_equal_weights(stored, whole)
    assert stored.cache.statistics.answered > 0


def test_a_store_that_would_not_pay_is_not_made_and_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.activations.estimate._WORTH_TRYING", 0)
    said = []
    trainer = run(tmp_path / "run", cache="off", phases=PHASES["frozen front"])
    use = Use(
        splits={"train": trainer.splits.train},
        batch_sizes={"train": 32},
        autocast=nullcontext,
        facts={},
        tell=said.append,
        store_dtype=None,
    )
    cache = ActivationCache(CacheConfig(use="auto"), trainer.model, use)
    cache.open(epochs=1)
    assert isinstance(cache.now, UncachedForward)
    assert "not stored" in said[0]
    assert "relu1" in said[0]


def test_the_network_is_left_as_it_was(tmp_path, always):
    trainer = run(tmp_path / "run", cache="auto", phases=PHASES["all but the head"])
    assert not any("forward" in vars(module) for module in trainer.model.modules())
