"""Looking for the prefix holds as little as it can, and no longer than it must."""

import gc
import time
import weakref

import pytest
import torch
from torch import nn

from finetune.activations.find.boundary import probe
from finetune.freezing.apply import apply_mask


class Parts(nn.Module):
    """Returns one tensor for up to two samples, else two."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)

    def forward(self, input):
        output = self.inner(input)
        return (output, output * 2) if len(input) > 2 else (output,)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.head = Parts(), nn.Linear(8, 2)

    def forward(self, input):
        return self.head(sum(self.parts(input)))


def test_a_call_may_return_more_tensors_for_more_samples():
    model = Summed()
    apply_mask(model, frozenset({"parts.inner.weight", "parts.inner.bias"}))
    batch = torch.randn(4, 4)
    boundary, _ = probe(model, {"input": batch}, {"input": batch.flip(0)}, [(0, 3), (3, 0)])
    assert len(boundary.specs) == 2


class Waiting(nn.Module):
    """Does nothing for a while, as on a machine that is busy with other work."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)

    def forward(self, input):
        time.sleep(0.3)
        return self.inner(input).tanh()


def test_time_that_other_programs_take_is_not_counted_as_saved():
    """It was multiplied by all samples to come, and hours were promised that no run takes."""
    model = nn.ModuleDict({"body": Waiting(), "head": nn.Linear(8, 2)})
    model.forward = lambda input: model["head"](model["body"](input))
    apply_mask(model, frozenset({"body.inner.weight", "body.inner.bias"}))
    batch = torch.randn(4, 4)
    boundary, pace = probe(model, {"input": batch}, {"input": batch.flip(0)}, [(0, 3), (3, 0)])
    assert boundary.stored
    assert 0 < pace.prefix <= pace.whole < 0.1 / 4


class Notes:
    """How many tensors that a module ever returned were still there, at each call."""

    def __init__(self):
        self.returned, self.alive = [], []


class Noted(nn.Module):
    def __init__(self, notes):
        super().__init__()
        self.inner, self.notes = nn.Linear(4, 8), notes

    def forward(self, input):
        self.notes.alive.append(sum(ref() is not None for ref in self.notes.returned))
        output = self.inner(input).tanh()
        self.notes.returned.append(weakref.ref(output))
        return output


@pytest.fixture
def no_garbage_collection():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
def test_at_most_two_passes_are_in_memory_and_none_afterwards():
    notes = Notes()
    model = nn.Sequential(Noted(notes), nn.Linear(8, 2))
    apply_mask(model, frozenset({"0.inner.weight", "0.inner.bias"}))
    batch = torch.randn(4, 4)
    boundary, _ = probe(model, {"input": batch}, {"input": batch.flip(0)}, [(0, 3), (3, 0)])
    assert boundary.modules == ("0",)
    assert len(notes.alive) == 4
    assert max(notes.alive) == 1  # and the one under way
    assert not any(ref() is not None for ref in notes.returned)
