"""Messages say what is wrong in a line: no whole sample, no bytes, no object as Python prints."""

import base64
import io
import json
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.cli.plans import preview
from finetune.errors import ConfigError, DataError, FinetuneError, Origin, Problem
from finetune.predict import load_predictor
from finetune.train.build import build_parts

CLASSIFY = {"type": "classification"}
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}
CONVOLUTION = [
    {"name": "body", "type": "Conv2d", "out_channels": 3, "kernel_size": 3},
    {"type": "AdaptiveAvgPool2d", "output_size": 1},
    {"type": "Flatten"},
    HEAD,
]
LONG = "x" * 70_000
BYTES = bytes(range(256)) * 300


def assert_short(error):
    text = str(error)
    for line in text.splitlines():
        assert len(line) <= 500
    for part in ("<class", "object at 0x", "b'\\x", "tensor([", LONG[:200]):
        assert part not in text
    assert len(text.splitlines()) <= 3


class Strange:
    """A value of data that nobody knows."""


SAYINGS = [
    (f"got {ConfigError!r}", "got ConfigError"),
    (f"{{'a': {dict!r}}}", "{'a': dict}"),
    (f"of {Strange()!r}", "of a Strange"),
    (f"cannot read {BYTES!r} here", "cannot read bytes here"),
    (f"not {torch.arange(99.0).reshape(3, 33)!r}, but one", "not a tensor, but one"),
    (f"not {np.arange(99.0).reshape(3, 33)!r}", "not an array"),
    (f"of {len!r}", "of <built-in function len>"),
    (f"needs a {assert_short!r}", "needs a assert_short"),
    (f"Bob's file, of {'ten ' * 20}'s", f"Bob's file, of {'ten ' * 20}'s"),
    (f"column 'b' holds nan {'and ' * 20}in 'a'", f"column 'b' holds nan {'and ' * 20}in 'a'"),
    ("b'ab' and tensor([1, 2]) stay", "b'ab' and tensor([1, 2]) stay"),
]


@pytest.mark.parametrize(("text", "told"), SAYINGS, ids=[told for _, told in SAYINGS])
def test_what_python_prints_of_objects_is_told_in_words(text, told):
    assert FinetuneError(text, hint=text, details=[text]).message == told
    assert FinetuneError("x", hint=text).hint == told
    problem = Problem(Origin(Path("c.yaml"), 1, "a"), text, text)
    assert ConfigError([problem]).problems[0].message == told


def test_a_message_of_many_such_values_takes_no_time_to_make():
    parts = ["b'", "tensor([", "<class '", "a.", "<", "array([1]", " b\\'", "Bob's "]
    began = time.process_time()
    for part in parts:
        assert len(str(FinetuneError(part * 20_000))) <= 600
    assert time.process_time() - began < 5


@pytest.fixture
def fault(small_config, tmp_path):
    """Return the error over rows of JSON lines."""

    def told(rows, *layers, task=None, **data):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"type": "jsonl", "path": str(path)}
        data = {"source": source, "inputs": ["x"], "target": "y"} | data
        model = {"layers": list(layers or (HEAD,))}
        with pytest.raises(FinetuneError) as error:
            build_parts(small_config(model=model, data=data, task=task or CLASSIFY))
        return error.value

    return told


PICTURE = base64.b64encode(BYTES).decode()
WHOLE = [
    [{"x": LONG + str(i), "y": i % 2} for i in range(6)],
    [{"x": {LONG: [1] * 9000}, "y": i % 2} for i in range(6)],
    [{"x": [[0.5] * 3000] * (2 + (i > 4)), "y": i % 2} for i in range(6)],
    [{"x": i, "y": {"a": LONG}} for i in range(6)],
    [{"x": i, "y": [[LONG], i]} for i in range(6)],
    [{"x": PICTURE, "y": i % 2} for i in range(6)],
    [{"x": {"bytes": PICTURE, "path": LONG}, "y": i % 2} for i in range(6)],
    [{"x": i, LONG + str(i): 1} for i in range(6)],
    [{"x": [1] * 5000 + ([LONG] if i > 4 else [1]), "y": i % 2} for i in range(6)],
    [{"x": float(i) if i < 5 else None, "y": LONG} for i in range(6)],
]


