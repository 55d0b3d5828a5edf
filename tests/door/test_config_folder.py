"""Paths and packages beside a config are found from every folder, and no others by that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import finetune
from finetune.config.dumping import dump_config
from finetune.config.loader import load_config
from finetune.errors import FinetuneError, TrustError
from finetune.importing import code_of, import_trusted
from finetune.train.after.trained import evaluate_run
from finetune.train.wire import build_trainer
from finetune.trust import Trust, check_trust

TABLE = "u,v,label\n" + "".join(f"{i},{i % 3},{'ab'[i % 2]}\n" for i in range(20))
CONFIG = {
    "model": {"layers": [{"name": "head", "type": "Linear", "out_features": "classes"}]},
    "data": {
        "source": {"type": "csv", "path": "d.csv"},
        "split": {"test": 0.2},
        "inputs": ["u", "v"],
        "target": "label",
        "transforms": [{"type": "stack"}],
    },
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.1},
    "train": {"epochs": 1},
    "cache": "off",
}
OWN = """
from torch import nn
def net(): return Net()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 2)
    def forward(self, x): return self.map(x)
"""


OWN_TOOLS = "import colorsys, json\ndef make(): return json.dumps(1)\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with its data, and another folder that is the current one."""
    home, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    (home / "d.csv").write_text(TABLE)
    monkeypatch.chdir(elsewhere)
    before = set(sys.modules)
    yield home
    for name in set(sys.modules) - before:
        if name.startswith("door_"):
            del sys.modules[name]


def source(config):
    return Path(config.data.source.path).resolve()


def test_a_path_begins_in_the_folder_of_its_config(project):
    assert source(load_config(project / "c.yaml")) == project / "d.csv"


@pytest.mark.parametrize("pattern", ["d*.csv", "?.csv", "[d].csv"])
def test_a_pattern_begins_in_the_folder_of_its_config(project, pattern):
    config = load_config(project / "c.yaml", [f"data.source.path='{pattern}'"])
    assert [place.found for place in config.places] == [None]
    text = (project / "c.yaml").read_text().replace("path: d.csv", f"path: '{pattern}'")
    (project / "c.yaml").write_text(text)
    assert source(load_config(project / "c.yaml")) == project / pattern


def test_a_run_on_a_pattern_is_evaluated_from_any_folder(project, tmp_path, monkeypatch):
    text = (project / "c.yaml").read_text().replace("path: d.csv", "path: '*.csv'")
    (project / "c.yaml").write_text(text)
    build_trainer(load_config(project / "c.yaml"), "run").fit()
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "elsewhere" / "run", "test")["loss"] > 0


@pytest.mark.parametrize("pattern", ["**.csv", "sub*/d.csv", "e*.csv"])
def test_a_pattern_that_names_no_file_is_found_nowhere(project, pattern):
    text = (project / "c.yaml").read_text().replace("path: d.csv", f"path: '{pattern}'")
    (project / "c.yaml").write_text(text)
    assert [place.found for place in load_config(project / "c.yaml").places] == [None]


def test_a_path_of_an_extended_file_begins_in_the_folder_of_that_file(project, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "top.yaml").write_text("extends: ../project/c.yaml\ntrain: {epochs: 2}\n")
    assert source(load_config(other / "top.yaml")) == project / "d.csv"


def test_a_path_that_is_only_in_the_current_folder_is_found_there(project, tmp_path):
    (project / "d.csv").rename("d.csv")
    assert source(load_config(project / "c.yaml")) == tmp_path / "elsewhere" / "d.csv"


def test_an_override_begins_in_the_current_folder(project, tmp_path):
    Path("mine.csv").write_text(TABLE)
    (project / "mine.csv").write_text("other")
    config = load_config(project / "c.yaml", ["data.source.path=mine.csv"])
    assert source(config) == tmp_path / "elsewhere" / "mine.csv"


def test_of_two_files_the_one_beside_the_config_is_taken_and_that_is_told(project):
    assert [place.note for place in load_config(project / "c.yaml").places] == [None]
    Path("d.csv").write_text(TABLE)
    config = load_config(project / "c.yaml")
    assert source(config) == project / "d.csv"
    assert "is taken, beside the config; there is another" in config.places[0].note
    trainer = build_trainer(config, "run")
    assert trainer is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source.path", "none.csv"),
        ("data.source.within", "nowhere"),
        ("model.weights", {"path": "none.safetensors"}),
    ],
)
def test_a_path_that_is_nowhere_is_told_with_the_folders_that_were_searched(project, key, value):
    config = yaml.safe_load((project / "c.yaml").read_text())
    *above, last = key.split(".")
    here = config
    for step in above:
        here = here[step]
    here[last] = value
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FinetuneError) as error:
        build_trainer(load_config(project / "c.yaml"), "run")
    assert f"looked in {str(project)!r}, where the config is, and in the current folder" in str(
        error.value
    )


@pytest.mark.parametrize("text", ["package:finetune/x", "/none/x.csv", "~/none.csv"])
def test_other_paths_are_left_alone(project, text):
    config = load_config(project / "c.yaml", [f"data.source.path={text}"])
    assert config.data.source.path == text
    assert config.places == ()


def test_a_run_finds_its_data_from_another_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    build_trainer(load_config("c.yaml"), "runs/one").fit()
    saved = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    assert (saved["folder"], saved["data"]["source"]["path"]) == (str(project), "d.csv")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run("project/runs/one", "test")["loss"] > 0
    # the same run goes on, whichever way its config is named
    build_trainer(load_config("project/c.yaml"), "project/runs/one")
    Path("more.csv").write_text(TABLE)
    figures = evaluate_run("project/runs/one", "test", overrides=["data.source.path=more.csv"])
    assert figures["loss"] > 0


