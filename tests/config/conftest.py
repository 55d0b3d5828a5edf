"""A config that is right, and a way to write one down."""

import pytest

GOOD = """\
seed: 0
model:
  layers:
    - {name: encoder, type: transformers, path: somewhere}
    - name: head
      type: Linear
      out_features: classes
data:
  source: {type: textfolder, path: texts}
  split: {validation: 0.1, test: 0.2}
task: {type: classification}
freeze: [encoder, {kind: bias}]
optimizer: {type: AdamW, lr: 1e-3}
train:
  epochs: 10
  checkpoint:
    keep_last: 3
"""


@pytest.fixture
def good():
    return GOOD


@pytest.fixture
def write(tmp_path):
    """Write a text to a file and return its path."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
