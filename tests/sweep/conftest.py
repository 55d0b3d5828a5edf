"""A study on disk whose trials need no training, and the config of a small sweep."""

import pytest
import yaml

SMALL = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "act", "type": "Tanh"},
            {"name": "head", "type": "Linear", "out_features": 1},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 60, "features": 4, "targets": 1},
        "split": {"validation": 0.3},
    },
    "task": {"type": "regression"},
    "optimizer": {"type": "SGD", "lr": 0.05},
    "train": {"epochs": 2, "batch_size": 8},
    "tracking": {"to": [], "report": False},
    "sweep": {
        "trials": 4,
        "search": {
            "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "freeze": [["body"], ["body.bias"]],
        },
    },
}


@pytest.fixture
def finetune(tmp_path, monkeypatch, command_line):
    """Run a verb in the scratch folder and return what a shell would show."""
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture
def write(tmp_path):
    """Write `c.yaml`, a small sweep; `changes` replace keys of its section `sweep`."""

    def write(**changes):
        config = SMALL | {"sweep": SMALL["sweep"] | changes}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "c.yaml"

    return write


@pytest.fixture
def claims_of(tmp_path):
    """Return claims on a study over two keys, in a file of the scratch folder."""
    from finetune.config.sweep_keys import SweepConfig
    from finetune.sweep.claims import Claims
    from finetune.sweep.judging import SweepFigure
    from finetune.sweep.proposals import Proposals
    from finetune.sweep.search_space import SearchSpace
    from finetune.sweep.studies import Storage

    def make(url=None, *, wanted=6, sampler="tpe", search=None, name="study"):
        search = search or {"x": {"low": 0.0, "high": 1.0}, "k": [1, "1", None, [1]]}
        space = SearchSpace(SweepConfig.model_validate({"search": search}).search)
        judged = SweepFigure("validation/loss", "minimize")
        storage = Storage(url or f"journal:{tmp_path / 'study.log'}")
        study = storage.open(name, judged.direction)
        return Claims(storage, study, Proposals(space, judged, sampler, 0), wanted)

    return make
