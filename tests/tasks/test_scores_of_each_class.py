"""`per_class`: the score of each class beside the mean, against second implementations."""

import json
import random

import numpy as np
import pytest
import torch
from compared_metrics import CASES, measured, task_of
from nervaluate import Evaluator
from pydantic import TypeAdapter, ValidationError
from sklearn import metrics as sk

from finetune.config.task_keys import Task as TaskConfig
from finetune.config.task_list_keys import ShortTask
from finetune.data.batches import Batch
from finetune.data.media.pixel_classes import IGNORED
from finetune.errors import FinetuneError
from finetune.tasks.build_task import build_task
from finetune.tasks.task_facts import TrainingClasses, TrainingCounts
from finetune.train.wire import build_trainer

COUNTED = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
LABELS = [0, 1, 2]


def assert_each(found, left_out, name, scores, present):
    """Compare the scores of classes c0, c1 ...; that of a class without samples is left out."""
    for number, score in enumerate(scores):
        tag = f"{name}/c{number}"
        if number in present:
            assert found[tag] == pytest.approx(score, abs=1e-6), tag
        else:
            assert tag not in found
            assert left_out[tag] == f"nothing is of class 'c{number}'"


def test_those_of_classes_are_those_of_scikit_learn():
    task, absent = task_of("classification", ["accuracy", *COUNTED], 3, per_class=True), 0
    for seed in range(CASES):
        draw = np.random.default_rng(seed)
        count = draw.integers(1, 30)
        logits = draw.normal(size=(count, 3)).astype(np.float32)
        target = draw.integers(draw.integers(1, 4), size=count)
        found, left_out = measured(task, torch.tensor(logits), torch.tensor(target))
        assert "accuracy/c0" not in found
        for name, function in COUNTED.items():
            of = {"labels": LABELS, "average": None, "zero_division": 0}
            scores = function(target, logits.argmax(1), **of)
            assert_each(found, left_out, name, scores, set(target))
            absent += len(set(target)) < 3
    assert absent > 100


def test_those_of_labels_are_those_of_scikit_learn():
    task = task_of("multilabel", ["accuracy", *COUNTED], 3, per_class=True, threshold=0.3)
    for seed in range(CASES):
        draw = np.random.default_rng(seed)
        count = draw.integers(1, 25)
        logits = draw.normal(size=(count, 3)).round(1).astype(np.float32) * 3
        target = (draw.random((count, 3)) < draw.random()).astype(np.float32)
        found, left_out = measured(task, torch.tensor(logits), torch.tensor(target))
        said = 1 / (1 + np.exp(-logits)) >= 0.3
        present = {*target.any(0).nonzero()[0]}
        for name, function in COUNTED.items():
            scores = function(target, said, average=None, zero_division=0)
            assert_each(found, left_out, name, scores, present)
        assert_each(found, left_out, "accuracy", (said == target).mean(0), present)


def of_pixels(metrics):
    node = {"type": "segmentation", "metrics": metrics, "per_class": True}
    names = ("c0", "c1", "c2")
    config = TypeAdapter(TaskConfig).validate_python(node | {"classes": names})
    return build_task(config, classes=names, trust=(), device=torch.device("cpu"))


def test_those_of_pixels_are_those_of_scikit_learn():
    metrics = ["mean_iou", "dice", "pixel_accuracy"]
    task = of_pixels(metrics)
    for seed in range(CASES):
        draw = np.random.default_rng(seed)
        count = draw.integers(1, 4)
        logits = draw.normal(size=(count, 3, 4, 5)).astype(np.float32)
        target = draw.integers(draw.integers(1, 4), size=(count, 4, 5))
        target[draw.random(target.shape) < 0.2] = IGNORED
        found, left_out = measured(task, torch.tensor(logits), torch.tensor(target))
        is_there = target != IGNORED
        pair = target[is_there], logits.argmax(1)[is_there]
        of = {"labels": LABELS, "average": None, "zero_division": 0}
        for name, function in (("iou", sk.jaccard_score), ("dice", sk.f1_score)):
            assert_each(found, left_out, name, function(*pair, **of), set(pair[0]))
        assert "pixel_accuracy/c0" not in found


TAGS = ("B-org", "B-per", "I-org", "I-per", "O")


