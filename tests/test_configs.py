"""Every config that ships is valid and runs: two steps, and what they leave can be used."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from finetune import build_trainer, load_config, load_predictor
from finetune.train.after.trained import evaluate_run

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TRUST = ["efficientnet_lite_pytorch"]
TWO_STEPS = ["train.steps=2", "train.epochs=null"]
SHORT_TEXTS = ["data.transforms.0.max_length=8"]
FEW_TO_TRAIN_ON = ["data.split.validation=0.05", "data.split.test=0.9"]
SMALLER = {
    "bbc_news": [*TWO_STEPS, *SHORT_TEXTS],
    "bbc_news_lisa": [*TWO_STEPS, *SHORT_TEXTS],
    "topics": [*TWO_STEPS, *SHORT_TEXTS],
    # phases last whole epochs, so these keep their epochs and get few steps in each
    "bbc_news_ulmfit": [*SHORT_TEXTS, *FEW_TO_TRAIN_ON],
    "mnist_efficientnet_lpft": FEW_TO_TRAIN_ON,
    "bbc_news_sweep": [*TWO_STEPS, *SHORT_TEXTS],
    "mentions": [*TWO_STEPS, *SHORT_TEXTS],
    "notes": [*TWO_STEPS, *SHORT_TEXTS],
    "likeness": [*TWO_STEPS, *SHORT_TEXTS],
    "dossiers": TWO_STEPS,
    "shapes": TWO_STEPS,
}
"""What makes a config quick, where two steps alone do not."""
EXAMPLES = {
    "tones": "tones",
    "throws": "throws.csv",
    "mentions": "notes.jsonl",
    "notes": "notes.jsonl",
    "clutter_masks": "clutter.npz",
    "likeness": "likeness.csv",
    "dossiers": "dossiers.jsonl",
    "shapes": "shapes/boxes.json",
}
"""What `make_examples.py` and the other scripts `make_*.py` make for a config."""


def cases():
    for path in CONFIGS:
        is_slow = path.stem in SMALLER
        yield pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if is_slow else [])


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a shipped config, made quick, with the data that a script makes for it."""
    made = tmp_path_factory.mktemp("examples")
    script = runpy.run_path(str(ROOT / "scripts" / "make_examples.py"))
    script["make_tones"](made / "tones")
    script["make_throws"](made / "throws.csv")
    script["make_notes"](made / "notes.jsonl")
    clutter = runpy.run_path(str(ROOT / "scripts" / "make_clutter.py"))
    clutter["make_clutter"](made / "clutter.npz", count=120)

    likeness = runpy.run_path(str(ROOT / "scripts" / "make_likeness.py"))
    likeness["make_likeness"](made / "likeness.csv", count=60)

    dossiers = runpy.run_path(str(ROOT / "scripts" / "make_dossiers.py"))
    dossiers["make_dossiers"](made / "dossiers.jsonl", count=20)

    shapes = runpy.run_path(str(ROOT / "scripts" / "make_shapes.py"))
    shapes["make_shapes"](made / "shapes", count=40)

    def load_(path, *more):
        overrides = [*SMALLER.get(path.stem, TWO_STEPS), *more]
        if path.stem in EXAMPLES:
            overrides.append(f"data.source.path={made / EXAMPLES[path.stem]}")
        if path.stem == "shapes":
            overrides.append(f"data.source.folder={made / 'shapes' / 'images'}")
        return load_config(path, overrides=overrides, trust=TRUST)

    return load_


@pytest.fixture(scope="module", params=cases())
def run(request, tmp_path_factory, load):
    """Two steps of a config: its file, the trainer, the run's folder."""
    path = request.param
    config = load(path)
    folder = tmp_path_factory.mktemp(path.stem) / "run"
    trainer = build_trainer(config, folder)
    trainer.fit()
    return path, trainer, folder


def test_configs_ship():
    assert {path.stem for path in CONFIGS} >= {
        "bbc_news", "digits", "digits_freeze", "linear", "mnist_efficientnet",
    }  # fmt: skip


@pytest.mark.slow
def test_it_trains_and_leaves_a_whole_run_folder(run):
    _, trainer, folder = run
    assert trainer.progress.step == trainer.timeline.total_steps
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["proof_intact"]) == ("done", True)
    assert json.loads((folder / "freeze_proof.json").read_text())["intact"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps[-1] == trainer.timeline.total_steps
    assert list((folder / "tensorboard").glob("events.*"))


def test_its_saved_config_loads_again_and_is_equal(run, load):
    path, _, folder = run
    asked = load(path)
    saved = load_config(folder / "config.yaml", trust=TRUST)
    assert saved.model_dump() == asked.model_dump()


def test_its_run_is_read_back_with_the_weights_it_ended_with(run):
    _, trainer, folder = run
    predictor = load_predictor(folder, trust=TRUST)
    expected = trainer.model.state_dict()
    for name, tensor in predictor.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_its_test_figures_are_those_that_evaluation_finds_again(run):
    _, trainer, folder = run
    if trainer.splits.test is None:
        pytest.skip("has no test samples")
    figures = evaluate_run(folder, "test", trust=TRUST)
    for name, value in figures.items():
        assert trainer.progress.metrics[f"test/{name}"] == pytest.approx(value, rel=1e-5)


def test_the_text_classifier_takes_plain_texts(run):
    path, _, folder = run
    if not path.stem.startswith("bbc_news"):
        pytest.skip("takes no text")
    predictor = load_predictor(folder)
    said = predictor(["The striker scored twice.", "Shares fell sharply."])
    assert [len(prediction.probabilities) for prediction in said] == [5, 5]
    again = predictor([{"text": "Shares fell sharply."}])
    assert again[0].values == pytest.approx(said[1].values, abs=1e-5)


NEW = {
    "penguins_by_date": {
        "Culmen Length (mm)": 39.1,
        "Culmen Depth (mm)": 18.7,
        "Flipper Length (mm)": 181,
        "Body Mass (g)": None,
    },
    "throws": {"speed": 5.0, "angle": 45.0},
    "wine_folds": {"features": [13.0, 2, 2.4, 19, 99, 2.3, 2, 0.36, 1.6, 5, 0.96, 2.6, 747]},
}


def test_it_predicts_new_samples(run, load):
    path, _, folder = run
    if path.stem not in {*NEW, "tones"}:
        pytest.skip("others predict in tests of their own")
    predictor = load_predictor(folder)
    new = NEW.get(path.stem) or next(Path(load(path).data.source.path).rglob("*.wav"))
    (said,) = predictor([new])
    if path.stem == "throws":
        assert len(said.values) == 3
    else:
        assert sum(said.probabilities.values()) == pytest.approx(1.0, abs=1e-5)


LEARNT = {
    "tones": ("accuracy", 0.9, 40),
    "throws": ("r2", 0.9, 30),
    "wine_folds": ("accuracy", 0.9, 30),
    "penguins_by_date": ("accuracy", 0.9, 20),
}


@pytest.mark.parametrize("name", LEARNT)
def test_it_learns_what_its_data_hold(name, load, tmp_path):
    figure, least, epochs = LEARNT[name]
    path = ROOT / "configs" / f"{name}.yaml"
    config = load(path, "train.steps=null", f"train.epochs={epochs}")
    trainer = build_trainer(config, tmp_path / "run")
    trainer.fit()
    assert trainer.progress.metrics[f"test/{figure}"] >= least
