"""A diagnosis names what is damaged, and nothing else; what it foretells comes true."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.predict import load_predictor
from finetune.runs.doctor import examine
from finetune.runs.lock import locked

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "freeze": ["body"],
    "data": {
        "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
        "split": {"validation": 0.2},
    },
    "cache": {"use": "off"},
    "train": {
        "steps": 6,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_every": {"steps": 2},
        "checkpoint": {"every": {"steps": 1}, "keep_last": 3},
    },
}
BEST = SETTINGS | {
    "optimizer": {"type": "SGD", "lr": 3.0, "momentum": 0.9},
    "train": SETTINGS["train"]
    | {"checkpoint": {"every": {"steps": 1}, "keep_last": 2, "best": "validation/loss"}},
}


@pytest.fixture
def done(small_run):
    """A finished run of six steps."""
    trainer = small_run(**SETTINGS)
    trainer.fit()
    return trainer.folder.path


def said(diagnosis):
    return {finding.label: finding.text for finding in diagnosis.findings}


def damaged(diagnosis):
    return {finding.label for finding in diagnosis.findings if finding.is_damage}


def test_a_sound_run_is_called_sound(done):
    diagnosis = examine(done)
    assert diagnosis.is_sound
    assert said(diagnosis) == {
        "status": "done at step 6",
        "step-00000004": "whole",
        "step-00000005": "whole",
        "step-00000006": "whole",
        "go on": "from step-00000006: the newest one, and all that it needs is whole",
        "predict": "with step-00000006",
        "proof": "intact: 2 fingerprints equal over 1 phase",
        "metrics": "10 whole lines, up to step 6",
        "lock": "free",
    }
    assert diagnosis.start == diagnosis.chosen == done / "checkpoints" / "step-00000006"


def test_it_changes_nothing(done):
    before = {path: path.stat().st_mtime_ns for path in [done, *done.rglob("*")]}
    examine(done)
    assert {path: path.stat().st_mtime_ns for path in [done, *done.rglob("*")]} == before


def test_a_run_that_has_saved_nothing_is_sound(small_run, small_config, tmp_path):
    trainer = small_run(**SETTINGS)
    with trainer.folder.held():
        diagnosis = examine(tmp_path / "run")
    assert diagnosis.is_sound
    assert said(diagnosis)["go on"] == "from the beginning: nothing was saved yet"
    assert said(diagnosis)["lock"].startswith("held by process ")


def test_what_a_killed_run_leaves_is_told_and_no_damage(done):
    (done / "summary.json").unlink()
    (done / "checkpoints" / ".tmp-step-00000007").mkdir()
    with (done / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tr')
    diagnosis = examine(done)
    assert diagnosis.is_sound
    told = "not at its end; step-00000006 is its newest whole checkpoint"
    assert said(diagnosis)["status"] == told
    assert said(diagnosis)["orphan"] == ".tmp-step-00000007: the next start removes it"
    assert said(diagnosis)["metrics"].endswith("the last one torn: the next start drops it")


def spoil(path, text="{"):
    path.write_text(text)


def rewrite(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def other_digest(document):
    document["phases"][0]["digests"]["body.weight"][1] = "0" * 32


@pytest.mark.parametrize(
    ("damage", "label", "says"),
    [
        (lambda run: spoil(run / "summary.json"), "status", "summary.json is damaged"),
        (lambda run: spoil(run / "summary.json", "[]"), "status", "summary.json is damaged"),
        (lambda run: spoil(run / "config.yaml", "train: {stepz: 1}"), "config", "stepz"),
        (lambda run: (run / "data.json").unlink(), "data.json", "missing or damaged"),
        (lambda run: spoil(run / "plan.json"), "plan.json", "missing or damaged"),
        (lambda run: spoil(run / "freeze_proof.json"), "proof", "is damaged"),
        (lambda run: spoil(run / "freeze_proof.json", '{"phases": 3}'), "proof", "is damaged"),
        (
            lambda run: rewrite(run / "freeze_proof.json", other_digest),
            "proof",
            "failed: frozen tensors changed, 1 in phase 'all'",
        ),
        (
            lambda run: rewrite(run / "freeze_proof.json", lambda d: d.update(intact=False)),
            "proof",
            "says that it failed",
        ),
        (
            lambda run: spoil(run / "metrics.jsonl", '{"step": 1}\nnonsense\n'),
            "metrics",
            "metrics.jsonl:2: not a line of metrics",
        ),
    ],
)
def test_each_damage_is_told_at_its_place_and_no_other(done, damage, label, says):
    damage(done)
    diagnosis = examine(done)
    assert damaged(diagnosis) == {label}
    assert says in said(diagnosis)[label]


def test_what_it_foretells_of_a_damaged_checkpoint_comes_true(done, small_run):
    (done / "checkpoints" / "step-00000006" / "weights.safetensors").write_bytes(b"x")
    diagnosis = examine(done)
    assert damaged(diagnosis) == {"step-00000006", "go on", "predict"}
    assert said(diagnosis)["go on"] == "from step-00000005: 1 newer one is passed over"
    assert said(diagnosis)["predict"].startswith("refused: step-00000006: weights.safetensors has")
    with pytest.raises(CheckpointError, match=r"step-00000006: weights\.safetensors has 1 bytes"):
        load_predictor(done)
    assert small_run(**SETTINGS).progress.step == 5
    shutil.rmtree(done / "checkpoints")
    (done / "checkpoints" / "step-00000001").mkdir(parents=True)
    diagnosis = examine(done)
    assert said(diagnosis)["go on"] == "from the beginning: no checkpoint is whole"
    assert diagnosis.start is None
    assert small_run(**SETTINGS).progress.step == 0


def test_lost_best_weights_are_told(small_run):
    trainer = small_run(**BEST)
    best = trainer.fit().best.step
    assert best == 2
    shutil.rmtree(trainer.saver.checkpoints.path_of(best))
    diagnosis = examine(trainer.folder.path)
    assert damaged(diagnosis) == {"go on", "predict"}
    assert "without its best weights" in said(diagnosis)["go on"]
    assert said(diagnosis)["predict"] == "refused: step-00000002: is missing"


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        examine(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_the_verb_ends_with_2_where_something_is_damaged_and_loads_no_torch(done, as_json):
    probe = (
        "import sys\n"
        "from finetune.cli import main\n"
        "sys.argv = ['finetune', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", probe, "doctor", str(done), *(["--json"] if as_json else [])]
    with locked(done):
        sound = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    (done / "checkpoints" / "step-00000006" / "progress.json").unlink()
    sick = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert (sound.returncode, sick.returncode) == (0, 2), sound.stderr + sick.stderr
    assert sound.stderr == sick.stderr == "False\n"
    if as_json:
        assert json.loads(sound.stdout)["sound"] is True
        document = json.loads(sick.stdout)
        assert document["sound"] is False
        assert document["checkpoints"][-1]["fault"] == "progress.json is missing"
        assert document["goes_on_from"].endswith("step-00000005")
        assert document["predicts_with"] is None
    else:
        lines = dict(line.split("  ", 1) for line in sick.stdout.splitlines())
        assert lines["step-00000006"] == "progress.json is missing"
