"""Metrics: the direction is declared, an undefined one has no figure, single outputs work."""

import json
import sys

import pytest
import torch
from pydantic import TypeAdapter

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError, SeveralFaultsError
from finetune.tasks.build_task import build_task

CODE = """
import torch, torchmetrics
from torch.nn import functional as F

class Off(torchmetrics.Metric):
    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")
    def update(self, outputs, target):
        self.total += (outputs - target).abs().sum()
        self.seen += len(target)
    def compute(self):
        return self.total / self.seen

class Outputs(Off):
    def update(self, outputs):
        self.total += outputs.sum()
        self.seen += len(outputs)

class FromBatch(Off):
    def update(self, outputs, batch):
        self.total += sum(column.sum() for column in batch.inputs.values())
        self.seen += len(batch)

class Three(Off):
    def update(self, outputs, target, weights):
        pass

class Task:
    def __init__(self, metrics): self.metrics = metrics
    def loss(self, outputs, batch): return outputs.square().flatten(1).mean(1)

class Falls(Off):
    higher_is_better = False

class Rises(Off):
    higher_is_better = True

def off(rises=None): return {None: Off, False: Falls, True: Rises}[rises]()
def task(rises=None): return Task({"mistakes": off(rises)})
def outputs_alone(): return Task({"mean": Outputs()})
def of_batch(): return Task({"mean": FromBatch()})
def of_three(): return Task({"odd": Three()})
def variance():
    return torchmetrics.ExplainedVariance()
"""
DATA = {
    "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
    "split": {"validation": 0.3},
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The user's own package, trusted by its name."""
    folder = tmp_path / "code" / "door_metrics"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield "door_metrics"
    sys.modules.pop("door_metrics", None)


@pytest.fixture
def watched_run(small_run, package):
    """Build a run of three evaluations that keeps the best checkpoint by `metric`."""

    def build(task, metric, **changes):
        train = {"epochs": 3, "batch_size": 8, "checkpoint": {"best": f"validation/{metric}"}}
        changes = {"data": DATA, "train": train} | changes
        return small_run(trust=(package,), task=task, **changes)

    return build


def figures(trainer, tag):
    lines = trainer.folder.metrics.read_text().splitlines()
    return [entry[tag] for entry in map(json.loads, lines) if tag in entry]


OWN = {"type": "import", "path": "door_metrics:task"}
AMONG = {"type": "import", "path": "door_metrics:off", "name": "mistakes"}


@pytest.mark.parametrize(
    ("task", "falls"),
    [
        (OWN | {"args": {"rises": False}}, True),
        (OWN | {"args": {"rises": True}}, False),
        (OWN | {"better": {"mistakes": "lower"}}, True),
        (OWN | {"better": {"mistakes": "higher"}}, False),
        ({"type": "regression", "metrics": [AMONG | {"better": "lower"}]}, True),
        ({"type": "regression", "metrics": ["r2", AMONG | {"args": {"rises": True}}]}, False),
    ],
    ids=["class: falls", "class: rises", "task: falls", "task: rises", "key: falls", "list: rises"],
)
def test_the_best_checkpoint_follows_the_declared_direction(watched_run, task, falls):
    trainer = watched_run(task, "mistakes")
    progress = trainer.fit()
    seen = figures(trainer, "validation/mistakes")
    assert len(set(seen)) > 1
    assert progress.best.value == (min(seen) if falls else max(seen))


@pytest.mark.parametrize(
    "rule",
    [
        {"train": {"epochs": 2, "checkpoint": {"best": "validation/mistakes"}}},
        {"train": {"epochs": 2, "early_stopping": {"metric": "validation/mistakes"}}},
        {
            "freeze": {
                "phases": [
                    {"name": "one", "train": ["head"], "until": {"plateau": "validation/mistakes"}},
                    {"name": "two", "train": ["head"]},
                ]
            },
            "train": {"epochs": 2},
        },
    ],
    ids=["best", "early stopping", "plateau"],
)
@pytest.mark.parametrize("task", [OWN, {"type": "regression", "metrics": [AMONG]}], ids=str)
def test_watching_a_metric_without_a_direction_is_refused(small_run, package, task, rule):
    with pytest.raises(Exception, match="does not say which way it improves") as caught:
        small_run(trust=(package,), task=task, data=DATA, **rule)
    assert "better: {mistakes: lower}" in str(caught.value)
    assert "higher_is_better" in str(caught.value)


@pytest.mark.parametrize(
    ("split", "metric", "hint"),
    [
        ({"validation": 0.3}, "mae", "did you mean 'validation/mae'?"),
        ({"test": 0.3}, "validation/mae", "data.split: {validation: 0.2}"),
    ],
)
def test_a_metric_that_is_never_logged_is_told_with_what_is_meant(small_run, split, metric, hint):
    rule = {"metric": metric, "patience": 1}
    train = {"steps": 2, "batch_size": 8, "early_stopping": rule}
    with pytest.raises(FinetuneError) as caught:
        small_run(data=DATA | {"split": split}, train=train)
    assert hint in caught.value.hint


def test_the_direction_is_not_taken_from_the_name(watched_run):
    """A metric of the user's own that is called `loss` or `accuracy` may go either way."""
    named = AMONG | {"name": "accuracy", "better": "lower"}
    trainer = watched_run({"type": "regression", "metrics": [named]}, "accuracy")
    assert trainer.fit().best.value == min(figures(trainer, "validation/accuracy"))


@pytest.mark.parametrize(
    ("type_name", "metric", "falls"),
    [
        ("classification", "accuracy", False),
        ("classification", "auroc", False),
        ("multilabel", "f1", False),
        ("regression", "mse", True),
        ("regression", "rmse", True),
        ("regression", "mae", True),
        ("regression", "r2", False),
    ],
)
def test_built_in_metrics_and_the_loss_declare_their_direction(type_name, metric, falls):
    directions = made(type_name, [metric]).directions
    assert directions.falls(f"validation/{metric}") is falls
    assert directions.falls("validation/loss")


def made(type_name, metrics, classes=("cat", "dog", "eel")):
    node = TypeAdapter(TaskConfig).validate_python({"type": type_name, "metrics": metrics})
    classes = None if type_name == "regression" else classes
    return build_task(node, classes=classes, trust=(), device=torch.device("cpu"))


def batch_of(target):
    return Batch({}, target, torch.arange(len(target)))


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


NO_EEL = torch.tensor([0, 1, 1, 0, 1, 0])
LABELS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0.0]])


