"""Pixels of Pillow become tensors, channel by channel, with every value in its place."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.config.transform_keys import VisionTransform
from finetune.data.media.decoding import image_tensor
from finetune.data.steps.vision import vision_step


def random_image(mode, size):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), mode)


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (300, 301), (0, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_a_tensor_holds_each_channel_of_an_image_in_turn(mode, size):
    image = random_image(mode, size)
    channels = np.asarray(image).reshape(size[1], size[0], len(mode))
    found = image_tensor(image)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), channels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_tensor_may_be_changed_and_its_image_stays(mode):
    image = random_image(mode, (6, 4))
    before = image.copy()
    image_tensor(image).zero_()
    assert image == before


def test_an_image_of_a_file_that_is_not_decoded_yet_is_read(tmp_path):
    random_image("RGB", (40, 30)).save(tmp_path / "photograph.jpg", quality=90)
    with Image.open(tmp_path / "photograph.jpg") as lazy:
        found = image_tensor(lazy)
    with Image.open(tmp_path / "photograph.jpg") as again:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(again))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [[20, 31], [64, 40], 17, [90, 200]])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_decoded_image_is_resized_to_the_bytes_that_its_tensor_is(
    mode, size, interpolation, antialias
):
    arguments = {"size": size, "interpolation": interpolation, "antialias": antialias}
    step = vision_step(VisionTransform(type="Resize", **arguments), "image", None, ())
    image = random_image(mode, (40, 64))
    found = step({"image": image})["image"]
    expected = step({"image": image_tensor(image)})["image"]
    assert torch.equal(found, expected)
    assert (type(found), found.stride()) == (type(expected), expected.stride())
