"""Settings of the whole test run, made before any library reads them; fixtures for all rooms."""

import copy
import os
import shutil
from typing import NamedTuple

import pytest

from finetune.cli import main
from finetune.redaction import _Secrets

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The networks of the tests are small: more threads would spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_SMALL = {
    "seed": 0,
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "act", "type": "Tanh"},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {"source": {"type": "random", "samples": 40, "features": 4, "targets": 3}},
    "task": {"type": "regression"},
    "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
    "train": {"steps": 6, "batch_size": 8, "log_every": 1},
    # What tests count are the calls of the run itself, not those that look for a prefix.
    "cache": "off",
}


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory):
    """Keep what runs store away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def secrets_of_the_test(monkeypatch):
    """Let no test see the secrets of another: the process remembers them."""
    monkeypatch.setattr("finetune.redaction._SECRETS", _Secrets())


@pytest.fixture(autouse=True)
def proxies_of_the_test(monkeypatch):
    """Let no test use the proxy of another: urllib keeps the one that it found first."""
    monkeypatch.setattr("urllib.request._opener", None)


@pytest.fixture
def always(monkeypatch):
    """Let the activation cache be used however little it would save.

    What it saves is measured: on a busy machine the small networks of the tests save nothing.
    """
    monkeypatch.setattr("finetune.activations.estimate._READ_BYTES_PER_S", 1e18)
    monkeypatch.setattr("finetune.activations.estimate._READ_S_PER_SAMPLE", 0.0)
    for name in ("_WORTH_TRYING", "_TRYING_PASSES", "_LEAST_SHARE"):
        monkeypatch.setattr(f"finetune.activations.estimate.{name}", 0)


class Outcome(NamedTuple):
    """What a shell shows of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Call the command line in this process; return what a shell would show."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["finetune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Outcome(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def started():
    """A list for processes that a test starts; those still alive are killed when it is over."""
    processes = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def small_config():
    """Make the config of a tiny network on random numbers; `changes` replace whole sections."""
    # torch takes seconds to load: tests of the config alone do without
    from finetune.config.run import Provenance, RunConfig

    def make(*, trust=(), **changes):
        config = RunConfig.model_validate(_SMALL | changes)
        return config.with_provenance(Provenance(trust=frozenset(trust)), {})

    return make


@pytest.fixture
def heard():
    """A tracker that keeps the lines that a run says, in `said`."""
    from finetune.tracking.tracker import Tracker

    class Heard(Tracker):
        def __init__(self):
            self.said = []

        def message(self, text):
            self.said.append(text)

    return Heard()


@pytest.fixture
def small_run(small_config, tmp_path):
    """Build such a run; `run` names its folder below `tmp_path`."""
    from finetune.train.wire import build_trainer

    def build(run="run", *, fresh=False, **changes):
        return build_trainer(small_config(**changes), tmp_path / run, fresh=fresh)

    return build


_DIGITS = {
    "seed": 0,
    "model": {
        "layers": [
            {"name": "flat", "type": "Flatten"},
            {"name": "body", "type": "Linear", "out_features": 16},
            {"name": "norm", "type": "BatchNorm1d"},
            {"name": "relu", "type": "ReLU"},
            {"name": "drop", "type": "Dropout", "p": 0.2},
            {"name": "head", "type": "Linear", "out_features": "classes"},
        ]
    },
    "data": {
        "source": {"type": "sklearn", "name": "digits"},
        "split": {"validation": 0.1, "test": 0.7, "stratify": True},
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
    "train": {"steps": 20, "batch_size": 32, "evaluate_every": {"steps": 10}},
}


def _merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if nested else value
    return result


@pytest.fixture
def make_config():
    """Make the config of a small run on scikit-learn's digits, with changes to its keys."""
    from finetune.config.run import RunConfig

    def make(**changes):
        return RunConfig.model_validate(_merged(copy.deepcopy(_DIGITS), changes))

    return make


@pytest.fixture
def make_trainer(make_config, tmp_path):
    """Build a trainer; `run` names its folder below `tmp_path`."""
    from finetune.train.wire import build_trainer

    def make(run="run", fresh=False, **changes):
        return build_trainer(make_config(**changes), tmp_path / run, fresh=fresh)

    return make


@pytest.fixture
def hashed(monkeypatch):
    """A list of the names of files that are hashed in this process from here on."""
    # It loads torch, which tests of the config alone do without.
    from finetune.data.hashes import contents

    names = []
    hash_file = contents.hash_file

    def counted(file, name, *what):
        names.append(name)
        return hash_file(file, name, *what)

    monkeypatch.setattr(contents, "hash_file", counted)
    monkeypatch.setattr("finetune.data.hashes.item_contents.hash_file", counted)
    return names


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, driven by playwright."""
    # most tests need no browser, and should not wait for the import
    from playwright.sync_api import sync_playwright

    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.fail("this test needs Chromium; on Debian: apt-get install chromium", pytrace=False)
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
