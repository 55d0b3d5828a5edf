"""What validation and test parts hold is looked at before training, as that of training is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ALL = "[{name: head, type: Linear, out_features: classes}]"
TABLE = f"[{{type: Embedding, num_embeddings: 10, embedding_dim: 4}}, {ALL[1:]}"
CONFIG = """
model: {layers: LAYERS}
data:
  train: {type: jsonl, path: train.jsonl}
  validation: {type: jsonl, path: validation.jsonl}
  inputs: [v]
  target: label
task: {type: classification}
optimizer: {type: AdamW, lr: 0.01}
train: {epochs: 1, batch_size: 8}
cache: off
"""


def rows(count, value):
    return [{"v": value(n), "label": "ab"[n % 2]} for n in range(count)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config with samples for training and validation; return its file."""
    monkeypatch.chdir(tmp_path)

    def write(train, validation, layers=ALL):
        for name, samples in (("train", train), ("validation", validation)):
            lines = [json.dumps(row) for row in samples]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        (tmp_path / "c.yaml").write_text(CONFIG.replace("LAYERS", layers))
        return Path("c.yaml")

    return write


def vector(width, scale=1.0):
    return lambda n: [scale * (0.5 + (n * 7 + k) % 5) for k in range(width)]


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_part_of_another_width_is_refused_with_column_and_row(command_line, config, verb):
    made = config(rows(20, vector(8)), rows(6, vector(6)))
    shown = command_line(verb, made)
    assert shown.code == 2
    assert (
        "data.validation: column 'v' has 6 numbers a sample in the validation part, row 1 of "
        "validation.jsonl, and 8 numbers a sample in training" in shown.err
    )


def test_whole_numbers_of_a_part_are_what_training_has(call, config, tmp_path):
    whole = config(rows(20, vector(4)), rows(6, lambda n: [n % 3, 1, 0, 2]))
    call("train", whole, "--run", "whole")
    fractions = config(rows(20, vector(4)), rows(6, lambda n: [n % 3 + 0.0, 1.0, 0.0, 2.0]))
    call("train", fractions, "--run", "fractions")
    files = [tmp_path / run / "metrics.jsonl" for run in ("whole", "fractions")]
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    whole, other = [
        [line["validation/loss"] for line in each if "validation/loss" in line] for each in lines
    ]
    assert whole
    assert whole == other
    call("eval", "whole", "--split", "validation", "--data-changed")


@pytest.mark.parametrize("at_fault", ["train", "validation"])
def test_plan_finds_the_one_number_beyond_a_table(command_line, config, at_fault):
    def far(n):
        return 25 if n == 11 else n % 10

    def near(n):
        return n % 10

    parts = (far, near) if at_fault == "train" else (near, far)
    made = config(*(rows(20, values) for values in parts), layers=TABLE)
    shown = command_line("plan", made)
    assert shown.code == 2
    assert f"value 25 of column 'v', row 12 of {at_fault}.jsonl, is beyond its table" in shown.err


def test_a_part_in_another_unit_is_told_by_plan_and_train(call, config):
    made = config(rows(20, vector(3)), rows(10, vector(3, scale=200.0)))
    told = " of 'v' and 2 more of the validation part: mean 500 and standard deviation 282.8, where"
    assert told in " ".join(call("plan", made).out.split())
    assert told in call("train", made).err
    alike = config(rows(20, vector(3)), rows(10, vector(3, scale=1.5)))
    assert "of the validation part: mean" not in call("plan", alike).out


def test_a_flag_that_training_hardly_has_is_in_no_other_unit(call, config):
    made = config(rows(400, lambda n: [n % 5 + 0.5, float(n == 7)]), rows(10, lambda n: [2.5, 1.0]))
    assert "of the validation part: mean" not in call("plan", made).out


def test_new_samples_of_another_width_name_column_and_row(call, command_line, config):
    call("train", config(rows(20, vector(4)), rows(6, vector(4))), "--run", "run")
    config(rows(20, vector(4)), rows(3, vector(5)))
    shown = command_line("predict", "run", "validation.jsonl")
    assert shown.code == 2
    assert (
        "column 'v' has 5 numbers a sample in row 1 of validation.jsonl, and 4 numbers a sample "
        "in training" in shown.err
    )


def test_whole_numbers_before_a_layer_that_computes_name_the_remedy(command_line, config):
    made = config(*[rows(6, lambda n: [n, 2, 3])] * 2)
    shown = command_line("plan", made)
    assert shown.code == 2
    assert "data.transforms: [{type: stack}]" in shown.err
    text = made.read_text().replace("target: label", "target: label\n  transforms: [{type: stack}]")
    made.write_text(text)
    assert not command_line("plan", made).code


SEGMENTS = """
model: {layers: [{type: Conv2d, out_channels: classes, kernel_size: 1}]}
data:
  source: SOURCE
  inputs: [image]
  target: mask
  split: {by: part}
task: {type: segmentation, classes: [ground, road, tree], metrics: [pixel_accuracy]}
optimizer: {type: AdamW, lr: 0.01}
train: {epochs: 1, batch_size: 4}
"""


def masks():
    """Eight masks of ground and a little road; only the last one, of validation, has a tree."""
    found = np.zeros((8, 8, 8), dtype=np.uint8)
    found[:, 0, 0] = 1
    found[7, 4, 4] = 2
    return found


def segments(tmp_path, form):
    """Write a config of masks in files or arrays, six to train and two to validate."""
    images = np.zeros((8, 8, 8, 3), dtype=np.uint8)
    parts = ["train"] * 6 + ["validation"] * 2
    if form == "arrays":
        np.savez(
            tmp_path / "d.npz",
            image=images.transpose(0, 3, 1, 2), mask=masks(), part=np.array(parts),
        )  # fmt: skip
        source = f"{{type: arrays, path: {tmp_path / 'd.npz'}}}"
    else:
        lines = ["image,mask,part"]
        for n, (image, mask) in enumerate(zip(images, masks(), strict=True)):
            Image.fromarray(image).save(tmp_path / f"{n}.png")
            Image.fromarray(mask).save(tmp_path / f"{n}_mask.png")
            lines.append(f"{n}.png,{n}_mask.png,{parts[n]}")
        (tmp_path / "d.csv").write_text("\n".join(lines))
        source = f"{{type: csv, path: {tmp_path / 'd.csv'}}}"
    config = tmp_path / "c.yaml"
    config.write_text(SEGMENTS.replace("SOURCE", source))
    return config


@pytest.mark.parametrize("form", ["files", "arrays"])
def test_classes_that_the_masks_of_a_part_lack_are_told(call, tmp_path, form):
    shown = " ".join(call("plan", segments(tmp_path, form)).out.split())
    assert "the train part has no pixel of class 'tree', which validation has once" in shown
    assert (
        "98.4% of the training pixels are of class 'ground': guessing that gives an accuracy of "
        "0.984; task.metrics: [pixel_accuracy, mean_iou] shows more" in shown
    )


def test_of_other_metrics_and_classes_that_all_parts_have_nothing_is_told(call, tmp_path):
    config = segments(tmp_path, "files")
    text = config.read_text().replace("pixel_accuracy", "mean_iou")
    config.write_text(text.replace("[ground, road, tree]", "[ground, road]"))
    Image.fromarray(masks()[0]).save(tmp_path / "7_mask.png")
    shown = " ".join(call("plan", config).out.split())
    assert "guessing" not in shown
    assert "has no pixel" not in shown
