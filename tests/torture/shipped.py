"""A shipped config of each type of task, made small, with the data that scripts make for it."""

import importlib
import runpy
import sys
from pathlib import Path

from finetune.config.dumping import dump_config
from finetune.config.loader import load_config

ROOT = Path(__file__).parents[2]
EVERY_STEP = [
    "train.epochs=null", "train.log_every=1", "train.evaluate_every={steps: 8}",
    "train.checkpoint={every: {steps: 1}, best: null}", "tracking={to: [], report: false}",
]  # fmt: skip
STEPS, QUICK_STEPS = "train.steps=24", "train.steps=150"
"""Enough that a run is killed three times before its end."""


def written(task, folder):
    """Write the config of a task into a folder, with its data; return its path."""
    name, make = OF_TASK[task]
    config = load_config(ROOT / "configs" / name, overrides=[*EVERY_STEP, *make(folder)])
    path = folder / "shipped.yaml"
    path.write_text(dump_config(config))
    return path


def _made_by(script, function, target, *args, **keys):
    runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))[function](target, *args, **keys)
    return f"data.source.path={target}"


def _of_recipe(module, recipe, folder):
    """Return what a recipe is told in its test, but for how long it is."""
    sys.path.insert(0, str(ROOT / "tests" / "recipes"))
    try:
        said = importlib.import_module(module).MAKERS[recipe](folder / "data")
    finally:
        sys.path.pop(0)
    return [f"{key}={value}" for key, value in said.items() if not key.startswith("train.")]


def classes(folder):
    return [QUICK_STEPS, "train.limit=0.1"]


def one_logit(folder):
    return [
        QUICK_STEPS,
        "train.batch_size=4",
        *_of_recipe("recipes_of_tables", "ludwig_titanic", folder),
    ]


def labels(folder):
    told = _of_recipe("recipes_of_images", "fastbook_06_multilabel", folder)
    told = [one for one in told if not one.startswith("freeze.")]
    # 21 steps, of which the first phase has 12.
    small = ["model.layers.0.architecture=test_resnet.r160_in1k", "data.transforms.0.size=[64, 64]"]
    return [*told, *small, "train.epochs=7", "train.batch_size=2"]


def numbers(folder):
    return [QUICK_STEPS, _made_by("make_examples", "make_throws", folder / "throws.csv")]


def tags(folder):
    made = _made_by("make_examples", "make_notes", folder / "notes.jsonl")
    return [STEPS, made, "train.batch_size=4", "train.limit=0.1", "data.transforms.0.max_length=16"]


def pixels(folder):
    made = _made_by("make_clutter", "make_clutter", folder / "clutter.npz", count=40)
    return [STEPS, made, "train.batch_size=4"]


def pairs(folder):
    made = _made_by("make_likeness", "make_likeness", folder / "likeness.csv", count=60)
    return [STEPS, made, "train.batch_size=4", "data.transforms.0.max_length=12"]


def answers(folder):
    made = _made_by("make_dossiers", "make_dossiers", folder / "dossiers.jsonl", count=20)
    return [STEPS, made, "train.batch_size=2", "train.limit=0.2"]


def boxes(folder):
    made = _made_by("make_shapes", "make_shapes", folder / "shapes", count=16)
    # What is trained is small, so that a checkpoint of every step is.
    freeze = 'freeze=["detector.backbone", "detector.roi_heads.box_head"]'
    source = [f"{made}/boxes.json", f"data.source.folder={folder / 'shapes' / 'images'}"]
    return [STEPS, *source, freeze, "train.batch_size=2"]


def tasks(folder):
    return [QUICK_STEPS]


OF_TASK = {
    "classification": ("digits_freeze.yaml", classes),
    "one logit": ("recipes/ludwig_titanic.yaml", one_logit),
    "multilabel": ("recipes/fastbook_06_multilabel.yaml", labels),
    "regression": ("throws.yaml", numbers),
    "token_classification": ("notes.yaml", tags),
    "segmentation": ("clutter_masks.yaml", pixels),
    "similarity": ("likeness.yaml", pairs),
    "span": ("dossiers.yaml", answers),
    "detection": ("shapes.yaml", boxes),
    "list": ("penguins_tasks.yaml", tasks),
}
