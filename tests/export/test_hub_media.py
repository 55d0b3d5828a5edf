"""Folders for transformers of images and recordings: processors, refusals, pipelines."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import ByT5Tokenizer

from finetune.config.transform_keys import VisionTransform
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.vision import vision_step
from finetune.errors import FinetuneError
from finetune.export.exporting import export_run
from finetune.export.hub_images import processor_settings
from finetune.export.hub_texts import only_tokenize

_spec = importlib.util.spec_from_file_location(
    "export_tools", Path(__file__).with_name("export_tools.py")
)
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

RGB = {"type": "RGB"}
SCALE = {"type": "ToDtype", "dtype": "float32", "scale": True}
NORMALIZE = {"type": "Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
RESIZE = {"type": "Resize", "size": [24, 20]}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def steps(*nodes):
    return [
        vision_step(VisionTransform.model_validate(node), "image", None, ("data", "transforms", n))
        for n, node in enumerate(nodes)
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        (RGB, RESIZE, SCALE, NORMALIZE),
        (RESIZE, RGB, SCALE),
        ({"type": "Resize", "size": 24}, RGB, SCALE, NORMALIZE),
        ({**RESIZE, "interpolation": "bicubic"}, RGB, SCALE, NORMALIZE),
        ({**RESIZE, "interpolation": "nearest-exact"}, RGB, SCALE, NORMALIZE),
        (RGB, RESIZE, {"type": "CenterCrop", "size": [16, 15]}, SCALE, NORMALIZE),
        (RGB, SCALE),
    ],
    ids=["usual", "scaled", "shortest edge", "bicubic", "nearest", "crop", "no size"],
)
@pytest.mark.parametrize("name", ["ViTImageProcessor", "SegformerImageProcessor"])
def test_the_image_processor_gives_what_the_transforms_give(nodes, name, tmp_path):
    import transformers

    if name == "SegformerImageProcessor" and any(one["type"] == "CenterCrop" for one in nodes):
        pytest.skip("this one cannot crop")
    own = steps(*nodes)
    made = getattr(transformers, name)(**processor_settings(own, crops=True))
    made.save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    for height, width, mode in [(24, 20, "RGB"), (37, 51, "RGB"), (90, 31, "L"), (16, 300, "RGB")]:
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        image = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8), mode)
        sample = {"image": image}
        for step in own:
            sample = step(sample)
        found = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
        # The processor folds the division by 255 into the mean, which rounds otherwise.
        torch.testing.assert_close(found, sample["image"].as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (({"type": "Grayscale", "num_output_channels": 3}, SCALE), "the transform Grayscale"),
        (({"type": "Pad", "padding": 2}, SCALE), "the transform Pad"),
        ((SCALE, RESIZE), "ToDtype, Resize in this order"),
        ((RESIZE, RESIZE, SCALE), "Resize, Resize, ToDtype in this order"),
        (({**RESIZE, "antialias": False},), "antialias: false"),
        (({**RESIZE, "interpolation": "nearest"},), "interpolation nearest"),
        (({"type": "Resize", "size": 24, "max_size": 30},), "max_size"),
        (({"type": "ToDtype", "dtype": "float32", "scale": False},), "scale: true"),
        (({"type": "Resize", "size": 24}, {"type": "CenterCrop", "size": 20}), "without a Resize"),
        ((RESIZE, {"type": "CenterCrop", "size": [21, 20]}), "CenterCrop to 21 x 20 of 24 x 20"),
    ],
)
def test_transforms_that_no_image_processor_has_are_refused(nodes, reason):
    with pytest.raises(FinetuneError, match=reason):
        processor_settings(steps(*nodes), crops=True)
    if "CenterCrop" not in reason:
        return
    with pytest.raises(FinetuneError, match="the transform CenterCrop"):
        processor_settings(steps(*nodes), crops=False)


def write_images(folder):
    """Write images of two classes in several sizes and modes."""
    draw = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 120)):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            size = (18 + number, 30 - number)
            shape = (*size, 3) if number % 2 else size
            pixels = draw.integers(low, low + 130, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_sounds(folder):
    """Write recordings of two classes, some shorter and some longer than a tenth of a second."""
    for name, pitch in (("low", 200), ("high", 800)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            time = np.arange(1200 + 100 * number) / 16000
            tone = 0.3 * np.sin(2 * np.pi * (pitch + 10 * number) * time)
            soundfile.write(folder / name / f"{number}.wav", tone.astype(np.float32), 16000)


def write_masks(folder):
    """Write images of one size with a bright half, the masks of these, and a table of both."""
    folder.mkdir()
    lines = ["image,mask"]
    for number in range(12):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 4 + 2 * number] = 1
        pixels = np.repeat(mask[..., None] * 150 + 20, 3, axis=2)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}_mask.png")
        lines.append(f"{number}.png,{number}_mask.png")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")


def layer(folder, kind, config):
    """Save a network with random weights; return a layer that has it with a head."""
    import transformers

    made = getattr(transformers, f"{kind}Config")(**config)
    getattr(transformers, f"{kind}Model")(made).save_pretrained(folder)
    return {"name": "net", "type": "transformers", "path": str(folder), "output": "logits"}


def of_images(folder, transforms=(RGB, {"type": "Resize", "size": [16, 16]}, SCALE, NORMALIZE)):
    """Return changes of a config: a tiny ViT that classifies images."""
    write_images(folder / "images")
    return {
        "model": {
            "layers": [layer(folder / "vit", "ViT", {**SMALL, "image_size": 16, "patch_size": 8})]
        },
        "data": {
            "source": {"type": "imagefolder", "path": str(folder / "images")},
            "transforms": list(transforms),
        },
        "task": {"type": "classification"},
        "freeze": ["net.vit.embeddings"],
    }


def of_sounds(folder, eps=1e-7):
    """Return changes of a config: a tiny wav2vec 2.0 that classifies scaled recordings."""
    write_sounds(folder / "sounds")
    sizes = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    scale = {"name": "scale", "type": "LayerNorm", "normalized_shape": [1600], "eps": eps}
    return {
        "model": {
            "layers": [
                scale | {"elementwise_affine": False},
                layer(folder / "wav2vec2", "Wav2Vec2", {**SMALL, **sizes}),
            ]
        },
        "data": {
            "source": {
                "type": "audiofolder",
                "path": str(folder / "sounds"),
                "sample_rate": 16000,
                "seconds": 0.1,
            }
        },
        "task": {"type": "classification"},
        "freeze": ["net.*feature_extractor.*"],
    }


def of_masks(folder):
    """Return changes of a config: a tiny SegFormer."""
    write_masks(folder / "masks")
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1]}
    sizes |= {"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 8}
    return {
        "model": {"layers": [layer(folder / "segformer", "Segformer", sizes)]},
        "data": {
            "source": {"type": "csv", "path": str(folder / "masks" / "data.csv")},
            "inputs": ["image"],
            "target": "mask",
            "transforms": [SCALE, NORMALIZE],
        },
        "task": {"type": "segmentation", "classes": ["dark", "bright"]},
        "freeze": ["net.segformer.*patch_embed*"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "auto"),
    [
        (of_images, "AutoModelForImageClassification"),
        (of_sounds, "AutoModelForAudioClassification"),
        (of_masks, "AutoModelForSemanticSegmentation"),
    ],
    ids=["images", "sounds", "masks"],
)
def test_what_is_written_agrees_with_the_predictor(small_run, tmp_path, changes, auto):
    small_run(**changes(tmp_path)).fit(quiet=True)
    done = export_run(tmp_path / "run", "hf", tmp_path / "out")
    assert done.checked.samples > 10
    assert "preprocessor_config.json" in done.files
    assert auto in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            lambda folder: of_images(folder, [RGB, SCALE, {**RESIZE, "size": [16, 16]}]),
            "by ToDtype, Resize in this order",
        ),
        (lambda folder: of_sounds(folder, eps=1e-5), r"layer 'scale' \(LayerNorm\) is beside"),
    ],
    ids=["order of steps", "another scaling"],
)
def test_what_no_processor_does_is_refused(small_run, tmp_path, changes, reason):
    small_run(**changes(tmp_path)).fit(quiet=True)
    with pytest.raises(FinetuneError, match=reason):
        export_run(tmp_path / "run", "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_file_that_pipeline_opens_otherwise_fails_the_export(small_run, tmp_path):
    """A run lays a transparent image on a colour; pipeline() drops what is transparent."""
    small_run(**of_images(tmp_path)).fit(quiet=True)
    for path in (tmp_path / "images").rglob("*.png"):
        with Image.open(path) as image:
            clear = image.convert("RGBA")
        clear.putalpha(90)
        clear.save(path)
    with pytest.raises(FinetuneError, match="disagrees with the predictor") as caught:
        export_run(tmp_path / "run", "hf", tmp_path / "out")
    assert "drops transparency" in caught.value.hint


@pytest.mark.slow
def test_pipelines_say_what_the_predictor_says_without_this_package(small_run, tmp_path):
    entries = []
    for name, changes in (("images", of_images), ("sounds", of_sounds), ("masks", of_masks)):
        (tmp_path / name).mkdir()
        small_run(name + "/run", **changes(tmp_path / name)).fit(quiet=True)
        export_run(tmp_path / name / "run", "hf", tmp_path / name / "out")
        entries.append((tmp_path / name / "out", f"hf {name}", said(tmp_path / name, name)))
    assert tools.fresh_process(entries) == [pytest.approx(0, abs=1e-5)] * 3


def said(folder, name):
    """Write what the predictor of a run says of each file: probabilities, or masks."""
    from finetune.predict import load_predictor

    ends = {"images": "images/*/*.png", "sounds": "sounds/*/*.wav", "masks": "masks/?.png"}
    paths = sorted(map(str, folder.glob(ends[name])))
    records = load_predictor(folder / "run")(paths)
    if name == "masks":
        content = [one.mask.tolist() for one in records]
    else:
        content = [one.probabilities for one in records]
    (folder / "said.json").write_text(json.dumps({"files": paths, "said": content}))
    return folder / "said.json"


def test_two_tokenizers_are_none_that_a_folder_holds():
    def step(column, place, length=8):
        tokenizer = ByT5Tokenizer(name_or_path=place)
        return Tokenize((column,), length, False, tokenizer, (), prefix=f"{column}.")

    one = step("first", "a")
    assert only_tokenize([one, step("second", "a")]) is one
    for other in (step("second", "b"), step("second", "a", length=9)):
        with pytest.raises(FinetuneError, match="no single way to make tokens"):
            only_tokenize([one, other])
