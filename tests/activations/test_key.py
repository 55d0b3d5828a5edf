"""Another bit in anything that stored values depend on is another store."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from finetune.activations.find.boundary import probe
from finetune.activations.key import facts_of, take_snapshot
from finetune.config.run import RunConfig
from finetune.store.directory import cache_root, entries, key_of
from finetune.train.wire import build_trainer


class Power(nn.Module):
    """A module whose one setting is neither a parameter nor told by its `repr`."""

    def __init__(self):
        super().__init__()
        self.power, self.table, self.act = 2, torch.ones(3), torch.tanh

    def forward(self, x):
        return self.act(x**self.power) * self.table[0]


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), Power())
    model = nn.Sequential(body, nn.Linear(8, 2)).train()
    body.requires_grad_(False)
    body.eval()
    return model


def key(model, **more):
    batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    shared = [(0, 1), (1, 0), (2, 3), (3, 2)]
    boundary, _ = probe(model, {"input": batch}, {"input": batch[[1, 0, 3, 2]]}, shared)
    assert boundary.modules == ("0",)
    return key_of(facts_of(model, boundary, {"precision": "float32"} | more))


def flip(tensor):
    """Change the last bit of the first number."""
    with torch.no_grad():
        tensor.reshape(-1)[:1].view(torch.int32).bitwise_xor_(1)


CHANGES = {
    "a weight": lambda model: flip(model[0][0].weight),
    "a bias": lambda model: flip(model[0][0].bias),
    "a running mean": lambda model: flip(model[0][1].running_mean),
    "a running variance": lambda model: flip(model[0][1].running_var),
    "a count of batches": lambda model: model[0][1].num_batches_tracked.add_(1),
    "a probability": lambda model: setattr(model[0][2], "p", 0.2),
    "a mode": lambda model: model[0][2].train(),
    "a plain number": lambda model: setattr(model[0][3], "power", 3),
    "a loose tensor": lambda model: flip(model[0][3].table),
    "a function": lambda model: setattr(model[0][3], "act", torch.sin),
    "another activation": lambda model: model[0].append(nn.Tanh()),
    "a dtype": lambda model: model.double(),
}


def facts_key(model, boundary):
    return key_of(facts_of(model, boundary, {}))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_one_bit_of_difference_in_the_prefix_is_another_key(change):
    model = network()
    batch = torch.randn(4, 6)
    boundary, _ = probe(model, {"input": batch}, {"input": batch.flip(0)}, [(0, 3), (3, 0)])
    before = facts_key(model, boundary)
    assert facts_key(copy.deepcopy(model), boundary) == before
    change(model)
    assert facts_key(model, boundary) != before


FACTOR = {"value": torch.ones(6)}


class Joined(nn.Module):
    """What two frozen layers are given depends on more than the layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.shift = nn.Parameter(torch.zeros(6))
        self.behind = nn.Parameter(torch.zeros(6))
        self.register_buffer("scale", torch.ones(6))
        self.scale_again = self.scale[:6]
        self.loose, self.power, self.order, self.takes = torch.ones(6), 2, slice(0, 6), "one"
        self.factor, self.in_evaluation, self.part, self.most = np.float32(1), 1.0, "real", 1e6
        self.gap, self.cap = 1, 7.0
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def forward(self, input):
        one = self.one(input)
        between = {"one": one, "input": input}[self.takes] ** self.power
        between = torch.mul(between + self.shift, other=self.scale) * self.loose
        between = between * FACTOR["value"] * float(self.factor)
        between = between * (1.0 if self.training else self.in_evaluation)
        between = between.clamp(max=self.most)
        between[between > 1e6] = self.cap
        between = getattr(torch.complex(between, between + self.gap), self.part)
        return self.head(self.two(between[:, self.order]) + self.behind)


BETWEEN = {
    "a parameter": lambda model: flip(model.shift),
    "a buffer": lambda model: flip(model.scale),
    "a loose tensor": lambda model: flip(model.loose),
    "a number": lambda model: setattr(model, "power", 3),
    "the order": lambda model: setattr(model, "order", [1, 0, 2, 3, 4, 5]),
    "what is put in place of some": lambda model: setattr(model, "cap", 5.0),
    "the wiring": lambda model: setattr(model, "takes", "input"),
    "a number of numpy": lambda model: setattr(model, "factor", np.float32(2)),
    "a global tensor": lambda model: FACTOR.update(value=torch.full((6,), 2.0)),
    "evaluation alone": lambda model: setattr(model, "in_evaluation", 2.0),
    "a limit that none of a few samples reaches": lambda model: setattr(model, "most", 1e5),
    "a part of a tensor": lambda model: setattr(model, "part", "imag"),
}