def test_data_of_the_current_folder_is_saved_by_its_whole_path(project, tmp_path, monkeypatch):
    (project / "d.csv").rename("d.csv")
    build_trainer(load_config(project / "c.yaml"), "run").fit()
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["data"]["source"]["path"] == str(tmp_path / "elsewhere" / "d.csv")
    build_trainer(load_config(project / "c.yaml"), "run")
    monkeypatch.chdir(project)
    assert evaluate_run(tmp_path / "elsewhere" / "run", "test")["loss"] > 0


def test_a_variable_in_a_path_is_saved_as_its_words(project, monkeypatch):
    (project / "hidden").mkdir()
    (project / "d.csv").rename(project / "hidden" / "d.csv")
    monkeypatch.setenv("DOOR_DATA", "hidden")
    config = yaml.safe_load((project / "c.yaml").read_text())
    config["data"]["source"]["path"] = "${env:DOOR_DATA}/d.csv"
    (project / "c.yaml").write_text(yaml.safe_dump(config))
    loaded = load_config(project / "c.yaml")
    assert source(loaded) == project / "hidden" / "d.csv"
    saved = yaml.safe_load(dump_config(loaded, project / "run"))
    assert saved["data"]["source"]["path"] == "${env:DOOR_DATA}/d.csv"


def with_code(project, name, code=OWN):
    (project / f"{name}.py").write_text(code)
    config = CONFIG | {
        "model": {"layers": [{"name": "own", "type": "import", "path": f"{name}:net"}]}
    }
    (project / "c.yaml").write_text(yaml.safe_dump(config))


def test_a_trusted_module_beside_the_config_is_found_in_training_and_after(project, monkeypatch):
    with_code(project, "door_net")
    config = load_config(project / "c.yaml", trust=["door_net"])
    build_trainer(config, project / "runs" / "one").fit()
    del sys.modules["door_net"]
    assert evaluate_run(project / "runs" / "one", "test", trust=["door_net"])["loss"] > 0
    assert not any(type(finder).__name__ == "_Beside" for finder in sys.meta_path)


def test_a_trusted_module_in_a_run_folder_is_not_found(project, monkeypatch):
    with_code(project, "door_planted")
    run = project / "runs" / "one"
    build_trainer(load_config(project / "c.yaml", trust=["door_planted"]), run).fit()
    del sys.modules["door_planted"]
    (project / "door_planted.py").rename(run / "door_planted.py")
    for text in (None, str(run), "."):
        saved = yaml.safe_load((run / "config.yaml").read_text())
        saved.pop("folder", None)
        (run / "config.yaml").write_text(yaml.safe_dump(saved | ({"folder": text} if text else {})))
        with pytest.raises(FinetuneError, match="no module named 'door_planted'"):
            evaluate_run(run, "test", trust=["door_planted"])
    assert "door_planted" not in sys.modules


def test_a_config_cannot_have_code_looked_for_in_a_folder_that_it_names(project, tmp_path):
    with_code(project, "door_named")
    (tmp_path / "elsewhere" / "c.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((project / "c.yaml").read_text()) | {"folder": str(project)})
    )
    with pytest.raises(FinetuneError, match="no module named 'door_named'"):
        build_trainer(load_config("c.yaml", trust=["door_named"]), "run")


def test_the_folder_shadows_nothing_and_gives_only_what_is_trusted(project):
    for name in ("json", "yaml", "colorsys", "door_other"):
        (project / f"{name}.py").write_text("raise SystemExit(9)\n")
    (project / "door_own.py").write_text(
        "import colorsys, json\ndef make(): return json.dumps(1)\n"
    )
    trust = check_trust(["door_own", "yaml"], project)
    assert import_trusted("door_own:make", trust, key=())() == "1"
    assert import_trusted("yaml:dump", trust, key=()) is yaml.dump
    with pytest.raises(FinetuneError):
        import_trusted("door_other:make", trust, key=())


def test_a_module_that_lies_nowhere_is_told_with_the_folder(project):
    with pytest.raises(FinetuneError, match="neither installed nor in the folder"):
        import_trusted("door_none:make", Trust(frozenset({"door_none"}), project), key=())


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("./mynet.py:Net", "path: mynet:Net and --trust mynet"),
        ("mynet.py:make", "path: mynet:make and --trust mynet"),
        ("nets/mynet.py:Net", "path: nets.mynet:Net and --trust nets"),
        ("mynet", "such as mynet:Net"),
    ],
)
def test_a_file_named_as_code_is_told_as_a_module(path, hint):
    with pytest.raises(FinetuneError) as error:
        import_trusted(path, ["mynet"], key=())
    assert hint in error.value.hint


@pytest.mark.parametrize("name", ["./mynet.py", "mynet.py", "mynet/"])
def test_a_file_named_as_trusted_is_told_as_a_module(name):
    with pytest.raises(TrustError) as error:
        check_trust([name])
    assert error.value.hint == "--trust mynet"


@pytest.mark.slow
def test_the_command_finds_data_and_code_from_another_folder(project):
    with_code(project, "door_command")
    command = [sys.executable, "-m", "finetune"]
    path = str(Path(finetune.__file__).parents[1])
    done = subprocess.run(
        [*command, "plan", "../project/c.yaml", "--trust", "door_command"],
        env=os.environ | {"PYTHONPATH": path}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_code_beside_the_config_counts_as_the_code_of_a_run(project):
    trust = check_trust(["door_hashed"], project)
    (project / "door_hashed.py").write_text("number = 1\n")
    before = code_of(trust)
    (project / "door_hashed.py").write_text("number = 2\n")
    assert code_of(trust) != before
