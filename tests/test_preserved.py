"""What a block does to a network and to random state is undone, as far as it was asked for."""

import random

import pytest
import torch
from torch import nn

from finetune.preserved import preserved


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.seen, self.notes = 0, {"counts": [1, 2]}


def disturb(model):
    model.norm.running_mean.add_(1)
    model.norm.eval()
    vars(model.norm)["train"] = "held"
    model.seen, model.late = 1, 2
    model.notes["counts"].append(3)
    model.register_buffer("added", torch.ones(1))
    with torch.no_grad():
        model.norm.weight.add_(1)
    torch.rand(1)
    random.random()


STANDS = {
    "buffers": lambda model: model.norm.running_mean.tolist(),
    "modes": lambda model: (model.norm.training, vars(model.norm).get("train")),
    "attributes": lambda model: (model.seen, str(model.notes), [*vars(model), *model._buffers]),
    "random": lambda model: (torch.get_rng_state().tolist(), random.getstate()),
    "weights": lambda model: model.norm.weight.tolist(),
}
ASKED = {
    "buffers": {"buffers": True},
    "modes": {"modes": True},
    "attributes": {"attributes": True},
    "random": {"random": 0},
}


@pytest.mark.parametrize("part", [*ASKED, "weights"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
def test_what_was_asked_for_is_restored_and_nothing_else_is_lost(part, fails):
    model = Kept()
    before = {name: stand(model) for name, stand in STANDS.items()}
    asked = ASKED.get(part) or {"weights": list(model.parameters())}
    try:
        with preserved(model, **asked):
            disturb(model)
            if fails:
                raise KeyError(part)
    except KeyError:
        pass
    restored = {name for name, stand in STANDS.items() if stand(model) == before[name]}
    # `training` is an attribute too
    assert restored == ({"attributes", "modes"} if part == "attributes" else {part})


def test_a_seed_decides_what_is_drawn_in_the_block():
    drawn = []
    for _ in range(2):
        with preserved(Kept(), random=7):
            drawn.append((torch.rand(2).tolist(), random.random()))
    assert drawn[0] == drawn[1]
