"""Every recipe is one file without code, as its public set-up has it, and runs two steps."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from finetune import build_trainer, load_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
KINDS = ["recipes_of_images", "recipes_of_texts", "recipes_of_tables"]
"""Modules in `recipes/`, which make the data."""
SLOW = {
    "fastbook_05_pets",
    "fastbook_06_multilabel",
    "fastbook_06_points",
    "keras_transfer",
    "lp_ft_living17",
    "pytorch_detection",
    "surgical_imagenet_c",
}
"""Those that take more than 5 seconds."""
MAY_CHANGE = re.compile(
    r"data\.(source|train|validation|test)\.(path|folder)"
    r"|model\.weights\.path|model\.layers\.\d+\.(path|pretrained|weights\.path|args)"
    r"|train\.(steps|epochs)|freeze\.(phases\.\d+\.until|probe)\.epochs"
    r"|data\.transforms\.0\.size"
)
"""All that a test may say differently: where data and weights are, how long the
run is, and how large its images."""


TABLE = ROOT / "docs" / "recipes.md"
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in RECIPES
]


@pytest.fixture(scope="module")
def makers():
    """Return what makes the data of each recipe, by the recipe's name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "recipes")
        modules = [importlib.import_module(name) for name in KINDS]
    return {name: maker for module in modules for name, maker in module.MAKERS.items()}


def test_every_recipe_is_run(makers):
    assert {path.stem for path in RECIPES} == set(makers)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_plain_data_that_names_its_source(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "type: import" not in path.read_text()
    # As it ships, before any override.
    assert load_config(path).train.batch_size


@pytest.mark.slow
@pytest.mark.parametrize("path", CASES)
def test_it_runs_two_steps_when_told_only_where_data_and_weights_are(path, makers, tmp_path):
    said = makers[path.stem](tmp_path / "data")
    assert [key for key in said if not MAY_CHANGE.fullmatch(key)] == []
    config = load_config(path, overrides=[f"{key}={value}" for key, value in said.items()])
    trainer = build_trainer(config, tmp_path / "run")
    trainer.fit()
    assert trainer.progress.step == trainer.timeline.total_steps >= 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["proof_intact"]) == ("done", True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]
    assert losses
    assert all(map(math.isfinite, losses))


def lines_of(path):
    """Count the lines of a config and of what it extends, without blank ones and comments."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    said = [line for line in lines if line and not line.startswith("#")]
    bases = [line.removeprefix("extends: ") for line in said if line.startswith("extends: ")]
    return len(said) + sum(lines_of(path.parent / base) for base in bases)


def test_the_table_of_recipes_lists_each_with_its_number_of_lines():
    rows = re.findall(
        r"^\| \[(\w+)\]" + r"[^|]*\|" * 3 + r" (\d+) \|", TABLE.read_text(), re.MULTILINE
    )
    assert {name: int(lines) for name, lines in rows} == {
        path.stem: lines_of(path) for path in RECIPES
    }
