"""What tests of freezing ask of a run: the weights after every step, and which of them moved."""

import pytest
import torch


@pytest.fixture
def weights_by_step():
    """Train a run to its end; return parameters and buffers before each step and after the last."""

    def record(trainer):
        seen = []

        def remember(module, inputs):
            if module.training:
                seen.append({n: t.clone() for n, t in module.state_dict().items()})

        handle = trainer.model.register_forward_pre_hook(remember)
        trainer.fit()
        handle.remove()
        return [*seen, {n: t.clone() for n, t in trainer.model.state_dict().items()}]

    return record


@pytest.fixture
def moved_in():
    """Return the names of what a step has changed, from the weights before and after it."""

    def compare(before, after):
        return {name for name in before if not torch.equal(before[name], after[name])}

    return compare