def entities(**keys):
    node = {"type": "token_classification", "metrics": list(COUNTED), "per_class": True} | keys
    config = TypeAdapter(TaskConfig).validate_python(node)
    return build_task(config, classes=TAGS, trust=(), device=torch.device("cpu"))


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_those_of_entities_are_those_of_nervaluate(first):
    task = entities()
    for seed in range(first, first + 50):
        draw = random.Random(seed)
        rows = [draw.choices(TAGS, [1, 1, 2, 2, 3], k=9) for _ in range(draw.randint(1, 4))]
        said = [[tag if draw.random() < 0.6 else draw.choice(TAGS) for tag in r] for r in rows]
        # Sometimes without an entity of one type.
        if seed % 3 == 0:
            rows = [[tag.replace("per", "org") for tag in row] for row in rows]
        target, best = (
            torch.tensor([[TAGS.index(tag) for tag in row] for row in some])
            for some in (rows, said)
        )
        logits = torch.nn.functional.one_hot(best, len(TAGS)).float()
        found, left_out = measured(task, logits, target)
        there = Evaluator(rows, said, tags=["org", "per"], loader="list").evaluate()["entities"]
        for label in ("org", "per"):
            strict = there[label]["strict"]
            for name in COUNTED:
                tag = f"{name}/{label}"
                if strict.possible:
                    assert found[tag] == pytest.approx(getattr(strict, name)), (tag, seed)
                else:
                    assert left_out[tag] == f"nothing is of class {label!r}"


def test_rules_may_watch_the_score_of_a_class_and_the_mean_stays_the_main_figure():
    directions = entities(metrics=["f1", "accuracy"]).directions
    assert list(directions.by_tag) == [
        *("validation/loss", "validation/f1", "validation/accuracy"),
        *("validation/f1/org", "validation/f1/per"),
    ]
    assert directions.by_tag["validation/f1/per"] == "higher"
    assert directions.main() == "validation/f1"


def test_a_task_of_a_list_has_those_of_its_classes():
    kind = {"type": "classification", "output": "a", "target": "kind", "metrics": ["f1"]}
    node = TypeAdapter(ShortTask).validate_python([kind | {"per_class": True}])
    known = {"kind": TrainingClasses(("cat", "dog"), TrainingCounts(4, (2, 2)))}
    task = build_task(node, classes=None, trust=(), device=torch.device("cpu"), by_target=known)
    batch = Batch({}, None, torch.arange(4), columns={"kind": torch.tensor([0, 0, 1, 1])})
    task.update_metrics({"a": torch.eye(2)[[0, 1, 1, 1]]}, batch)
    figures = task.compute_metrics({})
    assert list(figures) == ["kind/f1", "kind/f1/cat", "kind/f1/dog"]
    assert figures["kind/f1"] == pytest.approx((figures["kind/f1/cat"] + 0.8) / 2)


def test_it_is_refused_where_no_metric_is_a_mean_over_classes():
    with pytest.raises(FinetuneError, match="no metric here is such a mean") as error:
        of_pixels(["pixel_accuracy"])
    assert error.value.key == ("task", "per_class")


def test_a_metric_of_torchmetrics_that_gives_a_number_for_each_class_names_the_key():
    with pytest.raises(ValidationError, match="gives a number for each class"):
        task_of("classification", [{"type": "F1Score", "average": "none"}], 2)


def test_validation_lines_evaluations_and_the_page_have_them(
    tmp_path, monkeypatch, command_line, make_config
):
    monkeypatch.chdir(tmp_path)
    task = {"type": "classification", "metrics": ["f1"], "per_class": True}
    config = make_config(task=task, train={"steps": 20, "evaluate_every": {"steps": 5}})
    build_trainer(config, tmp_path / "run").fit(quiet=True)
    told = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in told.splitlines()]
    validated = [line for line in lines if "validation/f1" in line]
    assert len(validated) == 4
    assert all(f"validation/f1/{digit}" in line for line in validated for digit in range(10))
    end = command_line("eval", "run", "--json")
    assert end.code == 0, end.err
    figures = json.loads(end.out)["metrics"]
    assert {f"f1/{digit}" for digit in range(10)} < figures.keys()
    each = [figures[f"f1/{digit}"] for digit in range(10)]
    assert figures["f1"] == pytest.approx(sum(each) / 10)
    assert "f1/*" in (tmp_path / "run" / "report.html").read_text()