@pytest.mark.slow
@pytest.mark.parametrize("rows", WHOLE, ids=map(str, range(len(WHOLE))))
@pytest.mark.parametrize("task", [CLASSIFY, {"type": "regression"}, {"type": "multilabel"}])
def test_no_fault_of_data_prints_a_whole_sample(fault, rows, task):
    assert_short(fault(rows, task=task))
    assert_short(fault(rows, *CONVOLUTION, task=task))
    assert_short(fault(rows, task=task, transforms=[{"type": "stack"}]))


def test_lists_of_two_shapes_are_told_by_their_shapes_and_rows(fault):
    rows = [{"x": [[0.5] * 30] * (2 + (i > 4)), "y": i % 2} for i in range(6)]
    told = str(fault(rows))
    assert "lists of column 'x' differ in shape: (2, 30) in row 1 of " in told
    assert "(3, 30) in row 6 of " in told


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 50)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def images_run(small_run, tmp_path):
    """Train on images; return the folder of the run."""
    for number in range(12):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number * 20))
    data = {"source": {"type": "imagefolder", "path": str(tmp_path / "images")}}
    small_run(model={"layers": CONVOLUTION}, data=data, task=CLASSIFY).fit()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "sample",
    [
        *(BYTES, BYTES.decode("latin-1"), {"bytes": BYTES, "path": None}, Strange(), Strange),
        *(3, None, [BYTES], {"image": BYTES}, {"other": BYTES}),
        *(torch.zeros(3, 5), np.zeros((2, 2, 2, 2))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_fault_of_prediction_prints_a_whole_sample(images_run, sample):
    predictor = load_predictor(images_run)
    for inputs in ([sample, sample], {"image": [sample]}):
        with pytest.raises(FinetuneError) as error:
            predictor(inputs)
        assert_short(error.value)


@pytest.fixture
def foreign(tmp_path):
    """Files that are no sample of anything: sound, arrays, a document."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    np.savez(tmp_path / "many.npz", x=np.zeros((3, 2)))
    np.save(tmp_path / "one.npy", np.zeros((3, 2)))
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + bytes(99))
    return {
        "sound.wav": "is sound (WAV)",
        "many.npz": "is a zip archive (.npz",
        "one.npy": "is an array (.npy)",
        "paper.pdf": "is a PDF document",
    }


@pytest.fixture
def predicted(tmp_path, command_line):
    """Run `finetune predict` on a file; return its exit code and what it printed."""

    def run(name):
        code, out, err = command_line("predict", tmp_path / "run", tmp_path / name)
        return code, out + err

    return run


def test_a_foreign_file_given_to_predict_is_named_for_what_it_is(
    small_run, tmp_path, foreign, predicted, images_run
):
    for name, what in foreign.items():
        code, told = predicted(name)
        assert (code, what in told, "no image" in told) == (2, True, True)
    table = tmp_path / "numbers.csv"
    table.write_text("u,v,label\n" + "".join(f"{i},{i % 3},{'ab'[i % 2]}\n" for i in range(12)))
    data = {"source": {"type": "csv", "path": str(table)}, "inputs": ["u", "v"], "target": "label"}
    data |= {"transforms": [{"type": "stack"}]}
    small_run(fresh=True, model={"layers": [HEAD]}, data=data, task=CLASSIFY).fit()
    for name, what in foreign.items():
        code, told = predicted(name)
        assert (code, what in told, "takes the columns 'u', 'v'" in told) == (2, True, True)


def test_arrays_are_predicted_from_arrays_as_they_were_trained_on(small_run, tmp_path, predicted):
    rng = np.random.default_rng(0)
    train = rng.random((12, 4), dtype=np.float32)
    np.savez(tmp_path / "train.npz", x=train, y=np.arange(12) % 2)
    np.savez(tmp_path / "new.npz", x=train[:3])
    np.savez(tmp_path / "other.npz", z=train[:3])
    data = {"source": {"type": "arrays", "path": str(tmp_path / "train.npz")}}
    data |= {"inputs": ["x"], "target": "y"}
    small_run(model={"layers": [HEAD]}, data=data, task=CLASSIFY).fit()
    code, told = predicted("new.npz")
    rows = [json.loads(line) for line in told.splitlines()]
    expected = load_predictor(tmp_path / "run")({"x": list(train[:3])})
    assert code == 0
    assert [row["probability"] for row in rows] == [one.probability for one in expected]
    assert [Path(row["input"]).name for row in rows] == ["new.npz:1", "new.npz:2", "new.npz:3"]
    code, told = predicted("other.npz")
    assert (code, "no array 'x'; there are: 'z'" in told) == (2, True)


@pytest.fixture
def album(tmp_path):
    """A folder of images, and tables that name them in several ways."""
    (tmp_path / "im").mkdir()
    names = [f"{'ab'[n % 2]}_{n}" for n in range(12)]
    for number, name in enumerate(names):
        (tmp_path / "im" / f"{name}.png").write_bytes(picture(number * 20))

    def table(form, column="file"):
        path = tmp_path / "table.csv"
        lines = (f"{form.format(name)},{name[0]}\n" for name in names)
        path.write_text(f"{column},label\n" + "".join(lines))
        return {
            "source": {"type": "csv", "path": str(path)},
            "inputs": [column],
            "target": "label",
        }

    return table


@pytest.mark.parametrize("column", ["image", "file"])
def test_images_named_in_any_column_are_read(small_config, album, column):
    sections = {"model": {"layers": CONVOLUTION}, "task": CLASSIFY}
    assert preview(small_config(data=album("im/{}.png", column), **sections)).parts.data.train


MISNAMED = [
    ("{}.png", "file", ["no such image file 'a_0.png'", "relative to the folder"]),
    ("{}.png", "image", ["no such image file", "relative to the folder"]),
    ("im/{}", "file", ["'im/a_0.png' is one", "with their endings"]),
]


@pytest.mark.parametrize(("form", "column", "told"), MISNAMED, ids=["file", "image", "no ending"])
def test_images_that_are_not_there_are_told_with_the_folder(
    small_config, album, form, column, told
):
    sections = {"model": {"layers": CONVOLUTION}, "data": album(form, column), "task": CLASSIFY}
    with pytest.raises(DataError) as error:
        build_parts(small_config(**sections))
    assert all(part in str(error.value) for part in told)
    assert "row 1 of " in str(error.value)


def test_a_name_that_lies_in_within_is_told_with_the_name_to_write(small_config, album, tmp_path):
    data = album("{}.png", "image")
    data["source"]["within"] = str(tmp_path / "im")
    with pytest.raises(DataError) as error:
        build_parts(small_config(model={"layers": CONVOLUTION}, data=data, task=CLASSIFY))
    assert f"and lies in '{tmp_path / 'im'}'" in str(error.value)
    assert "write 'im/a_0.png'" in str(error.value)
    assert "leaves" not in str(error.value)
    data = album("im/{}.png", "image")
    data["source"]["within"] = str(tmp_path / "im")
    build_parts(small_config(model={"layers": CONVOLUTION}, data=data, task=CLASSIFY))


def test_a_prefix_too_short_to_try_is_told_without_phases_to_come(small_config):
    config = small_config(freeze=["body"], cache="auto", train={"steps": 1, "batch_size": 8})
    [cost] = preview(config).costs.phases
    assert cost.not_stored == "too few samples are seen in this phase to try it out"


def test_a_misfit_in_prediction_and_training_names_row_and_file(small_run, tmp_path, predicted):
    table = [
        {"name": "table", "type": "Embedding", "num_embeddings": 50, "embedding_dim": 4},
        HEAD,
    ]

    def items(name, values):
        lines = (f"{value},{'odd' if value % 2 else 'even'}\n" for value in values)
        (tmp_path / name).write_text("item,label\n" + "".join(lines))
        source = {"type": "csv", "path": str(tmp_path / name)}
        return {"source": source, "inputs": ["item"], "target": "label"}

    trainer = small_run(
        model={"layers": table}, data=items("old.csv", [*range(2, 40), 70]), task=CLASSIFY
    )
    with pytest.raises(FinetuneError, match=r"value 70 of column 'item', row 39 of .*old\.csv, is"):
        trainer.fit()
    small_run(
        "whole", model={"layers": table}, data=items("whole.csv", range(40)), task=CLASSIFY
    ).fit()
    (tmp_path / "whole").rename(tmp_path / "run2")
    (tmp_path / "new.csv").write_text("item\n3\n4\n77\n")
    predictor = load_predictor(tmp_path / "run2")
    with pytest.raises(FinetuneError, match="value 77 of column 'item', row 3 of the input, is"):
        predictor({"item": [3, 4, 77]})
