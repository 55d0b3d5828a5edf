"""Numbers that a cross entropy cannot take for shares or probabilities are told."""

import pytest

CONFIG = """
model: {layers: [{name: head, type: Linear, out_features: 2}]}
data: {source: {type: csv, path: d.csv}, inputs: [u], target: [v, w], transforms: [{type: stack}]}
task: {type: regression, losses: [{type: LOSS}]}
optimizer: {type: SGD, lr: 0.01}
train: {steps: 1, batch_size: 4}
cache: off
"""
IN_LIST = """
model: {layers: [{name: head, type: Linear, out_features: 1}]}
data: {source: {type: csv, path: d.csv}, inputs: [u], transforms: [{type: stack}]}
task: [{name: one, type: regression, output: head, target: v, losses: [{type: LOSS}]}]
optimizer: {type: SGD, lr: 0.01}
train: {steps: 1, batch_size: 4}
cache: off
"""
SHARES = [(0.25, 0.75), (0.3333, 0.6667), (1, 0), (0, 1)]
PROBABILITIES = [(0.9, 0.8), (0, 1), (1, 1), (0.1, 0)]


@pytest.fixture
def told(config_file, tmp_path, command_line):
    """Plan on two columns of numbers; return what is told."""

    def plan(rows, loss, config=CONFIG):
        lines = "".join(f"{n},{v},{w}\n" for n, (v, w) in enumerate(rows))
        (tmp_path / "d.csv").write_text(f"u,v,w\n{lines}")
        config_file.write_text(config.replace("LOSS", loss))
        shown = command_line("plan", config_file)
        assert shown.code == 0, shown.err
        return shown.out

    return plan


@pytest.mark.parametrize("odd", [(0.5, 0.6), (-0.5, 1.5), (3, 4)])
def test_shares_that_do_not_add_up_to_1_or_are_below_0_are_told(told, odd):
    assert "cross_entropy takes the numbers" not in told(SHARES, "cross_entropy")
    out = told([*SHARES, odd], "cross_entropy")
    assert "1 of 5 samples looked at have others" in out
    assert "task.losses.0" in out


@pytest.mark.parametrize("odd", [(0.5, -0.1), (1.5, 0), (3, 4)])
def test_so_are_probabilities_beyond_0_and_1(told, odd):
    assert "takes the numbers" not in told(PROBABILITIES, "binary_cross_entropy")
    out = told([*PROBABILITIES, odd], "binary_cross_entropy")
    assert "for probabilities, from 0 to 1, and 1 of 5 samples looked at have others" in out


def test_so_are_those_of_a_task_in_a_list(told):
    out = told([(0.5, 0), (7, 0), (0.1, 0)], "binary_cross_entropy", IN_LIST)
    assert "1 of 3 samples looked at have others" in out
    assert "task.0.losses.0" in out or "task.tasks.0.losses.0" in out


def test_numbers_compared_as_numbers_need_no_note(told):
    assert "takes the numbers" not in told([(3, 4), (5, -6)], "mse")
