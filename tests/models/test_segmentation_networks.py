"""torchvision's networks for segmentation as layers: logits of each pixel."""

import pytest
import torch
from torchvision import models

from finetune.config.model import ModelConfig
from finetune.errors import ModelError
from finetune.models.declared import TensorSpec
from finetune.models.preprocessing import read_preprocessing

PHOTO = {"image": TensorSpec((3, 48, 64), "float32")}


def layer(architecture, **more):
    given = {"name": "net", "type": "torchvision", "architecture": architecture}
    return {**given, "pretrained": False, "output": "logits", **more}


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "lraspp_mobilenet_v3_large",
        "deeplabv3_mobilenet_v3_large",
        pytest.param("fcn_resnet50", marks=pytest.mark.slow),
        pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow),
    ],
)
def test_each_pixel_gets_a_logit_for_each_class(build, architecture):
    network = build(layer(architecture), inputs=PHOTO, classes=5)
    images = torch.rand(2, 3, 48, 64)
    network.eval()(images).sum().backward()
    assert network(images).shape == (2, 5, 48, 64)
    assert not [name for name, _ in network.named_parameters() if "aux" in name]
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_logits_are_those_of_torchvision(build):
    network = build(layer("lraspp_mobilenet_v3_large"), inputs=PHOTO, classes=5).eval()
    theirs = models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5
    ).eval()
    theirs.load_state_dict(network.net.state_dict())
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images)["out"])


def test_their_images_are_read_off_the_tables():
    config = ModelConfig.model_validate({"layers": [layer("lraspp_mobilenet_v3_large")]})
    image = read_preprocessing(config).image
    assert (image.height, image.width, image.mean) == (520, 520, (0.485, 0.456, 0.406))


def test_they_have_logits_alone(build):
    with pytest.raises(ModelError, match="is for segmentation and has logits alone") as caught:
        build(layer("lraspp_mobilenet_v3_large", output="features"), inputs=PHOTO)
    assert (caught.value.key[-1], caught.value.hint) == ("output", "output: logits")


def test_they_stand_outside_of_sequential(build):
    inside = {"type": "sequential", "layers": [layer("lraspp_mobilenet_v3_large")]}
    with pytest.raises(ModelError, match="no segmentation network inside sequential"):
        build(inside, inputs=PHOTO)


def test_an_auxiliary_loss_that_nobody_takes_is_one_clear_error():
    asked = layer("fcn_resnet50", args={"aux_loss": True})
    with pytest.raises(ValueError, match="the auxiliary head is left out"):
        ModelConfig.model_validate({"layers": [asked]})