@pytest.mark.parametrize(
    ("type_name", "metric", "target", "reason"),
    [
        ("regression", "r2", torch.tensor([0.5]), "it needs two targets or more, got 1"),
        ("regression", "r2", torch.full((6,), 0.5), "every target is 0.5"),
        (
            "regression",
            {"type": "MeanAbsolutePercentageError"},
            torch.tensor([0.0, 2.0, 0.0]),
            "2 of 3 targets are 0, and it divides by each",
        ),
        ("classification", "f1", NO_EEL, "none of 6 samples is of class 'eel'"),
        ("classification", "recall", NO_EEL, "none of 6 samples is of class 'eel'"),
        ("classification", "precision", NO_EEL, "none of 6 samples is of class 'eel'"),
        ("classification", "auroc", NO_EEL, "none of 6 samples is of class 'eel'"),
        ("multilabel", "f1", LABELS, "none of 3 samples is of class 'eel'"),
        ("multilabel", "auroc", LABELS.logical_not().float(), "all 3 samples are of class 'eel'"),
    ],
)
def test_an_undefined_metric_has_no_figure_and_a_reason(type_name, metric, target, reason):
    task, left_out = made(type_name, [metric]), {}
    name = task.metrics[0].name
    outputs = logits(len(target), 3) if type_name != "regression" else logits(len(target))
    task.update_metrics(outputs, batch_of(target))
    assert task.compute_metrics(left_out) == {}
    assert left_out == {name: reason}


@pytest.mark.parametrize(
    "metric", ["r2", {"type": "R2Score"}, {"type": "ExplainedVariance"}], ids=str
)
@pytest.mark.parametrize("outputs", [("height", "width"), ()], ids=["named", "a vector"])
def test_a_constant_answer_explains_nothing_however_far_columns_lie_apart(metric, outputs):
    node = TypeAdapter(TaskConfig).validate_python({"type": "regression", "metrics": [metric]})
    task = build_task(node, classes=None, trust=(), device=torch.device("cpu"), outputs=outputs)
    name = task.metrics[0].name
    target = logits(50, 2) * 0.1 + torch.tensor([1000.0, 0.0])
    for rows in torch.arange(50).split(20):
        task.update_metrics(target.mean(0).expand(len(rows), 2), batch_of(target[rows]))
    assert task.compute_metrics()[name] == pytest.approx(0, abs=1e-3)
    # a column that does not differ is told and not in the mean
    left_out, second = {}, outputs[1] if outputs else 2
    target[:, 1] = 3
    task.update_metrics(target, batch_of(target))
    assert task.compute_metrics(left_out) == {name: pytest.approx(1)}
    assert left_out == {f"{name} of column {second!r}": "every target is 3"}


