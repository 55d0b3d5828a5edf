"""What a user can get wrong ends in one clear line, exit code 2, and nothing half-written."""

import copy
import re
import sys

import numpy as np
import pytest
from PIL import Image

from finetune.train.loop import Trainer

FIVE_MISTAKES = """\
seed: -1
model:
  layers:
    - {name: body, type: Linaer, out_features: 8}
    - {name: head, type: Linear, out_featurs: classes}
data:
  source: {type: sklearn, name: digits}
  split: {validation: 0.7, test: 0.6}
task: {type: classification}
optimizer: {type: SGD, lr: fast}
train: {epochs: 2}
trian: 3
"""


def changed(config, key, value):
    """Return a copy of nested `config` with the value at a dotted key replaced."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    inner = config
    for step in path:
        inner = inner[step]
    inner[last] = value
    return config


def assert_one_clear_message(outcome, tmp_path):
    """One line, at most one indented hint, exit code 2, no run folder."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    line, *hint = outcome.err.splitlines()
    assert len(hint) <= 1, outcome.err
    assert all(text.startswith("    ") for text in hint)
    assert not line.startswith(" ")
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists(), "a run folder was left behind"


def test_every_mistake_of_a_config_is_reported_with_its_line(finetune, write):
    write("five.yaml", FIVE_MISTAKES)
    outcome = finetune("validate", "five.yaml")
    assert outcome.code == 2
    reported = re.findall(r"^five\.yaml:(\d+): ([\w.]+): ", outcome.err, re.MULTILINE)
    assert reported == [
        ("1", "seed"),
        ("4", "model.layers.0.type"),
        ("5", "model.layers.1.out_featurs"),
        ("8", "data.split"),
        ("10", "optimizer.lr"),
        ("12", "trian"),
    ]


def test_a_wrong_config_is_told_by_every_verb_that_reads_one(finetune, write, tmp_path):
    write("five.yaml", FIVE_MISTAKES)
    told = [finetune(verb, "five.yaml").err for verb in ("validate", "plan", "train", "inspect")]
    assert len(set(told)) == 1


def test_validate_goes_on_after_a_config_that_is_wrong(finetune, write, points):
    write("five.yaml", FIVE_MISTAKES)
    outcome = finetune("validate", "five.yaml", "points.yaml")
    assert outcome.code == 2
    assert outcome.out == "points.yaml: valid\n"


def test_a_missing_config_is_told(finetune, tmp_path):
    outcome = finetune("train", "nowhere.yaml")
    assert_one_clear_message(outcome, tmp_path)
    assert outcome.err.startswith("nowhere.yaml: no such file")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer", "-o optimizer: needs the form 'key=value'"),
        ("optimizer.lr=fast", "-o optimizer.lr: needs a number, got 'fast'"),
        ("train.epoch=3", "-o train.epoch: unknown key"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(finetune, points, tmp_path, override, message):
    outcome = finetune("train", "points.yaml", "-o", override)
    assert_one_clear_message(outcome, tmp_path)
    assert outcome.err.startswith(message)


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (None, {"data.source.path": "gone.csv"}, r"x\.yaml:\d+: data\.source\.path: .*'gone\.csv'"),
        (None, {"data.inputs": ["u", "w"]}, r"x\.yaml:\d+: data\.inputs: no column 'w'"),
        (None, {"data.target": "lable"}, r"x\.yaml:\d+: data\.target: no column 'lable'"),
        ("u,v,label\n", {}, r"x\.yaml:\d+: data\.source: no samples in x\.csv"),
        ("", {}, r"x\.yaml:\d+: data\.source: no samples in x\.csv"),
        ("+0,0,middle\n", {}, r"x\.yaml:\d+: data\.split\.stratify: class 'middle' has 1 sample"),
        ("+nan,0,left\n", {}, r"column 'u' holds nan in row 41 of x\.csv"),
        ("+,0,left\n", {}, r"column 'u' has no number in row 41 of x\.csv"),
        ("+inf,0,left\n", {}, r"column 'u' holds inf in row 41 of x\.csv"),
        ("+1,left\n", {}, r"x\.csv:42: holds 2 values where the first line names 3"),
        ("+\xff,0,left\n", {}, r"x\.csv:42: is not valid utf-8: byte 0xff"),
    ],
    ids=[
        "missing file", "missing column", "missing target", "header alone", "nothing at all",
        "one sample of a class", "nan", "gap", "infinite", "short row", "bad bytes",
    ],
)  # fmt: skip
def test_bad_data_is_one_clear_line(
    finetune, write, points, config, tmp_path, rows, change, message
):
    content = points.with_suffix(".csv").read_bytes()
    if rows is not None:
        new = rows.encode("latin-1")
        content = content + new[1:] if new.startswith(b"+") else new
    write("x.csv", content)
    config = changed(config, "data.source.path", "x.csv")
    for key, value in change.items():
        config = changed(config, key, value)
    write("x.yaml", config)
    outcome = finetune("train", "x.yaml")
    assert_one_clear_message(outcome, tmp_path)
    assert re.match(message, outcome.err), outcome.err


