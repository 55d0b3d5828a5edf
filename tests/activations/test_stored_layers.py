"""Declared layers of every kind: stored and run whole they end with the very same bits."""

import numpy as np
import pytest
from transformers import GPT2Config

from finetune.train.wire import build_trainer

HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}
SIAMESE = [
    {"name": "first", "type": "sequential", "inputs": ["left"],
     "layers": [{"type": "Linear", "out_features": 16}, {"type": "Tanh"}]},
    {"name": "second", "type": "shared", "layer": "first", "inputs": ["right"]},
    {"name": "both", "type": "concat", "inputs": ["first", "second"]},
]  # fmt: skip
MAPS = [
    {"name": "net", "type": "timm", "architecture": "test_resnet", "pretrained": False,
     "output": "maps", "out_indices": [1, 3]},
    {"name": "low", "type": "AdaptiveAvgPool2d", "output_size": 1, "inputs": ["net.0"]},
    {"name": "high", "type": "AdaptiveAvgPool2d", "output_size": 1, "inputs": ["net.1"]},
    {"name": "both", "type": "concat", "inputs": ["low", "high"]},
    {"name": "flat", "type": "Flatten"},
]  # fmt: skip
PIXELS = [
    {"name": "net", "type": "torchvision", "architecture": "lraspp_mobilenet_v3_large",
     "pretrained": False, "output": "logits"},
    {"name": "pool", "type": "AdaptiveAvgPool2d", "output_size": 1},
    {"name": "flat", "type": "Flatten"},
]  # fmt: skip
DECODER = {"name": "net", "type": "transformers", "path": "gpt2", "pretrained": False}


@pytest.fixture
def arrays(tmp_path):
    """Write an archive of numbers, images and tokens; return its source."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 7, 48)
    mask = (np.arange(6) < lengths[:, None]).astype(np.int64)
    np.savez(
        tmp_path / "data.npz",
        left=draw.normal(size=(48, 16)).astype(np.float32),
        right=draw.normal(size=(48, 16)).astype(np.float32),
        image=draw.normal(size=(48, 3, 32, 32)).astype(np.float32),
        input_ids=draw.integers(3, 20, (48, 6)) * mask,
        attention_mask=mask,
        label=np.arange(48) % 3,
    )
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    GPT2Config(**sizes).save_pretrained(tmp_path / "gpt2")
    return {"type": "arrays", "path": str(tmp_path / "data.npz")}


@pytest.fixture
def config(small_config, arrays, tmp_path):
    """Return a function that makes the config of a run on some columns of that archive."""

    def make(layers, inputs, freeze, cache):
        layers = [
            {**layer, "path": str(tmp_path / layer["path"])} if "path" in layer else layer
            for layer in layers
        ]
        return small_config(
            model={"layers": layers},
            data={"source": arrays, "inputs": inputs, "target": "label"},
            task={"type": "classification"},
            freeze=freeze,
            train={"epochs": 3, "batch_size": 8, "checkpoint": {"best": None}},
            cache=cache,
        )

    return make


TOKENS = ["input_ids", "attention_mask"]


@pytest.mark.slow
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("layers", "inputs", "freeze"),
    [
        ([*SIAMESE, HEAD], ["left", "right"], ["first"]),
        ([*MAPS, HEAD], ["image"], ["net"]),
        pytest.param([*PIXELS, HEAD], ["image"], ["net.backbone"], marks=pytest.mark.slow),
        ([DECODER | {"output": "last"}, HEAD], TOKENS, ["net"]),
        ([DECODER | {"output": "logits"}], TOKENS, ["net.transformer"]),
    ],
    ids=["shared", "feature maps", "segmentation", "last token", "head of a decoder"],
)
def test_a_frozen_part_is_stored_and_changes_no_bit(runs, config, tmp_path, layers, inputs, freeze):
    stored, said = runs.trained(config(layers, inputs, freeze, "auto"), tmp_path / "stored")
    whole, _ = runs.trained(config(layers, inputs, freeze, "off"), tmp_path / "whole")
    assert stored.cache.statistics.answered > 0, said
    runs.assert_same_run(stored, whole)


def test_a_checkpoint_holds_a_shared_layer_once(config, tmp_path):
    trainer = build_trainer(
        config([*SIAMESE, HEAD], ["left", "right"], None, "off"), tmp_path / "r"
    )
    trainer.fit()
    names = [name for name, _ in trainer.model.named_parameters()]
    assert names == ["first.0.weight", "first.0.bias", "head.weight", "head.bias"]
    assert sorted(trainer.model.state_dict()) == sorted(names)
