"""Tables with numbers, categories and empty cells: learnt, resumed, evaluated and predicted."""

import io
import json
import random
from pathlib import Path

import pytest
import torch

from finetune import load_config, load_predictor
from finetune.errors import CheckpointError, ModelError
from finetune.train.after.trained import evaluate_run
from finetune.train.wire import build_trainer

PENGUINS = Path(__file__).parents[2] / "configs" / "penguins.yaml"
TOWNS = {"north": 2.0, "south": -2.0, "west": 0.5}
STEPS = [
    {"type": "fill", "columns": ["rooms"], "with": "median", "flag": True},
    {"type": "categories", "columns": ["town"], "as": "index"},
    {"type": "clip", "columns": ["rooms"], "quantiles": [0.05, 0.95]},
    {"type": "standardize", "columns": ["rooms"]},
    {"type": "stack", "columns": ["rooms", "rooms_missing"]},
]
LAYERS = [
    {
        **{"name": "towns", "type": "Embedding", "inputs": ["town"]},
        **{"num_embeddings": "categories", "embedding_dim": 4},
    },
    {"name": "all", "type": "concat", "inputs": ["towns", "features"]},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]
TRAIN = {"steps": 20, "batch_size": 8, "checkpoint": {"every": {"steps": 1}}}


def houses(count, seed=0):
    """Return rows: a house is dear if rooms and town together are worth more than 3."""
    draw, rows = random.Random(seed), ["rooms,town,dear"]
    for _ in range(count):
        rooms, town = draw.randint(1, 6), draw.choice(sorted(TOWNS))
        dear = "yes" if rooms + TOWNS[town] > 3.2 else "no"
        rows.append(f"{'' if draw.random() < 0.1 else rooms},{town},{dear}")
    return rows


@pytest.fixture
def build(small_config, tmp_path):
    """Build a trainer on the houses of `rows`."""

    def make(rows, run="run", *, tracker=None, layers=LAYERS, train=TRAIN, **keywords):
        (tmp_path / "houses.csv").write_text("\n".join(rows) + "\n")
        data = {
            "source": {"type": "csv", "path": str(tmp_path / "houses.csv")},
            "inputs": ["rooms", "town"],
            "target": "dear",
            "split": {"validation": 0.2, "test": 0.2},
            "transforms": STEPS,
        }
        config = small_config(
            model={"layers": layers},
            data=data,
            task={"type": "classification"},
            optimizer={"type": "Adam", "lr": 0.05},
            train=train,
        )
        return build_trainer(config, tmp_path / run, tracker=tracker, **keywords)

    return make


def test_the_penguins_of_the_shipped_config_are_told_apart(tmp_path):
    config = load_config(PENGUINS, overrides=["train.epochs=8"])
    trainer = build_trainer(config, tmp_path / "run")
    trainer.fit()
    # two of five are of the most frequent species
    assert trainer.progress.metrics["test/accuracy"] > 0.9


def test_train_and_plan_tell_what_is_fitted(build, heard, call):
    build(houses(100), tracker=heard)
    text = "\n".join(heard.said)
    assert "fill, fitted on 60 training samples: rooms with " in text
    assert "categories, fitted on 60 training samples: town (3: 'north', 'south', 'west')" in text
    assert "standardize, fitted on 60 training samples: rooms (mean " in text
    shown = " ".join(call("plan", str(PENGUINS)).out.split())
    assert "categories, fitted on 240 training samples: island (3: 'Biscoe'" in shown


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(build):
    whole = build(houses(100), "whole")
    whole.fit()
    build(houses(100), train=TRAIN | {"steps": 7}).fit()
    resumed = build(houses(100))
    assert resumed.progress.step == 7
    resumed.fit()
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_keeps_its_figures_when_its_data_grows(build, tmp_path):
    build(houses(100), train=TRAIN | {"steps": 7}).fit()
    kept = json.loads((tmp_path / "run/data.json").read_text())["fitted"]
    grown = [*houses(100), *("6000,east,yes" for _ in range(40))]
    resumed = build(grown, data_changed=True)
    resumed.fit()
    assert json.loads((tmp_path / "run/data.json").read_text())["fitted"] == kept
    assert resumed.model.towns.num_embeddings == 4


def test_rows_of_every_form_are_predicted_alike(build, tmp_path, call, monkeypatch):
    build(houses(100)).fit()
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "rows.csv").write_text("rooms,town\n6,north\n,south\n3,east\n")
    (folder / "rows.jsonl").write_text(
        '{"rooms": 6, "town": "north"}\n{"rooms": null, "town": "south"}\n'
        '{"rooms": 3, "town": "east"}\n'
    )

    def predictions(*arguments):
        told = call("predict", str(tmp_path / "run"), *arguments)
        rows = [json.loads(line) for line in told.out.splitlines()]
        return [row["probabilities"] for row in rows], told.err

    csv, told = predictions(str(folder / "rows.csv"))
    assert "'east' in row 3" in told
    assert "column 'rooms': 1 of 3 cells are empty" in told
    assert predictions(str(folder / "rows.jsonl"))[0] == csv
    lines = io.TextIOWrapper(io.BytesIO((folder / "rows.jsonl").read_bytes()))
    monkeypatch.setattr("sys.stdin", lines)
    assert predictions("-")[0] == csv
    predictor = load_predictor(tmp_path / "run")
    rows = [{"rooms": 6, "town": "north"}, {"rooms": None, "town": "south"}]
    assert [one.probabilities for one in predictor(rows)] == csv[:2]
    assert [one.probabilities for one in predictor(rows[1:])] == csv[1:2]


def test_eval_takes_the_figures_of_the_run_for_other_data(build, tmp_path):
    build(houses(100)).fit()
    (tmp_path / "other.csv").write_text("\n".join(houses(40, seed=3)) + "\n")
    figures = evaluate_run(tmp_path / "run", source=str(tmp_path / "other.csv"))
    assert figures["accuracy"] > 0.8
    assert evaluate_run(tmp_path / "run", "validation")["accuracy"] > 0.8


def test_a_run_folder_whose_figures_were_damaged_is_refused(build, tmp_path):
    build(houses(60), train=TRAIN | {"steps": 1}).fit()
    path = tmp_path / "run/data.json"
    document = json.loads(path.read_text())
    document["fitted"][0]["columns"]["rooms"]["value"] = ["3"]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="a figure is no finite number"):
        load_predictor(tmp_path / "run")


def test_a_layer_that_takes_no_categories_is_told_how(build):
    layers = [{"type": "Linear", "inputs": ["features"], "out_features": "categories"}]
    with pytest.raises(ModelError, match="asks for the number of categories") as caught:
        build(houses(60), layers=layers)
    assert "as: index" in caught.value.hint
