"""The page about methods shows every method, and of each what `plan` says of its phases."""

import re
from pathlib import Path

import pytest

from finetune.config.freeze import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
CONFIGS = dict(re.findall(r"^```yaml\n# (\w+)\.yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
PLANS = dict(re.findall(r"plan (\w+)\.yaml` says .*?```text\n(.*?)```", PAGE, re.DOTALL))
TOLD = re.compile(r"(phase \d+: |steps \d|every \d|trained |the whole run takes )")


def test_the_page_has_every_method():
    told = "docs/methods/index.md has a section for each method, in the order of `Method`"
    assert list(PLANS) == list(METHODS), told
    assert set(CONFIGS) == {"small_network", *METHODS}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_its_phases_are_what_plan_prints(method, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    lines = command_line("plan", f"{method}.yaml").out.splitlines()
    assert [line for line in lines if TOLD.match(line)] == PLANS[method].splitlines()