@pytest.mark.parametrize(("wrong", "iou"), [(0, 1.0), (1, 0.99)])
def test_a_class_that_no_mask_has_is_told_and_never_averaged_in(wrong, iou):
    """Neither before nor after a pixel is taken for it: a checkpoint is chosen by this figure."""
    config = {"type": "segmentation", "metrics": ["mean_iou", "dice", "pixel_accuracy"]}
    classes = ("cat", "dog", "eel")
    node = TypeAdapter(TaskConfig).validate_python({**config, "classes": classes})
    task = build_task(node, classes=classes, trust=(), device=torch.device("cpu"))
    left_out = {}
    target = (torch.arange(200) % 2).reshape(1, 10, 20)
    outputs = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    outputs[0, 2, 0, :wrong] = 9
    task.update_metrics(outputs, batch_of(target))
    figures = task.compute_metrics(left_out)
    assert figures["mean_iou"] == pytest.approx((1 + iou) / 2)
    assert figures["dice"] == pytest.approx((1 + 2 * iou / (1 + iou)) / 2)
    assert left_out == {
        "mean_iou of class 'eel'": "no mask has it",
        "dice of class 'eel'": "no mask has it",
    }


def test_a_metric_undefined_once_is_defined_again_on_other_samples():
    task = made("regression", ["r2", "mae"])
    task.update_metrics(torch.tensor([1.0]), batch_of(torch.tensor([1.0])))
    assert list(task.compute_metrics()) == ["mae"]
    target = torch.tensor([1.0, 2.0])
    task.update_metrics(target, batch_of(target))
    assert task.compute_metrics() == {"r2": 1.0, "mae": 0.0}


def test_batches_of_which_each_lacks_a_class_make_a_defined_metric_together():
    task = made("classification", ["recall"])
    for number in range(3):
        task.update_metrics(torch.eye(3)[[number]], batch_of(torch.tensor([number])))
    assert task.compute_metrics() == {"recall": 1.0}


def test_nan_of_a_broken_network_is_told_as_a_figure_and_not_as_undefined():
    task, left_out = made("regression", ["mae"]), {}
    task.update_metrics(torch.tensor([float("nan")]), batch_of(torch.tensor([1.0])))
    figure = task.compute_metrics(left_out, is_finite=False)["mae"]
    assert figure != figure
    assert left_out == {}


@pytest.mark.parametrize("own", [False, True], ids=["r2", "metric of the user's own"])
def test_an_undefined_metric_is_told_once_and_not_counted(watched_run, tmp_path, own):
    """The best checkpoint and early stopping go on as if the evaluation had not been."""
    rows = "".join(f"0.{n},1,0.{n}\n" for n in range(1, 40))
    (tmp_path / "train.csv").write_text(f"x,z,y\n{rows}")
    (tmp_path / "flat.csv").write_text("x,z,y\n0.1,1,0.5\n0.2,1,0.5\n0.3,1,0.5\n")
    name = "spread" if own else "r2"
    metric = {"type": "import", "path": "door_metrics:variance", "name": name} if own else name
    trainer = watched_run(
        {"type": "regression", "metrics": ["mae", metric]},
        name,
        model={"layers": [{"name": "head", "type": "Linear", "out_features": 1}]},
        data={
            "train": {"type": "csv", "path": str(tmp_path / "train.csv")},
            "validation": {"type": "csv", "path": str(tmp_path / "flat.csv")},
            "inputs": ["x", "z"],
            "target": "y",
            "transforms": [{"type": "stack"}],
        },
        train={
            "epochs": 4,
            "checkpoint": {"best": f"validation/{name}"},
            "early_stopping": {"metric": f"validation/{name}", "patience": 1},
        },
    )
    told = []
    object.__setattr__(trainer.reporter, "tracker", Told(trainer.reporter.tracker, told))
    progress = trainer.fit()
    lines = [line for line in told if "left out" in line]
    assert lines == [
        f"validation/{name} is left out: every target is 0.5; "
        "not counted by train.checkpoint.best and train.early_stopping"
    ]
    assert figures(trainer, f"validation/{name}") == []
    assert len(figures(trainer, "validation/mae")) == 4
    assert (progress.best.value, progress.best.step, progress.stopped_early) == (None, None, False)


