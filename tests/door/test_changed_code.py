"""A run knows the code that it was trained with: where that has changed, a line says so."""

import importlib
import sys

import pytest

from finetune.importing import code_by_package
from finetune.train.after.trained import load_run
from finetune.train.wire import build_trainer

NAME = "nets_that_change"
CODE = "from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 3)\n"
TRUST = (NAME,)


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The file of a trusted module; the process keeps what it has imported of it."""
    file = tmp_path / "code" / f"{NAME}.py"
    file.parent.mkdir()
    file.write_text(CODE)
    monkeypatch.syspath_prepend(str(file.parent))
    yield file
    sys.modules.pop(NAME, None)


@pytest.fixture
def go_on(small_config, tmp_path, heard):
    """Train for some steps in the folder of the run; return all lines said."""

    def train(steps):
        layers = [{"name": "own", "type": "import", "path": f"{NAME}:make"}]
        train = {"steps": steps, "batch_size": 8}
        config = small_config(model={"layers": layers}, train=train, trust=TRUST)
        heard.said.clear()
        build_trainer(config, tmp_path / "run", tracker=heard).fit()
        return heard.said

    return train


def notes(run):
    return [note for note in load_run(run, trust=TRUST).notes if "the code of" in note]


def test_code_that_has_changed_is_told_where_a_run_is_used_and_goes_on(code, go_on, tmp_path):
    go_on(2)
    assert notes(tmp_path / "run") == []
    assert not any("changed code" in line for line in go_on(3))
    code.write_text(CODE.replace("Linear(4, 3)", "Linear(4, 3).double().float()"))
    (note,) = notes(tmp_path / "run")
    assert note == f"the code of '{NAME}' has changed since the run: outputs may be others"
    assert f"goes on with changed code of '{NAME}'" in go_on(4)
    # the last steps were trained with the code as it is now
    assert notes(tmp_path / "run") == []


def test_code_that_lies_elsewhere_is_the_same_code(code, tmp_path, monkeypatch):
    here = code_by_package(TRUST)
    other = tmp_path / "moved"
    code.parent.rename(other)
    monkeypatch.syspath_prepend(str(other))
    importlib.invalidate_caches()
    assert code_by_package(TRUST) == here != {}
