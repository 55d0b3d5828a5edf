"""A target that is the same for all samples of a part is told, by `plan` and by `train`."""

import pytest
import torch

from finetune.config.task_keys import SegmentationTask
from finetune.data.targets import class_counts
from finetune.data.targets.target_units import notes_on_units

NUMBERS = """
model: {layers: [{name: head, type: Linear, out_features: 1}]}
data: {source: {type: csv, path: d.csv}, inputs: [u, v], target: y, transforms: [{type: stack}]}
task: {type: regression}
optimizer: {type: SGD, lr: 0.01}
train: {steps: 1, batch_size: 4}
cache: off
"""
CONFIG = NUMBERS.replace("out_features: 1", "out_features: classes").replace(
    "type: regression", 'type: multilabel, separator: " "'
)


@pytest.fixture
def told(config_file, tmp_path, command_line):
    """Write a table with these targets and plan on it; return what is told."""

    def plan(targets, config=CONFIG):
        (tmp_path / "d.csv").write_text(
            "u,v,y\n" + "".join(f"{n},{n % 3},{y}\n" for n, y in enumerate(targets))
        )
        config_file.write_text(config)
        shown = command_line("plan", config_file)
        assert shown.code == 0, shown.err
        return shown.out

    return plan


def test_numbers_that_are_all_the_same_are_told(told):
    assert "column 'y' is 3 in all 8 samples of the train part" in told([3] * 8, NUMBERS)
    assert "samples of the train part" not in told([3] * 7 + [3.5], NUMBERS)


def test_so_are_those_of_a_validation_part(told, tmp_path):
    (tmp_path / "v.csv").write_text("u,v,y\n1,2,7\n2,3,7\n")
    parts = "train: {type: csv, path: d.csv}, validation: {type: csv, path: v.csv}"
    out = told([1, 2, 3, 4], NUMBERS.replace("source: {type: csv, path: d.csv}", parts))
    assert "column 'y' is 7 in all 2 samples of the validation part: it measures little" in out


def test_numbers_to_learn_in_another_unit_are_told(told, tmp_path):
    parts = "train: {type: csv, path: d.csv}, validation: {type: csv, path: v.csv}"
    config = NUMBERS.replace("source: {type: csv, path: d.csv}", parts)

    def of_validation(targets):
        rows = "".join(f"{n},1,{y}\n" for n, y in enumerate(targets))
        (tmp_path / "v.csv").write_text(f"u,v,y\n{rows}")
        out = " ".join(told([1.5, 2.5, 3.5, 4.5, 5.5], config).split())
        return "column 'y' to learn: most are" in out

    for factor, is_told in ((1000, True), (0.001, True), (1, False), (3, False)):
        assert of_validation([factor * y for y in (1.5, 2, 3, 4, 5)]) is is_told
    # Few of them may lie anywhere.
    assert not of_validation([1500, 2500])


def test_a_few_numbers_far_from_the_others_are_no_other_unit():
    prices = torch.arange(1.0, 101).repeat(10)
    far = torch.cat([prices, torch.tensor([1e8])])
    for train, validation in ((far, prices), (prices, prices[:50]), (far, far[-51:])):
        assert notes_on_units({"train": train, "validation": validation}, "y") == []
    [note] = notes_on_units({"train": prices, "test": far * 1000}, "y")
    assert "6,000 to 9.6e+04 in the test part, 6 to 95 in training" in note


def test_of_many_targets_some_are_looked_at():
    train, held = torch.arange(1_000_000.0), torch.arange(3000.0).reshape(30, 100)
    assert notes_on_units({"train": train, "validation": train}, "y") == []
    [note] = notes_on_units({"train": held, "validation": held * 1e6}, "y")
    assert note.startswith("number 0 of column 'y' to learn: most are")


def test_of_several_numbers_the_constant_ones_are_counted(told):
    two = NUMBERS.replace("target: y", "target: [v, y]").replace("[u, v]", "[u]")
    out = told([5] * 4, two.replace("out_features: 1", "out_features: 2"))
    assert (
        "1 of 2 numbers of column 'v, y' is 5 in all 4 samples of the train part: "
        "nothing can be learned from it" in out
    )


def test_a_constant_number_is_written_with_its_digits(told):
    assert "column 'y' is 1234567 in all 4 samples" in told([1234567] * 4, NUMBERS)
    assert "column 'y' is 5.1 in all 4 samples" in told([5.1] * 4, NUMBERS)


def test_of_a_few_masks_nothing_is_said_of_all_pixels():
    counts = class_counts.Counted(torch.tensor([0, 40]), 40, are_labels=False)
    [absent, same] = class_counts.notes_on_classes(
        {"train": counts},
        ["sky", "road"],
        SegmentationTask(type="segmentation"),
        looked_at={"train": "200 train masks looked at"},
    )
    assert absent == "200 train masks looked at have no pixel of class 'sky'"
    assert same == "all 40 pixels of 200 train masks looked at have class 'road'"


def test_a_label_of_all_samples_is_told(told):
    labels = ["p q", "p", "p r", "p q r"]
    out = told(labels)
    assert "all 4 training samples have label 'p': nothing can be learned of it" in out


def test_train_tells_it_too(told, tmp_path, command_line):
    told([3] * 8, NUMBERS)
    shown = command_line("train", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert "column 'y' is 3 in all 8 samples of the train part" in shown.out + shown.err