class Told:
    """A tracker that keeps what is told, and hands all on."""

    def __init__(self, tracker, told):
        self.tracker, self.told = tracker, told

    def message(self, text):
        self.told.append(text)

    def __getattr__(self, name):
        return getattr(self.tracker, name)


@pytest.mark.parametrize(("outputs", "target"), [((6, 1), (6,)), ((6,), (6, 1)), ((6, 1), (6, 1))])
def test_one_number_a_sample_is_understood_in_either_shape(outputs, target):
    task = made("regression", ["mae", "r2"])
    said, wanted = logits(*outputs), torch.arange(6.0).reshape(target)
    loss = task.loss(said, batch_of(wanted))
    torch.testing.assert_close(loss, (said.flatten() - wanted.flatten()).square().mean())
    task.update_metrics(said, batch_of(wanted))
    assert set(task.compute_metrics()) == {"mae", "r2"}


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("shape", [(6, 1), (6,)], ids=str)
def test_one_logit_stands_for_the_second_of_two_classes(loss, shape):
    config = {"type": "classification", "losses": {"type": loss}, "metrics": ["accuracy", "auroc"]}
    node = TypeAdapter(TaskConfig).validate_python(config)
    task = build_task(node, classes=("no", "yes"), trust=(), device=torch.device("cpu"))
    logit, target = logits(*shape), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit.flatten(), target.float())
    torch.testing.assert_close(task.loss(logit, batch_of(target)), expected)
    task.update_metrics(logit, batch_of(target))
    said = (logit.flatten() > 0).long()
    assert task.compute_metrics()["accuracy"] == pytest.approx(
        float((said == target).float().mean())
    )
    labels = [prediction.label for prediction in task.read(logit)]
    assert labels == ["yes" if one else "no" for one in said.tolist()]


def test_outputs_of_another_number_than_the_classes_are_refused():
    with pytest.raises(ModelError, match="3 classes need as many outputs"):
        made("classification", ["accuracy"]).loss(logits(6, 5), batch_of(NO_EEL))


def test_multilabel_with_one_label_works():
    task = made(
        "multilabel", ["f1", "accuracy", "auroc", "precision", "recall"], classes=("toxic",)
    )
    target = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    task.loss(logits(4, 1), batch_of(target))
    task.update_metrics(target * 4 - 2, batch_of(target))
    assert set(task.compute_metrics().values()) == {1.0}
    assert [one.label for one in task.read(target * 4 - 2)] == [("toxic",), (), ("toxic",), ()]


@pytest.mark.parametrize("path", ["outputs_alone", "of_batch"])
def test_metrics_of_a_task_without_target_are_fed(small_run, package, tmp_path, path):
    (tmp_path / "free.csv").write_text("x,z\n" + "".join(f"0.{n},1\n" for n in range(1, 30)))
    trainer = small_run(
        trust=(package,),
        task={"type": "import", "path": f"door_metrics:{path}"},
        data={
            "source": {"type": "csv", "path": str(tmp_path / "free.csv")},
            "inputs": ["x", "z"],
            "transforms": [{"type": "stack"}],
            "split": {"validation": 0.3},
        },
    )
    trainer.fit()
    assert len(figures(trainer, "validation/mean")) > 0
    assert all(figures(trainer, "validation/mean"))


def test_a_metric_that_cannot_be_fed_without_target_is_refused(small_run, package, tmp_path):
    (tmp_path / "free.csv").write_text("x,z\n" + "".join(f"0.{n},1\n" for n in range(1, 30)))
    with pytest.raises((ModelError, SeveralFaultsError), match=r"without data\.target it is fed"):
        small_run(
            trust=(package,),
            task={"type": "import", "path": "door_metrics:of_three"},
            data={
                "source": {"type": "csv", "path": str(tmp_path / "free.csv")},
                "inputs": ["x", "z"],
                "transforms": [{"type": "stack"}],
            },
        )