def test_a_label_never_seen_in_training_is_told(finetune, write, points, config, tmp_path):
    write("new.csv", "u,v,label\n1,2,left\n1,2,middle\n")
    data = {k: v for k, v in config["data"].items() if k not in ("source", "split")}
    data |= {"train": config["data"]["source"], "validation": {"type": "csv", "path": "new.csv"}}
    write("x.yaml", config | {"data": data})
    outcome = finetune("train", "x.yaml")
    assert_one_clear_message(outcome, tmp_path)
    assert "label 'middle' of the validation part is never seen in training" in outcome.err


@pytest.mark.parametrize("transforms", [None, [{"type": "RandomHorizontalFlip"}]], ids=str)
def test_an_unreadable_image_is_told_before_training(finetune, write, tmp_path, transforms):
    for number in range(8):
        path = tmp_path / f"images/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), number, np.uint8)).save(path)
    write("images/b/9.png", "no image")
    layers = [{"type": "Flatten"}, {"name": "head", "type": "Linear", "out_features": "classes"}]
    data = {"source": {"type": "imagefolder", "path": "images"}}
    data |= {} if transforms is None else {"transforms": transforms}
    write(
        "x.yaml",
        {
            "model": {"layers": layers},
            "data": data,
            "task": {"type": "classification"},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "train": {"epochs": 1, "batch_size": 2},
        },
    )
    outcome = finetune("train", "x.yaml")
    assert_one_clear_message(outcome, tmp_path)
    assert outcome.err.startswith("cannot read the image 'images/b/9.png'")


def test_a_network_that_is_not_trusted_is_never_imported(finetune, points, network, tmp_path):
    for verb in ("plan", "train", "inspect"):
        outcome = finetune(verb, "looping.yaml")
        assert_one_clear_message(outcome, tmp_path)
        assert "which is not trusted" in outcome.err
        assert "--trust looping_package" in outcome.err
    assert network not in sys.modules
    assert not (tmp_path / "imported").exists()


def test_a_run_never_imports_what_its_own_config_names(finetune, points, network, tmp_path):
    assert finetune("train", "looping.yaml", "--trust", network).code == 0
    sys.modules.pop(network)
    (tmp_path / "imported").unlink()
    for command in (("eval", "runs/looping"), ("predict", "runs/looping", "points.csv")):
        outcome = finetune(*command)
        assert outcome.code == 2
        assert "which is not trusted" in outcome.err
    assert not (tmp_path / "imported").exists()


def test_a_failing_proof_ends_with_exit_code_1_and_the_names(finetune, points, monkeypatch):
    honest = Trainer.train_step

    def nudges(trainer, window):
        stats = honest(trainer, window)
        trainer.model.get_parameter("body.bias").data.add_(1e-6)
        return stats

    monkeypatch.setattr(Trainer, "train_step", nudges)
    outcome = finetune("train", "points.yaml", "-o", 'freeze=["body"]')
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("proof failed: 1 of 2 frozen tensors changed")
    assert "body.bias" in last


def test_a_loss_that_is_not_finite_ends_with_exit_code_3(finetune, points):
    outcome = finetune("train", "points.yaml", "-o", "optimizer.lr=1e38")
    assert outcome.code == 3
    line, hint = outcome.err.splitlines()[-2:]
    assert re.fullmatch(r"the loss is (inf|nan) in step \d+, before its update", line)
    assert "lower optimizer.lr" in hint


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_folder_without_a_run_is_told(finetune, points, tmp_path, verb):
    outcome = finetune(verb, "nowhere", *(["points.csv"] if verb == "predict" else []))
    assert_one_clear_message(outcome, tmp_path)
    assert outcome.err.startswith("nowhere: no run here")


def test_tensorboard_needs_a_folder(finetune, tmp_path):
    outcome = finetune("tensorboard", "nowhere")
    assert_one_clear_message(outcome, tmp_path)
    assert outcome.err.startswith("nowhere: no such folder")
