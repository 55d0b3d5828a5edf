"""`weights: null` of a torchvision layer, which means random weights in torchvision itself."""

import pytest
import yaml

from finetune.config.dumping import dump_config
from finetune.config.loader import load_config
from finetune.errors import ConfigError

LAYER = {"name": "net", "type": "torchvision", "architecture": "resnet18", "output": "logits"}


def config_of(path, layer):
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"layers": [layer]},
                "data": {"source": {"type": "imagefolder", "path": "images"}},
                "task": {"type": "classification"},
                "optimizer": {"type": "SGD", "lr": 0.1},
                "train": {"steps": 1, "batch_size": 2},
            }
        )
    )
    return path


@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "in a sequence"])
def test_null_without_pretrained_is_refused_with_both_remedies(tmp_path, is_nested):
    layer = LAYER | {"weights": None}
    layer = {"type": "sequential", "name": "all", "layers": [layer]} if is_nested else layer
    with pytest.raises(ConfigError) as caught:
        load_config(config_of(tmp_path / "c.yaml", layer))
    assert "weights: null does not tell whether the weights are random" in str(caught.value)
    assert "pretrained: false for random ones" in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [{}, {"weights": None, "pretrained": False}, {"weights": None, "pretrained": True}],
    ids=["neither", "random", "pretrained"],
)
def test_a_layer_that_says_which_is_taken_and_its_saved_form_too(tmp_path, more):
    config = load_config(config_of(tmp_path / "c.yaml", LAYER | more))
    (layer,) = config.model.layers
    assert (layer.weights, layer.pretrained) == (None, more.get("pretrained", True))
    (tmp_path / "saved.yaml").write_text(dump_config(config, tmp_path))
    assert load_config(tmp_path / "saved.yaml").model == config.model


def test_null_of_other_layers_still_means_no_file_of_their_own(tmp_path):
    layer = LAYER | {"type": "timm", "weights": None}
    (found,) = load_config(config_of(tmp_path / "c.yaml", layer)).model.layers
    assert found.pretrained
