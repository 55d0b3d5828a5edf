"""Every mistake in the phases is told at once, a line each, before a step is taken."""

import re

import pytest

from finetune.config.loader import load_config
from finetune.errors import ConfigError, SeveralFaultsError
from finetune.train.build import build_parts

REST = """\
model:
  layers:
    - {name: first, type: Linear, out_features: 8}
    - {name: net, type: import, path: "trap_nets:Tied", args: {width: 8}}
    - {name: head, type: Linear, out_features: classes}
data: {source: {type: sklearn, name: iris}, split: {validation: 0.2}}
task: {type: classification}
optimizer: {type: AdamW, lr: 1e-3}
train: {epochs: 4, batch_size: 16}
"""
BY_THE_SCHEMA = """\
freeze:
  phases:
    - name: typo
      fraeze: ["first"]
      until: {epochs: 1}
    - name: two triggers
      freeze: ["first"]
      until: {epochs: 1, steps: 4}
    - name: both
      freeze: ["first"]
      train: ["head"]
      until: {epoch: 1}
    - name: endless
      freeze: ["first"]
    - name: last
      freeze: ["first"]
      restore: best
      lr: {"head": fast}
"""
BY_THE_MODEL = """\
freeze:
  phases:
    - name: nothing
      freeze: [{all: true}]
      until: {epochs: 1}
    - name: deep
      train: [{depth: "7:"}]
      until: {epochs: 1}
    - name: tied
      train: [{all: true}, "!net.shared", "hed"]
      until: {epochs: 1}
    - name: rates
      freeze: ["first"]
      lr: {"fist": 1e-3, "first": 1e-4}
      until: {plateau: validation/acuracy, at_most: {epochs: 1}}
    - name: never logged
      freeze: ["head"]
      until: {plateau: train/loss, at_most: {epochs: 1}}
    - name: last
      freeze: ["head"]
      lr: {"head": 1e-3}
"""


@pytest.fixture
def told(tmp_path, monkeypatch, request):
    """Return what is said of a config: line, key and message of each fault."""
    monkeypatch.syspath_prepend(request.path.parent)
    monkeypatch.chdir(tmp_path)

    def ask(freeze):
        (tmp_path / "wrong.yaml").write_text(freeze + REST, encoding="utf-8")
        with pytest.raises((ConfigError, SeveralFaultsError)) as caught:
            build_parts(load_config("wrong.yaml", trust=["trap_nets"]))
        lines = [line for line in str(caught.value).splitlines() if not line.startswith("    ")]
        found = [re.fullmatch(r"wrong\.yaml:(\d+): ([\w. /]+): (.*)", line) for line in lines]
        assert all(found), lines
        return [(int(match[1]), match[2], match[3]) for match in found]

    return ask


def test_what_the_schema_finds_wrong_with_phases_is_told_all_at_once(told):
    one = "needs exactly one of "
    assert told(BY_THE_SCHEMA) == [
        (3, "freeze.phases.0", f"{one}'freeze' and 'train', got neither"),
        (4, "freeze.phases.0.fraeze", "unknown key"),
        (8, "freeze.phases.1.until", f"{one}epochs, steps, fraction, plateau, "
            "got {epochs: 1, steps: 4}"),
        (9, "freeze.phases.2", f"{one}'freeze' and 'train', got both"),
        (12, "freeze.phases.2.until", f"{one}epochs, steps, fraction, plateau, got {{epoch: 1}}"),
        (13, "freeze.phases.3", "needs 'until': only the last phase may do without"),
        (17, "freeze.phases.4.restore", "unknown key"),
        (18, "freeze.phases.4.lr.head", "needs a number, got 'fast'"),
    ]  # fmt: skip


def test_what_does_not_fit_the_model_or_the_run_is_told_all_at_once_in_the_order_of_lines(told):
    logged = "is ever logged; there are: validation/accuracy, validation/loss"
    assert told(BY_THE_MODEL) == [
        (4, "freeze.phases.0.freeze",
         "phase 'nothing' trains nothing: all 7 parameters are frozen"),
        (7, "freeze.phases.1.train.0", "{depth: 7:} takes no parameter"),
        (10, "freeze.phases.2.train.2", "'hed' takes no parameter"),
        (10, "freeze.phases.2.train.1", "'net.up.weight' and 'net.shared.weight' are one tied "
             "tensor, but {all: true} takes it and not 'net.shared' takes it out"),
        (14, "freeze.phases.3.lr.fist.0", "'fist' takes no parameter"),
        (14, "freeze.phases.3.lr.first", "a rate for 'first', which phase 'rates' holds frozen"),
        (15, "freeze.phases.3.until", f"no metric 'validation/acuracy' {logged}"),
        (18, "freeze.phases.4.until", f"no metric 'train/loss' {logged}"),
        (21, "freeze.phases.5.lr.head", "a rate for 'head', which phase 'last' holds frozen"),
    ]  # fmt: skip
