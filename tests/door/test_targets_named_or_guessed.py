"""A target in brackets, and one that nobody names."""

import pytest

CONFIG = """
model: {layers: [{type: Linear, out_features: 2}]}
data:
  source: {type: csv, path: d.csv}
  transforms: [{type: stack, columns: [u, v]}]
  KEYS
task: {type: TASK}
optimizer: {type: AdamW, lr: 0.01}
train: {steps: 2, batch_size: 4}
"""


@pytest.fixture
def planned(tmp_path, monkeypatch, command_line):
    """Write a config and call `plan` on it; each row ends with what is given."""
    monkeypatch.chdir(tmp_path)

    def plan(keys, *, task="classification", label="ab", more=""):
        rows = [f"{n / 8},{n % 3}.5,{label[n % 2]}{more and ',yes'}" for n in range(12)]
        (tmp_path / "d.csv").write_text("\n".join([f"u,v,label{more}", *rows]))
        (tmp_path / "c.yaml").write_text(CONFIG.replace("KEYS", keys).replace("TASK", task))
        return command_line("plan", "c.yaml")

    return plan


def test_one_column_of_words_in_brackets_names_the_form_without_them(planned):
    shown = planned("inputs: [u, v]\n  target: [label]")
    assert shown.code == 2
    assert "column 'label' holds 'a' in row 1 of d.csv where a number is needed" in shown.err
    assert "target: label, without brackets, takes a column of labels" in shown.err
    assert not planned("inputs: [u, v]\n  target: label").code


def test_several_columns_of_words_name_a_list_of_tasks(planned):
    shown = planned("inputs: [u, v]\n  target: [label, kind]", more=",kind")
    assert shown.code == 2
    assert "a list of tasks, each with its target" in shown.err


def test_an_input_is_no_guess_for_the_target(planned):
    shown = planned("inputs: [u, v, label]", label="12")
    assert shown.code == 2
    assert "data.target: needs to know which columns are the target" in shown.err
    assert not planned("inputs: [u, v]", label="12").code
