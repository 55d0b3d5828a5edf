"""`eval` knows the data of a run: changed data is refused, named data is in the run's words."""

import gzip
import io
import json
import random
import shutil

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from finetune.config.run import Provenance, RunConfig
from finetune.data import prepare
from finetune.data.identify import identity, membership
from finetune.errors import CheckpointError, DataError
from finetune.train.after.trained import evaluate_run, evaluated, load_run
from finetune.train.wire import build_trainer

HEADER = "a,b,word"
LAYERS = [
    {"name": "body", "type": "Linear", "out_features": 32},
    {"type": "ReLU"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


def rows_of(seed, count=80):
    """Two clouds of points that a small network tells apart: low and up."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        centre, word = ((-2, "low"), (2, "up"))[number % 2]
        rows.append(f"{draw.gauss(centre, 0.3):.4f},{draw.gauss(centre, 0.3):.4f},{word}")
    return rows


ROWS = rows_of(0)
NEW = rows_of(1, 20)


def write(path, rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def points_config(path, **changes):
    return RunConfig.model_validate(
        {
            "model": {"layers": LAYERS},
            "data": {
                "source": {"type": "csv", "path": str(path)},
                "inputs": ["a", "b"],
                "target": "word",
                "transforms": [{"type": "stack"}],
                "split": {"validation": 0.2, "test": 0.3},
            },
            "task": {"type": "classification"},
            "optimizer": {"type": "Adam", "lr": 0.05},
            "train": {"epochs": 6, "batch_size": 8, "device": "cpu"},
            "cache": "off",
            **changes,
        }
    )


def random_labels(count):
    """Points whose words follow from nothing: they can be remembered, never learnt."""
    draw = random.Random(5)
    return [
        f"{draw.gauss(0, 1):.4f},{draw.gauss(0, 1):.4f},{draw.choice(['low', 'up'])}"
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    write(folder / "d.csv", ROWS)
    build_trainer(points_config(folder / "d.csv"), folder / "run").fit()
    return folder


@pytest.fixture
def run(trained_once):
    """A trained run whose table may be changed."""
    write(trained_once / "d.csv", ROWS)
    yield trained_once / "run"
    write(trained_once / "d.csv", ROWS)


def told(run, *args, **keywords):
    """Evaluate; return what came of it, and the lines that were told."""
    lines = []
    overrides = keywords.get("overrides", ())
    found = evaluated(load_run(run, overrides=overrides), *args, **keywords, tell=lines.append)
    return found, "\n".join(lines)


def test_unchanged_data_gives_the_figures_of_the_run_itself(run):
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    for split in ("validation", "test"):
        found, lines = told(run, split)
        assert {f"{split}/{name}": value for name, value in found.figures.items()} == {
            name: value for name, value in summary.items() if name.startswith(split)
        }
        assert lines == ""
    assert told(run, "test", data_changed=True)[0].figures == told(run)[0].figures


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("validation", 16), ("test", 24)])
def test_an_evaluation_of_one_part_prepares_that_part_alone(run, monkeypatch, split, count):
    prepared = []
    run_steps = prepare.run_steps

    def counted(table, *others):
        prepared.append(len(table))
        return run_steps(table, *others)

    monkeypatch.setattr(prepare, "run_steps", counted)
    evaluate_run(run, split=split)
    assert prepared == [count]


CHANGES = {
    "a row more": ([HEADER, *ROWS, NEW[0]], "1 added, 0 removed, of 80"),
    "a row less": ([HEADER, *ROWS[1:]], "0 added, 1 removed, of 80"),
    "a cell": ([HEADER, "9,9,low", *ROWS[1:]], "rows: 1 changed"),
    "a label": ([HEADER, ROWS[0].replace("low", "up"), *ROWS[1:]], "rows: 1 changed"),
    "columns": (["b,a,word", *ROWS], "column 'b' holds what column 'a' held"),
    "renamed labels": ([HEADER, *(r.replace("low", "top") for r in ROWS)], "'low' gone, 'top' new"),
    "a class more": ([HEADER, *ROWS, "0,0,between"], "classes: 'between' new"),
    "other rows": ([HEADER, *rows_of(7)], "rows: 80 changed"),
    "order": ([HEADER, *ROWS[::-1]], "in another part"),
}


@pytest.mark.parametrize(("lines", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_data_is_refused_with_what_differs(run, lines, message):
    write(run.parent / "d.csv", lines[1:], lines[0])
    before = (run / "data.json").read_bytes()
    with pytest.raises(CheckpointError, match="the data is not that of the run: ") as caught:
        evaluate_run(run, "test")
    assert message in caught.value.message
    assert "--data-changed" in caught.value.hint
    assert (run / "data.json").read_bytes() == before


def test_another_split_of_the_same_rows_is_refused_too(run):
    with pytest.raises(CheckpointError, match="in another part"):
        evaluate_run(run, "test", overrides=["data.split.seed=5"])


@pytest.mark.parametrize("names", ["a,b,mark", "a,c,word"])
def test_a_column_that_is_gone_is_named(run, names):
    write(run.parent / "d.csv", ROWS, names)
    with pytest.raises(DataError, match=r"no column '(word|b)'"):
        evaluate_run(run, "test")


@pytest.fixture(scope="module")
def remembered_once(tmp_path_factory):
    """A run that knows by heart what it was trained on, and nothing of the test samples."""
    folder, rows = tmp_path_factory.mktemp("remembered"), random_labels(120)
    write(folder / "d.csv", rows)
    config = points_config(
        folder / "d.csv",
        model={"layers": [LAYERS[0] | {"out_features": 256}, *LAYERS[1:]]},
        optimizer={"type": "Adam", "lr": 0.02},
        train={"epochs": 150, "batch_size": 120, "device": "cpu"},
    )
    build_trainer(config, folder / "run").fit()
    return folder, rows


@pytest.fixture
def remembered(remembered_once):
    folder, rows = remembered_once
    yield folder / "run", rows
    write(folder / "d.csv", rows)


@pytest.mark.slow
def test_accepted_rows_keep_their_part_wherever_they_lie_now(remembered):
    run, rows = remembered
    before = {split: evaluate_run(run, split) for split in ("train", "validation", "test")}
    assert before["train"]["accuracy"] > before["test"]["accuracy"] + 0.1
    shuffled = random.Random(1).sample(rows, len(rows))
    write(run.parent / "d.csv", shuffled)
    for split, figures in before.items():
        found, lines = told(run, split, data_changed=True)
        assert found.figures["accuracy"] == figures["accuracy"]
        assert found.figures["loss"] == pytest.approx(figures["loss"], rel=1e-5)
        assert "evaluates changed data: rows: " in lines


def test_what_was_trained_on_never_becomes_a_test_row(remembered):
    run, rows = remembered
    tested = len(told(run, "test")[0].data.samples)
    other = {"low": "up", "up": "low"}
    twisted = [",".join([*row.split(",")[:2], other[row.split(",")[2]]]) for row in rows]
    longer = [row.replace(",", "0,", 1) for row in rows]  # the same number, written otherwise
    for more in (rows, twisted, longer):
        write(run.parent / "d.csv", [*more, *rows])
        found, _ = told(run, "test", data_changed=True)
        # the test rows and their copies are tested; none of the 60 that were trained on
        assert len(found.data.samples) == 2 * tested


def test_new_rows_are_told_and_come_into_one_part_whatever_follows(run):
    write(run.parent / "d.csv", [*NEW, *ROWS])
    found, lines = told(run, "test", data_changed=True)
    assert "rows that the run does not know: 20" in lines
    num_new = int(lines.rpartition(" in test")[0].rpartition(" ")[2])
    assert len(found.data.samples) == 24 + num_new
    write(run.parent / "d.csv", [*NEW[:10], *ROWS, *NEW[10:], "5,5,up"])
    again, _ = told(run, "test", data_changed=True)
    assert len(again.data.samples) in (24 + num_new, 25 + num_new)


def test_a_row_more_that_trains_changes_no_bit_of_the_test(run):
    before = evaluate_run(run, "test")
    for row in NEW:
        write(run.parent / "d.csv", [row, *ROWS])
        found, lines = told(run, "test", data_changed=True)
        if "1 in test" not in lines:
            assert found.figures == before
            return
    pytest.fail("every new row became a test row")


@pytest.mark.parametrize("key", ["data.split.test=0.5", "data.split.seed=7", "seed=7"])
def test_a_split_that_moves_no_known_row_is_told(run, key):
    write(run.parent / "d.csv", [*ROWS, NEW[0]])
    before, quiet = told(run, "test", data_changed=True)
    found, lines = told(run, "test", data_changed=True, overrides=[key])
    assert len(found.data.samples) in (len(before.data.samples), len(before.data.samples) + 1)
    assert f"{key.partition('=')[0]} moves no row that the run knows" in lines
    assert "moves no row" not in quiet


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_split_is_told_also_after_a_change_that_was_accepted_before(tmp_path, goes_on):
    write(tmp_path / "d.csv", ROWS)
    build_trainer(points_config(tmp_path / "d.csv"), tmp_path / "run").fit()
    if goes_on:
        write(tmp_path / "d.csv", [*ROWS, *NEW])
        train = {"epochs": 7, "batch_size": 8, "device": "cpu"}
        config = points_config(tmp_path / "d.csv", train=train)
        build_trainer(config, tmp_path / "run", data_changed=True).fit()
        _, lines = told(tmp_path / "run", "test", overrides=["data.split.test=0.5"])
        assert "data.split.test moves no row that the run knows" in lines
    else:
        with pytest.raises(CheckpointError, match="in another part"):
            evaluate_run(tmp_path / "run", "test", overrides=["data.split.test=0.5"])


def test_a_part_of_too_many_rows_says_why_none_can_keep_its_part(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MOST_HASHED_ROWS", 30)
    monkeypatch.setattr(membership, "MOST_HASHED_ROWS", 30)
    write(tmp_path / "d.csv", ROWS)
    build_trainer(points_config(tmp_path / "d.csv"), tmp_path / "run").fit()
    assert told(tmp_path / "run", "test")[1] == ""
    write(tmp_path / "d.csv", [*ROWS, *NEW])
    with pytest.raises(DataError, match="which of 80 rows were trained on is not known") as caught:
        told(tmp_path / "run", "test", data_changed=True)
    assert "parts of at most 30 rows" in caught.value.message
    assert "--fresh" in caught.value.hint
    assert "all 100 rows are evaluated" in told(tmp_path / "run", source=str(tmp_path / "d.csv"))[1]


@pytest.mark.parametrize("accepts", [False, True])
def test_a_class_that_the_run_does_not_know_is_an_error_with_both_lists(run, accepts):
    write(run.parent / "d.csv", [*ROWS, "0,0,between"])
    with pytest.raises((CheckpointError, DataError)) as caught:
        evaluate_run(run, "train", data_changed=accepts)
    assert "'between'" in str(caught.value)
    if accepts:
        assert "unknown are 'between' (1, in row " in str(caught.value)
        assert "training has 'low', 'up'" in str(caught.value)


def as_dicts(rows):
    cells = [row.split(",") for row in rows]
    return [{"a": float(a), "b": float(b), "word": word} for a, b, word in cells]


def parquet_of(rows):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(as_dicts(rows)), file)
    return file.getvalue()


def table_of(rows, separator=","):
    return "\n".join(line.replace(",", separator) for line in [HEADER, *rows]).encode() + b"\n"


FORMS = {
    "csv": ("new.csv", table_of),
    "tsv": ("new.tsv", lambda rows: table_of(rows, "\t")),
    "packed": ("new.csv.gz", lambda rows: gzip.compress(table_of(rows))),
    "json lines": ("new.jsonl", lambda rows: "\n".join(map(json.dumps, as_dicts(rows))).encode()),
    "json": ("new.json", lambda rows: json.dumps(as_dicts(rows)).encode()),
    "parquet": ("new.parquet", parquet_of),
    "no ending": ("new", table_of),
}
UPPER = [row for row in NEW if row.endswith("up")]
"""Rows of the second class alone: by its own list of classes it would be the first."""


@pytest.mark.parametrize(("name", "encoded"), FORMS.values(), ids=FORMS)
def test_a_file_of_any_form_is_evaluated_whole_in_the_words_of_the_run(
    run, tmp_path, name, encoded
):
    path = tmp_path / name
    path.write_bytes(encoded(UPPER))
    found, lines = told(run, source=str(path))
    assert found.figures["accuracy"] == 1.0
    assert (len(found.data.samples), found.data.num_trained) == (10, 0)
    assert f"{path}: all 10 rows are evaluated; none of them was trained on" in lines


@pytest.mark.parametrize(("name", "encoded"), FORMS.values(), ids=FORMS)
def test_rows_that_were_trained_on_are_counted_in_any_form(run, tmp_path, name, encoded):
    (tmp_path / name).write_bytes(encoded([*ROWS, *NEW]))
    found, lines = told(run, source=str(tmp_path / name))
    assert "all 100 rows are evaluated; 40 of them were trained on" in lines
    assert found.data.num_trained == 40


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_another_path_on_the_command_line_is_named_data_as_well(run, tmp_path, split):
    path = write(tmp_path / "new.csv", UPPER)
    found, lines = told(run, split, overrides=[f"data.source.path={path}"])
    assert found.figures["accuracy"] == 1.0
    assert f"{path}: all 10 rows are evaluated" in lines
    assert ("--split" in lines) is (split is not None)
    assert evaluate_run(run, split, overrides=[f"data.source.path={path}"]) == found.figures


def test_named_data_of_one_row_and_in_any_order_of_columns_is_evaluated(run, tmp_path):
    a, b, word = UPPER[0].split(",")
    write(tmp_path / "new.csv", [f"{word},x,{b},{a}"], "word,more,b,a")
    found, lines = told(run, source=str(tmp_path / "new.csv"))
    assert found.figures["accuracy"] == 1.0
    assert "its 1 row is evaluated; it was not trained on" in lines


FAULTS = {
    "class": (["1,1,between", "2,2,up"], HEADER, ["'between' (1, in row 1)", "'low', 'up'"]),
    "target": (["1,1,up"], "a,b,other", ["no column 'word'", "other"]),
    "input": (["1,1,up"], "a,c,word", ["no column 'b'"]),
    "cell": (["1,one,up"], HEADER, ["'one'", "row 1"]),
    "empty label": (["1,1,"], HEADER, ["'word'", "row 1"]),
}


@pytest.mark.parametrize("by", ["input", "override"])
@pytest.mark.parametrize(("rows", "header", "words"), FAULTS.values(), ids=FAULTS)
def test_named_data_that_the_run_cannot_take_is_one_line_that_names_it(
    run, tmp_path, rows, header, words, by
):
    path = write(tmp_path / "new.csv", rows, header)
    named = {"source": str(path)} if by == "input" else {"overrides": [f"data.source.path={path}"]}
    with pytest.raises(DataError) as caught:
        told(run, **named)
    first = str(caught.value).splitlines()[0]
    assert all(word in first for word in [*words, "new.csv"]), first
    assert len(first) <= 500


def test_very_long_labels_leave_the_error_short(run, tmp_path):
    rows = [f"1,1,{letter * 5000}" for letter in "stuv"]
    with pytest.raises(DataError, match=r"and 1 more; training has") as caught:
        told(run, source=str(write(tmp_path / "new.csv", rows)))
    assert max(map(len, str(caught.value).splitlines())) <= 500


def test_the_command_tells_the_same_and_json_alone_goes_to_standard_output(
    run, tmp_path, command_line
):
    path = write(tmp_path / "new.csv", [*ROWS, *UPPER])
    code, out, err = command_line("eval", run, path, "--json")
    document = json.loads(out)
    assert (code, document["rows"], document["trained_on"]) == (0, 90, 40)
    assert document["metrics"]["accuracy"] == 1.0
    assert "40 of them were trained on" in err
    code, out, _ = command_line("eval", run, path)
    assert (code, "accuracy" in out) == (0, True)
    write(run.parent / "d.csv", [*ROWS, NEW[0]])
    code, out, err = command_line("eval", run)
    assert (code, out) == (2, "")
    assert "rows: 0 changed, 1 added, 0 removed, of 80" in err
    code, _, err = command_line("eval", run, "--data-changed")
    assert code == 0
    assert "evaluates changed data: rows: 0 changed, 1 added" in err


@pytest.mark.parametrize("form", ["csv", "json lines"])
def test_standard_input_is_evaluated_as_a_file_is(run, monkeypatch, form):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(FORMS[form][1](UPPER))))
    found, lines = told(run, source="-")
    assert found.figures["accuracy"] == 1.0
    assert "standard input: all 10 rows are evaluated" in lines


def test_a_record_of_an_older_version_says_that_trained_rows_cannot_be_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "data.json").read_text())
    for part in document["identity"]["parts"].values():
        del part["inputs"]
    (tmp_path / "run" / "data.json").write_text(json.dumps(document))
    path = write(tmp_path / "new.csv", UPPER)
    found, lines = told(tmp_path / "run", source=str(path))
    assert found.data.num_trained is None
    assert "has kept no hashes that tell" in lines
    del document["identity"]
    (tmp_path / "run" / "data.json").write_text(json.dumps(document))
    figures, lines = told(tmp_path / "run")
    assert figures.figures == evaluate_run(run)
    assert "cannot be compared" in lines


def test_sources_of_parts_keep_what_was_trained_on_out_of_the_test(tmp_path):
    for part, rows in {"train": ROWS[:60], "test": ROWS[60:]}.items():
        write(tmp_path / f"{part}.csv", rows)
    sources = {p: {"type": "csv", "path": str(tmp_path / f"{p}.csv")} for p in ("train", "test")}
    data = {"inputs": ["a", "b"], "target": "word", "transforms": [{"type": "stack"}]}
    build_trainer(points_config("", data={**sources, **data}), tmp_path / "run").fit()
    before = evaluate_run(tmp_path / "run", "test")
    write(tmp_path / "test.csv", [*ROWS[60:], *ROWS[:5]])
    with pytest.raises(CheckpointError, match="5 added"):
        evaluate_run(tmp_path / "run", "test")
    found, lines = told(tmp_path / "run", "test", data_changed=True)
    assert "5 of 25 rows of the test part were trained on: they are left out" in lines
    assert found.figures == before
    path = write(tmp_path / "new.csv", [*UPPER, *ROWS[:5]])
    found, lines = told(tmp_path / "run", overrides=[f"data.test.path={path}"])
    assert "all 15 rows are evaluated; 5 of them were trained on" in lines
    with pytest.raises(CheckpointError):
        told(tmp_path / "run", "train", overrides=[f"data.test.path={path}"])


def test_a_part_with_digits_for_texts_is_read_like_the_training_part(tmp_path, bert):
    # A part of its own would have its digits for numbers, and its other text for no pair.
    texts = {
        "train": ["the film,yes,low", "bad film,no,up"],
        "validation": ["film,1,low", "bad,2,up"],
    }
    for part, rows in texts.items():
        write(tmp_path / f"{part}.csv", rows * 4, "title,note,word")
    sources = {part: {"type": "csv", "path": str(tmp_path / f"{part}.csv")} for part in texts}
    layers = [{"name": "net", "type": "transformers", "path": bert, "output": "logits"}]
    data = sources | {"inputs": ["title", "note"], "target": "word"}
    train = {"steps": 1, "batch_size": 8, "device": "cpu"}
    config = points_config("", data=data, model={"layers": layers}, train=train)
    trainer = build_trainer(config, tmp_path / "run")
    trainer.fit()
    found = evaluate_run(tmp_path / "run", "validation")
    assert found["loss"] == trainer.progress.metrics["validation/loss"]


def paint(folder, colours, count=6):
    draw = np.random.default_rng(0)
    for name, (low, high) in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(low, high, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_a_folder_of_one_class_is_evaluated_with_the_classes_of_the_run(tmp_path):
    paint(tmp_path / "images", {"bright": (200, 255), "dark": (0, 50)})
    config = points_config(
        "",
        model={"layers": [{"name": "flat", "type": "Flatten"}, *LAYERS]},
        data={"source": {"type": "imagefolder", "path": str(tmp_path / "images")}},
        train={"epochs": 40, "batch_size": 8, "device": "cpu"},
    )
    build_trainer(config, tmp_path / "run").fit()
    paint(tmp_path / "new", {"dark": (0, 50)}, count=8)
    shutil.copy(tmp_path / "images/dark/0.png", tmp_path / "new/dark/known.png")
    found, lines = told(tmp_path / "run", source=str(tmp_path / "new"))
    assert found.figures["accuracy"] == 1.0
    assert "all 9 rows are evaluated" in lines
    assert found.data.num_trained >= 1


@pytest.mark.parametrize("by", ["input", "override"])
def test_a_colour_among_new_images_makes_no_network_of_grey_ones_take_three_channels(tmp_path, by):
    paint(tmp_path / "images", {"bright": (200, 255), "dark": (0, 50)})
    names = [f"images/{word}/{n}.png,{word}" for word in ("bright", "dark") for n in range(6)]
    table = write(tmp_path / "d.csv", names, "image,label")
    config = points_config(
        "",
        model={"layers": [{"name": "flat", "type": "Flatten"}, *LAYERS]},
        data={"source": {"type": "csv", "path": str(table)}},
    )
    build_trainer(config, tmp_path / "run").fit()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "images" / "colour.png")
    path = write(tmp_path / "new.csv", ["images/colour.png,dark", names[0]], "image,label")
    named = {"source": str(path)} if by == "input" else {"overrides": [f"data.source.path={path}"]}
    found, lines = told(tmp_path / "run", **named)
    assert found.data.samples.specs["image"].shape == (1, 4, 4)
    assert "note: column 'image': 1 of 2 images have colour, read as grey" in lines
    assert "1 of them was trained on" in lines


OTHER_TASKS = {
    "labels": (
        {"type": "multilabel"}, {"target": ("low", "up")}, "a,b,low,up",
        lambda a, b, word: f"{a},{b},{int(word == 'low')},{int(word == 'up')}",
    ),
    "lists": (
        {"type": "multilabel", "separator": "|"}, {"target": "word"}, HEADER,
        lambda a, b, word: f"{a},{b},{word}|near",
    ),
    "numbers": (
        {"type": "regression"}, {"target": "word"}, HEADER,
        lambda a, b, word: f"{a},{b},{1 if word == 'up' else -1}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("task", "data", "header", "row"), OTHER_TASKS.values(), ids=OTHER_TASKS)
def test_other_tasks_evaluate_named_data_as_well(tmp_path, task, data, header, row):
    def made(rows):
        return [row(*each.split(",")) for each in rows]

    config = points_config(write(tmp_path / "d.csv", made(ROWS), header), task=task)
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    values = config.model_dump(exclude_unset=True)
    values["model"]["layers"][-1]["out_features"] = 1 if task["type"] == "regression" else "classes"
    build_trainer(RunConfig.model_validate(values), tmp_path / "run").fit()
    whole = evaluate_run(tmp_path / "run", "train")
    path = write(tmp_path / "new.csv", made(UPPER), header)
    found, _ = told(tmp_path / "run", source=str(path))
    assert found.data.num_trained == 0
    assert torch.tensor(found.figures["loss"]).isfinite()
    assert found.figures["loss"] < whole["loss"] + 0.5


@pytest.mark.parametrize("header", ["word,b,a", "b,more,a,more"])
def test_predict_takes_columns_by_name_in_any_order_and_names_one_that_lacks(
    run, tmp_path, command_line, header
):
    cells = {"a": "2", "b": "2", "word": "up", "more": "x"}
    write(tmp_path / "new.csv", [",".join(cells[name] for name in header.split(","))], header)
    code, out, _ = command_line("predict", run, tmp_path / "new.csv")
    assert (code, json.loads(out)["label"]) == (0, "up")
    write(tmp_path / "new.csv", ["2,up"], "a,word")
    code, out, err = command_line("predict", run, tmp_path / "new.csv")
    assert (code, out) == (2, "")
    assert "no column 'b'" in err


def test_objects_that_nobody_can_compare_are_not_said_to_be_new(tmp_path, monkeypatch):
    (tmp_path / "objects_at_the_door.py").write_text(OBJECTS)
    monkeypatch.syspath_prepend(tmp_path)
    source = {"type": "import", "path": "objects_at_the_door:make"}
    data = {
        "source": source,
        "inputs": ["x"],
        "target": "y",
        "transforms": [{"type": "import", "path": "objects_at_the_door:unpack"}],
        "split": {"test": 0.3},
    }
    trust = ["objects_at_the_door"]
    config = points_config("", data=data)
    config = config.with_provenance(Provenance(trust=frozenset(trust)), {})
    build_trainer(config, tmp_path / "run").fit()
    more = ["data.source.args={count: 30}"]
    lines = []
    loaded = load_run(tmp_path / "run", trust=trust, overrides=more)
    found = evaluated(loaded, overrides=more, tell=lines.append)
    assert found.data.num_trained is None
    assert "no hashes that tell which" in lines[-1]


OBJECTS = """
import numpy as np
import torch


class Held:
    def __init__(self, value):
        self.value = value


def make(count=20):
    values = np.random.default_rng(0).normal(size=(count, 3)).astype("float32")
    return {"x": [Held(value) for value in values], "y": (values[:, 0] > 0).astype(int)}


def unpack():
    return lambda sample: {**sample, "x": torch.tensor(sample["x"].value)}
"""
