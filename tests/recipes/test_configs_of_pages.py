"""Every config that README and docs print is trained to its end as it stands there.

Told are only the places of data and weights: networks of the hub and of packages become small ones
of random weights. Those of docs/start, trained to a prediction, are in tests/door; the plans of
those of docs/methods in tests/test_methods_page.py.
"""

import json
import re
import sys

import pytest
from data_of_pages import CONFIGS, MAKERS, ROOT, texts

from finetune import build_trainer, load_config

ELSEWHERE = {"start/texts.md", "start/images.md", "start/tables.md", "methods/index.md"}
MISTAKEN = {"broken.yaml"}
ENDS_BY_PLATEAU = {"from_scheduler.yaml"}
"""Its first phase may take all epochs, as that of the scheduler it is compared with may."""
SHOWN = [
    name
    for page, configs in CONFIGS.items()
    for name in configs
    # "configs/bbc_news.yaml" ships, and the README's own test trains it.
    if page not in ELSEWHERE and name not in MISTAKEN and "/" not in name
] + ["pretrained.yaml"]


def test_each_maker_has_its_config():
    assert set(MAKERS) <= set(SHOWN)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train a config of the pages, in a folder that has all of them; return its summary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for configs in CONFIGS.values():
        for name, text in configs.items():
            if "/" not in name:
                (tmp_path / name).write_text(text, "utf-8")

    def train(name, run="run"):
        told = MAKERS.get(name, texts)(tmp_path)
        changes = [f"{key}={value}" for key, value in told.items()]
        config = load_config(name, changes, trust=["my_pkg"])
        build_trainer(config, tmp_path / run).fit(quiet=True)
        return json.loads((tmp_path / run / "summary.json").read_text())

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_config_of_a_page_trains_to_its_end(name, trained):
    summary = trained(name)
    assert (summary["status"], summary["proof_intact"]) == ("done", True)
    if name not in ENDS_BY_PLATEAU:
        assert summary["never_ran"] == []


@pytest.mark.slow
def test_the_python_of_the_page_on_serving_runs(trained, capsys):
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    (source,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for run in ("runs/topic", "runs/tone"):
        trained("texts.yaml", run)
    found = {}
    exec(compile(source, "serve.md", "exec"), found)
    assert found["predictions"].keys() == {"tone"}
    assert "Linear" in capsys.readouterr().out
