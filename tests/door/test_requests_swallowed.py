"""A signal that a library has swallowed ends predict, eval and export at the next sample."""

import signal

import pytest

from finetune.process import Interrupted, answered, interrupt

CONFIG = """\
model: {layers: [{name: head, type: Linear, out_features: classes}]}
data:
  source: {type: csv, path: d.csv}
  inputs: [u, v]
  target: label
  transforms: [{type: stack}]
  split: {test: 0.5}
task: {type: classification}
optimizer: {type: SGD, lr: 0.1}
train: {steps: 2, batch_size: 4}
"""


@pytest.fixture
def swallowed():
    """Ask the process to end, and pass over it as a library does."""

    def ask():
        with pytest.raises(Interrupted):
            interrupt(signal.SIGINT)

    yield ask
    answered()


@pytest.fixture
def trained(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{n},{n % 3},{'ab'[n % 2]}\n" for n in range(16))
    (tmp_path / "d.csv").write_text(f"u,v,label\n{rows}")
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert command_line("train", "c.yaml", "--run", "run").code == 0
    return command_line


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "run", "d.csv"],
        ["predict", "run", "d.csv", "--out", "out.csv"],
        ["eval", "run"],
        ["export", "run", "--format", "torch", "--out", "made"],
    ],
    ids=["predict", "predict to a file", "eval", "export"],
)
def test_a_request_that_was_swallowed_still_ends_the_verb(trained, swallowed, tmp_path, arguments):
    swallowed()
    shown = trained(*arguments)
    assert shown.code == 130
    assert "interrupted by SIGINT" in shown.err
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "made").exists()
    assert trained(*arguments).code == 0
