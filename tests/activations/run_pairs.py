"""Small runs of odd networks on digits, and what two of them must have in common."""

import torch

from finetune.config.run import Provenance, RunConfig
from finetune.train.wire import build_trainer

DIGITS = {
    "source": {"type": "import", "path": "cached_nets:some_digits", "args": {}},
    "split": {"validation": 0.1, "test": 0.1, "stratify": True},
    "inputs": ["image"],
    "target": "label",
}
MODULES = ("cached_nets", "sly_nets", "fussy_nets")


def odd_config(
    net,
    *,
    freeze,
    cache,
    args=None,
    epochs=3,
    data=DIGITS,
    module="cached_nets",
    losses=None,
    **train,
):
    layer = {"name": "net", "type": "import", "path": f"{module}:{net}",
             "args": {"classes": "classes"} | (args or {})}  # fmt: skip
    config = RunConfig.model_validate(
        {
            "model": {"layers": [layer]},
            "data": data,
            "task": {"type": "classification", "losses": losses},
            "freeze": freeze,
            "optimizer": {"type": "AdamW", "lr": 1e-2},
            # last weights: going back to better ones of an earlier phase leaves its store
            "train": {"epochs": epochs, "batch_size": 32, "checkpoint": {"best": None}} | train,
            "cache": cache,
        }
    )
    return config.with_provenance(Provenance(trust=frozenset(MODULES)), {})


def trained(config, folder):
    said = []
    trainer = build_trainer(config, folder)
    tell = trainer.reporter.tracker.message
    trainer.reporter.tracker.message = lambda text: (said.append(text), tell(text))
    trainer.fit()
    return trainer, said


def pair(folder, *args, **settings):
    """Train with a store and without; return both runs and what the first one said."""
    stored, said = trained(odd_config(*args, cache="auto", **settings), folder / "stored")
    whole, _ = trained(odd_config(*args, cache="off", **settings), folder / "whole")
    return stored, whole, said


def assert_equal_weights(one, other):
    for name, tensor in other.model.state_dict().items():
        assert torch.equal(one.model.state_dict()[name], tensor), name
    assert one.progress.metrics == other.progress.metrics


def assert_same_run(stored, whole):
    """Check that a run that was answered from stores is bit for bit one that was not."""
    assert stored.cache.statistics.answered > 0
    assert whole.cache.statistics.answered == 0
    assert_equal_weights(stored, whole)
