"""What several tests at the door share: calls of the command line, faults of a config."""

import json

import pytest

from finetune.config.loader import load_config
from finetune.errors import FinetuneError


@pytest.fixture
def call(command_line):
    """Call the command line, which must end well; return what a shell would show."""

    def run(*arguments):
        shown = command_line(*arguments)
        assert not shown.code, shown.err
        return shown

    return run


@pytest.fixture
def predict(call, tmp_path):
    """Call `predict` on the run in `run`; return labels and what was told."""

    def labels(*arguments):
        shown = call("predict", tmp_path / "run", *arguments)
        return [json.loads(line)["label"] for line in shown.out.splitlines()], shown.err

    return labels


@pytest.fixture
def fault(config_file):
    """Return what is told of a config with overrides; each test file writes its `config_file`."""

    def load(*overrides):
        with pytest.raises(FinetuneError) as error:
            load_config(config_file, overrides)
        return str(error.value)

    return load
