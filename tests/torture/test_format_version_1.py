"""A run folder in format version 1 can be gone on with and predicted from, now and later.

`corpus/version-1` is the run of `small_runs.py` with the best by `validation/loss` kept, stopped
in step 4; `corpus/version-1.json` tells what it predicted then and how it ended. Both are as the
release that defined version 1 wrote them. Nothing here may ever be written anew to make a test
pass: a new format gets a new number, and a folder of its own.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from finetune.config.loader import load_config
from finetune.predict import load_predictor
from finetune.runs.doctor import examine
from finetune.runs.kept import Checkpoints
from finetune.train.wire import build_trainer

CORPUS = Path(__file__).with_name("corpus")


@pytest.fixture
def old(tmp_path):
    """A copy of the old run."""
    shutil.copytree(CORPUS / "version-1", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def expected():
    return json.loads((CORPUS / "version-1.json").read_text())


def test_it_is_whole(old):
    checkpoints = Checkpoints(old / "checkpoints", keep_last=1)
    assert [checkpoints.fault(path) for path in checkpoints.all()] == [None, None]
    assert examine(old).is_sound


def test_a_run_goes_on_from_it_and_ends_as_it_did_then(old, expected):
    trainer = build_trainer(load_config(old / "config.yaml"), old)
    assert trainer.progress.step == 3
    assert (trainer.progress.best.step, len(trainer.progress.ranking)) == (2, 1)
    assert len(trainer.optimizer.state) == 4
    progress = trainer.fit()
    assert progress.step == 6
    # other machines round otherwise
    assert progress.metrics["validation/loss"] == pytest.approx(expected["validation/loss"], 1e-4)
    for name, tensor in trainer.model.state_dict().items():
        then = torch.tensor(expected["weights"][name], dtype=tensor.dtype)
        torch.testing.assert_close(tensor, then, rtol=1e-4, atol=1e-5)


def test_it_predicts_what_it_did_then(old, expected):
    predictions = load_predictor(old)(torch.tensor(expected["inputs"]))
    now = torch.tensor([prediction.values for prediction in predictions])
    torch.testing.assert_close(now, torch.tensor(expected["predictions"]), rtol=1e-4, atol=1e-5)


def test_its_first_manifests_had_no_digest_of_their_own(old, expected):
    for path in (old / "checkpoints").glob("*/MANIFEST.json"):
        document = json.loads(path.read_text())
        del document["blake2b"]
        path.write_text(json.dumps(document))
    test_it_is_whole(old)
    test_it_predicts_what_it_did_then(old, expected)