def key_at(model):
    batch = {"input": torch.arange(24.0).view(4, 6) / 24}
    boundary, _ = probe(model, batch, {"input": batch["input"].flip(0)}, [(0, 3), (3, 0)])
    assert boundary.modules == ("one", "two")
    seen = [take_snapshot(model, boundary, batch, is_training=mode) for mode in (True, False)]
    return key_of(facts_of(model, boundary, {}) | {"snapshot": seen})


@pytest.mark.parametrize("change", BETWEEN.values(), ids=BETWEEN.keys())
def test_what_is_done_between_frozen_calls_is_part_of_the_key(change, monkeypatch):
    """So is a position embedding that a network adds outside of any module."""
    monkeypatch.setitem(FACTOR, "value", torch.ones(6))
    model, before = Joined(), key_at(Joined())
    change(model)
    assert key_at(model) != before


def test_the_key_of_the_same_network_is_the_same():
    model, before = Joined(), key_at(Joined())
    flip(model.behind)
    assert key_at(model) == before


def test_a_snapshot_leaves_the_network_as_it_was():
    model = Joined().train()
    model.one.eval()
    random = torch.random.get_rng_state()
    key_at(model)
    assert [model.training, model.one.training, model.two.training] == [True, False, True]
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_tensor_between_frozen_calls_counts_with_the_bits_that_it_has_now():
    model, batch = Joined(), torch.arange(24.0).view(4, 6) / 24
    boundary, _ = probe(model, {"input": batch}, {"input": batch.flip(0)}, [(0, 3), (3, 0)])
    keys = [facts_key(model, boundary)]
    for tensor in (model.shift, model.scale, model.loose):
        flip(tensor)
        keys.append(facts_key(model, boundary))
    assert len(set(keys)) == 4


def test_what_lies_behind_the_border_is_no_part_of_the_key():
    model = network()
    before = key(model)
    flip(model[1].weight)
    assert key(model) == before


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"device": "cuda:0"}], ids=str)
def test_number_format_and_device_are_part_of_the_key(settings):
    assert key(network(), **settings) != key(network())


def test_the_number_of_threads_is_part_of_the_key():
    before, threads = key(network()), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert key(network()) != before
    finally:
        torch.set_num_threads(threads)


BASE = {
    "model": {
        "layers": [
            {"name": "conv", "type": "Conv2d", "out_channels": 4, "kernel_size": 3},
            {"name": "flat", "type": "Flatten"},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {
        "source": {"type": "arrays", "path": "images.npz"},
        "split": {"validation": 0.1},
        "transforms": [{"type": "Normalize", "mean": [0.5], "std": [0.5]}],
    },
    "task": {"type": "classification"},
    "freeze": ["conv"],
    "optimizer": {"type": "SGD", "lr": 0.1},
    "train": {"epochs": 8, "batch_size": 16},
}


def with_other_mean(config, folder):
    config["data"]["transforms"][0]["mean"] = [0.5000001]


def with_other_pixel(config, folder):
    with np.load(folder / "images.npz") as arrays:
        images, labels = arrays["image"], arrays["label"]
    images[17].reshape(-1)[:1].view(np.int32)[0] ^= 1
    np.savez(folder / "images.npz", image=images, label=labels)


def with_bfloat16(config, folder):
    config["train"]["precision"] = "bfloat16"


def with_other_batches(config, folder):
    config["train"]["batch_size"] = 8


def with_other_seed(config, folder):
    # other samples go to each split, and the frozen layer is drawn anew
    config["seed"] = 1


def with_other_rate(config, folder):
    config["optimizer"]["lr"] = 0.2


@pytest.fixture
def keys_of(tmp_path, always, monkeypatch):
    """Train on a copy of the base config, changed; return the keys of the stores it used."""
    draw = np.random.default_rng(0)
    images = draw.random((120, 1, 8, 8), np.float32)
    np.savez(tmp_path / "images.npz", image=images, label=draw.integers(0, 3, 120))

    def keys(name, change=None):
        config = copy.deepcopy(BASE)
        config["data"]["source"]["path"] = str(tmp_path / "images.npz")
        if change is not None:
            change(config, tmp_path)
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / name))
        build_trainer(RunConfig.model_validate(config), tmp_path / f"{name}-run").fit()
        return {entry.key for entry in entries(cache_root())}

    return keys


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [with_other_mean, with_other_pixel, with_bfloat16, with_other_batches, with_other_seed],
    ids=lambda change: change.__name__.replace("_", " "),
)
def test_another_bit_in_data_transforms_or_number_format_is_another_store(keys_of, change):
    before, after = keys_of("before"), keys_of("after", change)
    assert len(before) == len(after) == 2
    # the pixel lies in one of the splits alone
    shared = before & after
    assert len(shared) == (1 if change is with_other_pixel else 0), shared


@pytest.mark.slow
def test_what_only_concerns_training_uses_the_same_stores(keys_of):
    assert keys_of("before") == keys_of("after", with_other_rate)
