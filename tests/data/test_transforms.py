"""Transforms: run once where deterministic, fitted to the model where none are named."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torchvision.transforms import v2

from finetune.config.transform_keys import VisionTransform
from finetune.data import joined_samples
from finetune.data.steps import vision
from finetune.data.steps.vision import transform_all, vision_step
from finetune.errors import DataError
from finetune.models.preprocessing import ImagePreprocessing

DIGITS = {"source": {"type": "sklearn", "name": "digits"}}
COUNTING = """
calls = []
def make(column="features"):
    def count(sample):
        calls.append(1)
        return {column: sample["features"] * 2}
    return count
def noise():
    import random, numpy, torch
    def draw(sample):
        noise = random.random() + numpy.random.rand() + torch.rand(4)
        return {"features": sample["features"] + noise}
    return draw
"""


def test_text_is_padded_to_the_longest_of_its_batch(write_csv, prepared, minilm):
    texts = ["a", "a few more words", "", "a b"]
    rows = [["text", "label"], *[[text, "x"] for text in texts]]
    samples = prepared({"source": write_csv(rows)}, tokenizer=minilm).train
    assert set(samples.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert samples.specs["input_ids"].shape == (6,)
    together = samples.fetch([3, 1, 0, 2]).inputs
    assert together["attention_mask"].sum(dim=1).tolist() == [4, 6, 3, 2]
    for row, index in enumerate([3, 1, 0, 2]):
        alone = samples.fetch([index]).inputs
        width = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][row, :width], alone["input_ids"][0])
        assert not together["input_ids"][row, width:].any()  # [PAD] is 0
        assert not together["attention_mask"][row, width:].any()


def test_tokens_are_those_of_the_tokenizer_itself(write_csv, prepared, minilm):
    from transformers import AutoTokenizer

    texts = ["The quick brown fox", "jumps", "over the lazy dog " * 50]
    rows = [["text", "label"], *[[text, "x"] for text in texts]]
    transforms = [{"type": "tokenize", "max_length": 16}]
    data = prepared({"source": write_csv(rows), "transforms": transforms}, tokenizer=minilm)
    own = AutoTokenizer.from_pretrained(minilm)(
        texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    batch = data.train.fetch([0, 1, 2])
    assert all(torch.equal(batch.inputs[name], own[name]) for name in own)


def test_text_can_be_padded_to_one_length(write_csv, prepared, minilm):
    rows = [["text", "label"], ["a", "x"]]
    tokenize = {"type": "tokenize", "max_length": 9, "padding": "max_length", "tokenizer": minilm}
    data = prepared({"source": write_csv(rows), "transforms": [tokenize]})
    assert data.train.fetch([0]).inputs["input_ids"].shape == (1, 9)


def test_numeric_text_is_tokenized_where_the_config_says_so(write_csv, prepared, minilm):
    rows = [["id", "text", "label"], ["1", "42", "x"], ["2", "", "y"]]
    tokenize = {"type": "tokenize", "column": "text"}
    data = prepared({"source": write_csv(rows), "transforms": [tokenize]}, tokenizer=minilm)
    assert data.train.fetch([0]).inputs["input_ids"].shape == (1, 3)


def test_cells_are_stacked_to_float_vectors(write_csv, prepared):
    rows = [["a", "b", "y"], ["1", "2.5", "3"], ["4", "-1e1", "6"]]
    data = {"inputs": ["b", "a"], "target": "y", "transforms": [{"type": "stack"}]}
    batch = prepared(data | {"source": write_csv(rows)}, "regression").train.fetch([0, 1])
    assert torch.equal(batch.inputs["features"], torch.tensor([[2.5, 1.0], [-10.0, 4.0]]))
    assert batch.target.tolist() == [3, 6]


def test_whole_numbers_are_stacked_to_floats(write_csv, prepared):
    rows = [["a", "b", "label"], ["1", "2", "x"]]
    data = {"inputs": ["a", "b"], "transforms": [{"type": "stack", "name": "both"}]}
    both = prepared(data | {"source": write_csv(rows)}).train.fetch([0]).inputs["both"]
    assert both.dtype == torch.float32
    assert torch.equal(both, torch.tensor([[1.0, 2.0]]))


def test_an_empty_cell_among_numbers_is_told_by_its_own_column(write_csv, prepared):
    rows = [["a", "b", "label"], ["1", "2", "x"], ["3", "", "x"]]
    data = {"inputs": ["a", "b"], "transforms": [{"type": "stack"}]}
    with pytest.raises(DataError, match="column 'b' has no number in row 2 of"):
        prepared(data | {"source": write_csv(rows)})


def test_whole_numbers_stay_whole_and_bytes_of_images_become_shares(write_jsonl, prepared):
    source = write_jsonl([{"x": [1, 2], "z": 0.5, "label": "a"}])
    specs = prepared({"source": source, "inputs": ["x", "z"]}).specs
    assert {name: spec.dtype for name, spec in specs.items()} == {"x": "int64", "z": "float32"}


def test_images_are_brought_to_what_the_network_was_pretrained_with(write_images, prepared):
    image = ImagePreprocessing(12, 10, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    source = write_images({"a": [(20, 30), (9, 7)]}, mode="L")
    batch = prepared({"source": source}, image=image).train.fetch([0, 1])
    assert batch.inputs["image"].shape == (2, 3, 12, 10)
    assert batch.inputs["image"].dtype == torch.float32
    grey = batch.inputs["image"] * torch.tensor(image.std).view(3, 1, 1)
    grey += torch.tensor(image.mean).view(3, 1, 1)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_named_transforms_equal_those_of_torchvision(prepared, mnist):
    nodes = [
        {"type": "Resize", "size": [20, 20], "interpolation": "nearest"},
        {"type": "RGB"},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize"},
    ]
    image = ImagePreprocessing(1, 1, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    mine = prepared({"source": mnist, "transforms": nodes}, image=image).train.fetch([7, 4])
    raw = prepared({"source": mnist}).train.fetch([7, 4]).inputs["image"]
    theirs = v2.Compose(
        [
            v2.Resize([20, 20], interpolation=v2.InterpolationMode.NEAREST),
            v2.RGB(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(image.mean, image.std),
        ]
    )((raw * 255).round().to(torch.uint8))
    torch.testing.assert_close(mine.inputs["image"], theirs)


ALIKE = [
    {"type": "Resize", "size": [80, 80]},
    {"type": "Resize", "size": [9, 13], "interpolation": "bicubic"},
    {"type": "CenterCrop", "size": [20, 24]},
    {"type": "Pad", "padding": [1, 2, 3, 4], "fill": 7},
    {"type": "Grayscale", "num_output_channels": 3},
    {"type": "RGB"},
    {"type": "ToDtype", "dtype": "float32", "scale": True},
    {"type": "Normalize", "mean": [0.1], "std": [0.3]},
]


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("node", ALIKE, ids=lambda node: node["type"])
def test_images_transformed_many_at_once_are_those_transformed_alone(
    node, dtype, channels, monkeypatch
):
    monkeypatch.setattr(vision, "_AT_ONCE_BYTES", 50_000)  # several parts, the last one short
    kind, count = node["type"], 37
    if kind == "Normalize" and dtype == torch.uint8:
        pytest.skip("torchvision normalises floats alone")
    if kind == "Grayscale" and channels == 4:
        pytest.skip("torchvision makes images of 1 and 3 channels grey")
    shape = (count, 28, 33) if channels is None else (count, channels, 28, 33)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, generator=draw).to(dtype)
    config = TypeAdapter(VisionTransform).validate_python(node)
    step = vision_step(config, "image", None, ())
    assert step.takes_batches
    alone = torch.stack([step({"image": image.clone()})["image"] for image in images])
    at_once = transform_all(images, [step], lambda shape, dtype: torch.empty(shape, dtype=dtype))
    assert torch.equal(at_once, alone.as_subclass(torch.Tensor))


def test_normalize_on_bytes_names_the_step_that_makes_them_floats():
    node = {"type": "Normalize", "mean": [0.5], "std": [0.5]}
    step = vision_step(TypeAdapter(VisionTransform).validate_python(node), "image", None, ())
    with pytest.raises(DataError, match="Normalize fails on an image") as caught:
        step({"image": torch.zeros(3, 4, 4, dtype=torch.uint8)})
    node = {"type": "Normalize", "mean": [0.5, 0.5], "std": [0.5, 0.5]}
    two = vision_step(TypeAdapter(VisionTransform).validate_python(node), "image", None, ())
    assert caught.value.hint == "put {type: ToDtype, dtype: float32, scale: true} before it"
    with pytest.raises(DataError, match="Normalize fails on an image") as caught:
        two({"image": torch.zeros(3, 4, 4)})
    assert caught.value.hint is None


def test_deterministic_transforms_run_once_a_sample(write_module, prepared):
    import importlib

    write_module("counting", COUNTING)
    data = {
        "source": {"type": "random", "samples": 5, "features": 4, "targets": 1},
        "transforms": [{"type": "import", "path": "counting:make"}],
    }
    samples = prepared(data, "regression", trust=["counting"]).train
    for epoch in range(3):
        samples.fetch(range(5), epoch=epoch)
    assert len(importlib.import_module("counting").calls) == 5


def test_a_random_transform_that_changes_its_sample_in_place_leaves_the_data_alone(
    write_module, prepared
):
    write_module("inplace", "def make():\n    return lambda s: {'features': s['features'].add_(1)}")
    data = {
        "source": {"type": "random", "samples": 5, "features": 4, "targets": 1},
        "transforms": [{"type": "import", "path": "inplace:make", "random": True}],
    }
    samples = prepared(data, "regression", trust=["inplace"]).train
    first = samples.fetch(range(5)).inputs["features"]
    assert torch.equal(first, samples.fetch(range(5)).inputs["features"])


def test_evaluation_sees_no_random_transform(write_module, prepared):
    write_module("counting", COUNTING)
    data = {
        "source": {"type": "random", "samples": 8, "features": 4, "targets": 1},
        "split": {"test": 0.5},
        "transforms": [
            {"type": "import", "path": "counting:make"},
            {"type": "import", "path": "counting:noise", "random": True},
        ],
    }
    plain = prepared(data | {"transforms": []}, "regression").test.fetch([0, 1])
    parts = prepared(data, "regression", trust=["counting"])
    test = parts.test.fetch([0, 1])
    assert torch.equal(test.inputs["features"], plain.inputs["features"] * 2)
    assert parts.train.views is None
    assert parts.test.views == 1


def test_evaluation_transforms_stand_in_for_the_others(prepared):
    data = DIGITS | {
        "split": {"test": 0.1},
        "transforms": [{"type": "RandomCrop", "size": 6}],
        "evaluation_transforms": [{"type": "CenterCrop", "size": 6}],
    }
    parts = prepared(data)
    assert parts.train.specs == parts.test.specs
    assert parts.test.specs["image"].shape == (1, 6, 6)


def test_images_of_many_sizes_are_decoded_per_fetch_where_a_random_crop_makes_them_equal(
    write_images, prepared
):
    source = write_images({"a": [(20, 30), (25, 21)]})
    nodes = [{"type": "Grayscale"}, {"type": "RandomResizedCrop", "size": [8, 8]}]
    samples = prepared({"source": source, "transforms": nodes}).train
    assert samples.fetch([0, 1]).inputs["image"].shape == (2, 1, 8, 8)


def test_images_of_many_sizes_are_told_with_the_remedy(write_images, prepared):
    source = write_images({"a": [(20, 30), (25, 21)]})
    with pytest.raises(DataError, match=r"\(3, 20, 30\) and \(3, 25, 21\)") as caught:
        prepared({"source": source})
    assert "Resize" in caught.value.hint


def test_large_columns_go_to_a_file_that_leaves_nothing_behind(
    tmp_path, monkeypatch, prepared, mnist
):
    data = {"source": mnist, "transforms": [{"type": "Resize", "size": [8, 8]}]}
    in_memory = prepared(data).train.fetch([5, 3])
    monkeypatch.setattr(joined_samples, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = prepared(data).train
    if Path("/proc/self/maps").exists():
        assert f"{tmp_path}/finetune-" in Path("/proc/self/maps").read_text()
    in_file = samples.fetch([5, 3])
    assert torch.equal(in_memory.inputs["image"], in_file.inputs["image"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "nodes", "message"),
    [
        (None, [{"type": "Normalize"}], "needs mean and std: the model names none"),
        (None, [{"type": "Normalize", "mean": [0.5]}], "Normalize does not take these arguments"),
        (None, [{"type": "Resize", "size": 8, "column": "imag"}], "no input column 'imag' here"),
        (None, [{"type": "tokenize"}], "no transformers layer to take the tokenizer from"),
        (None, [{"type": "tokenize", "tokenizer": "./nowhere"}], "cannot load the tokenizer"),
        ("iris", [{"type": "Resize", "size": 8}], r"column 'features' holds no image, but \(4,\)"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_transform_that_does_not_fit_is_told(prepared, source, nodes, message):
    source = {"type": "sklearn", "name": source or "digits"}
    with pytest.raises(DataError, match=message) as caught:
        prepared({"source": source, "transforms": nodes})
    assert caught.value.key[:3] == ("data", "transforms", 0)


def test_text_without_a_tokenizer_is_told(write_csv, prepared):
    source = write_csv([["text", "label"], ["some words", "x"]])
    with pytest.raises(DataError, match="'text' holds 'some words' in row 1") as caught:
        prepared({"source": source})
    assert "tokenize" in caught.value.hint


def test_numbers_that_a_transform_makes_infinite_are_told(write_module, prepared):
    write_module("blow", "def make():\n    return lambda s: {'features': s['features'] / 0}")
    data = {
        "source": {"type": "random", "samples": 2, "features": 1, "targets": 1},
        "transforms": [{"type": "import", "path": "blow:make"}],
    }
    with pytest.raises(DataError, match=r"column 'features' holds -?inf in row 1 of random"):
        prepared(data, "regression", trust=["blow"])
