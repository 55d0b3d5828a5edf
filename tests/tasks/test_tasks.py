"""Losses and metrics are those of torch and scikit-learn; outputs are read as the task means."""

import math
import sys

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn import metrics as sk
from torch.nn import functional as F

from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError, TrustError
from finetune.tasks.build_task import build_task

CLASSES = ("cat", "dog", "eel")
CPU = torch.device("cpu")


def make_task(classes=CLASSES, trust=(), **config):
    node = TypeAdapter(TaskConfig).validate_python(config)
    return build_task(node, classes=classes, trust=trust, device=CPU)


def batch_of(target):
    count = len(target)
    return Batch({}, target, torch.arange(count))


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def single():
    """Outputs, targets and a task of 40 samples in three classes, in two batches."""
    outputs = logits(40, 3)
    return outputs, torch.randint(3, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def many():
    """Outputs and label sets of 40 samples."""
    return logits(40, 3), (logits(40, 3, seed=1) > 0.3).float()


@pytest.fixture
def numbers():
    """Outputs and numbers of 40 samples, two each."""
    outputs = logits(40, 2)
    return outputs, outputs + 0.3 * logits(40, 2, seed=1)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write the user's own package and return its name."""

    def write(source):
        folder = tmp_path / "task_package"
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return "task_package"

    yield write
    sys.modules.pop("task_package", None)


def each(task, outputs, target):
    """Return the loss of every sample alone."""
    rows = zip(outputs.split(1), target.split(1), strict=True)
    return torch.stack([task.loss(row, batch_of(wanted)) for row, wanted in rows])


def measured(task, outputs, target):
    """Feed in two uneven batches: a mean of batch means would differ."""
    for part in (slice(0, 29), slice(29, None)):
        task.update_metrics(outputs[part], batch_of(target[part]))
    return task.compute_metrics()


def test_cross_entropy_is_that_of_the_formula(single):
    outputs, target = single
    task = make_task(type="classification")
    expected = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(outputs.tolist(), target.tolist(), strict=True)
    ]
    losses = each(task, outputs, target)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_label_smoothing_spreads_its_share_over_all_classes(single):
    outputs, target = single
    losses = {"type": "cross_entropy", "label_smoothing": 0.2}
    task = make_task(type="classification", losses=losses)
    wish = F.one_hot(target, 3) * 0.8 + 0.2 / 3
    expected = -(wish * outputs.log_softmax(1)).sum(1)
    torch.testing.assert_close(each(task, outputs, target), expected)


def test_binary_cross_entropy_is_the_mean_over_labels(many):
    outputs, target = many
    p = outputs.double().sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean(1)
    losses = each(make_task(type="multilabel"), outputs, target)
    torch.testing.assert_close(losses, expected.float())


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ({"type": "mse"}, lambda error: error**2),
        ({"type": "l1"}, abs),
        (
            {"type": "huber", "delta": 0.2},
            lambda e: np.where(abs(e) < 0.2, 0.5 * e**2, 0.2 * (abs(e) - 0.1)),
        ),
    ],
    ids=["mse", "l1", "huber"],
)
@pytest.mark.parametrize("shape", [(40,), (40, 2), (40, 2, 3)], ids=str)
def test_losses_of_numbers_are_means_over_each_samples_outputs(loss, formula, shape):
    outputs, target = logits(*shape), logits(*shape, seed=1)
    task = make_task(type="regression", classes=None, losses=loss)
    errors = (outputs - target).numpy().astype(np.float64).reshape(40, -1)
    expected = formula(errors).mean(1)
    losses = each(task, outputs, target)
    assert losses.shape == (40,)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_several_losses_add_up_by_weight(numbers):
    outputs, target = numbers
    losses = [{"type": "mse", "weight": 0.5}, {"type": "l1", "name": "far", "weight": 2}]
    task = make_task(type="regression", classes=None, losses=losses)
    assert [loss.name for loss in task.losses] == ["mse", "far"]
    mse, far = task.parts(outputs, batch_of(target))
    torch.testing.assert_close(mse.total, 0.5 * (outputs - target).square().mean(1).sum())
    torch.testing.assert_close(far.total, 2 * (outputs - target).abs().mean(1).sum())
    assert mse.count == far.count == 40
    assert torch.equal(task.loss(outputs, batch_of(target)), mse.total / 40 + far.total / 40)


def test_the_metrics_of_classes_are_scikit_learns(single):
    outputs, target = single
    names = ["accuracy", "f1", "precision", "recall", "auroc"]
    found = measured(make_task(type="classification", metrics=names), outputs, target)
    said, rows = outputs.argmax(1), outputs.softmax(1)
    assert list(found) == names
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(target, said),
            "f1": sk.f1_score(target, said, average="macro"),
            "precision": sk.precision_score(target, said, average="macro"),
            "recall": sk.recall_score(target, said, average="macro"),
            "auroc": sk.roc_auc_score(target, rows, multi_class="ovr", average="macro"),
        }
    )


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_the_metrics_of_labels_are_scikit_learns(many, threshold):
    outputs, target = many
    names = ["accuracy", "f1", "precision", "recall", "auroc"]
    task = make_task(type="multilabel", metrics=names, threshold=threshold)
    found = measured(task, outputs, target)
    said = outputs.sigmoid() > threshold
    accuracies = [sk.accuracy_score(target[:, n], said[:, n]) for n in range(3)]
    assert found == pytest.approx(
        {
            "accuracy": np.mean(accuracies),
            "f1": sk.f1_score(target, said, average="macro"),
            "precision": sk.precision_score(target, said, average="macro"),
            "recall": sk.recall_score(target, said, average="macro"),
            "auroc": sk.roc_auc_score(target, outputs.sigmoid(), average="macro"),
        }
    )


def test_the_metrics_of_numbers_are_scikit_learns(numbers):
    outputs, target = (tensor[:, :1] for tensor in numbers)
    names = ["mse", "rmse", "mae", "r2"]
    found = measured(make_task(type="regression", classes=None, metrics=names), outputs, target)
    assert found == pytest.approx(
        {
            "mse": sk.mean_squared_error(target, outputs),
            "rmse": sk.root_mean_squared_error(target, outputs),
            "mae": sk.mean_absolute_error(target, outputs),
            "r2": sk.r2_score(target, outputs),
        },
        rel=1e-4,
    )


def test_metrics_start_afresh_after_they_are_computed(single):
    outputs, target = single
    task = make_task(type="classification", metrics=["accuracy"])
    measured(task, outputs, target)
    assert measured(task, outputs, outputs.argmax(1)) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("task", "outputs", "target", "message"),
    [
        ("classification", (4, 2), torch.tensor([0, 1, 2, 0]), "(4, 2) with targets (4,)"),
        ("multilabel", (4, 2), torch.zeros(4, 3), "cannot take (4, 2) with targets (4, 3)"),
        ("regression", (4, 2), torch.zeros(4), "cannot take (4, 2) with targets (4,)"),
        ("regression", (4,), torch.zeros(4, 2), "cannot take (4,) with targets (4, 2)"),
        ("classification", (4, 5), torch.tensor([0, 1, 2, 0]), "(4, 5) with targets (4,)"),
        ("regression", (4, 2), None, "cannot take (4, 2) with targets none"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_the_targets_name_both_shapes(task, outputs, target, message):
    made = make_task(type=task, classes=None if task == "regression" else CLASSES)
    batch = Batch({}, target, torch.arange(4))
    with pytest.raises(ModelError) as caught:
        made.loss(logits(*outputs), batch)
    assert message in caught.value.message
    assert caught.value.key == ("model", "layers")


def test_a_class_is_read_with_its_probability():
    task = make_task(type="classification")
    outputs = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    read = task.read(outputs)
    shares = outputs.softmax(1).tolist()
    assert [prediction.label for prediction in read] == ["dog", "cat"]
    for prediction, row, values in zip(read, shares, outputs.tolist(), strict=True):
        assert prediction.probability == pytest.approx(max(row))
        assert prediction.probabilities == pytest.approx(dict(zip(CLASSES, row, strict=True)))
        assert prediction.values == tuple(values)


def test_labels_are_read_by_the_threshold():
    task = make_task(type="multilabel", threshold=0.6)
    read = task.read(torch.tensor([[0.0, 2.0, 3.0], [-1.0, -1.0, 0.0]]))
    assert [prediction.label for prediction in read] == [("dog", "eel"), ()]
    assert read[0].probability is None
    assert read[0].probabilities["cat"] == 0.5


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 1)], ids=str)
def test_numbers_are_read_flat(shape):
    outputs = logits(*shape)
    read = make_task(type="regression", classes=None).read(outputs)
    assert [prediction.label for prediction in read] == [None, None]
    assert [list(prediction.values) for prediction in read] == outputs.reshape(2, -1).tolist()


def test_an_imported_loss_is_called_with_outputs_and_batch(package, numbers):
    name = package(
        "def make(power):\n"
        "    return lambda outputs, batch: ((outputs - batch.target).abs() ** power).sum(1)\n"
    )
    outputs, target = numbers
    loss = {"type": "import", "path": f"{name}:make", "args": {"power": 3}, "name": "cubic"}
    with pytest.raises(TrustError) as caught:
        make_task(type="regression", classes=None, losses=[loss])
    assert caught.value.key == ("task", "losses", 0, "path")
    assert name not in sys.modules
    task = make_task(type="regression", classes=None, losses=[loss], trust={name})
    expected = ((outputs - target).abs() ** 3).sum(1)
    assert torch.equal(each(task, outputs, target), expected)


def test_a_loss_that_is_no_number_per_sample_is_told(package, numbers):
    name = package("def make():\n    return lambda outputs, batch: outputs.mean()\n")
    loss = {"type": "import", "path": f"{name}:make"}
    task = make_task(type="regression", classes=None, losses=[loss], trust={name})
    outputs, target = numbers
    with pytest.raises(ModelError, match=r"gives \(\), needs one number per sample \(40,\)"):
        task.loss(outputs, batch_of(target))


TOKENS = torch.tensor([[0, 1, -100], [1, -100, -100]])
LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("task", "outputs", "target"),
    [
        ({"type": "classification"}, {"a": torch.zeros(2, 2)}, torch.tensor([0, 1])),
        ({"type": "classification", "threshold": 0.3}, torch.zeros(2, 5), torch.tensor([0, 1])),
        ({"type": "token_classification", "metrics": ["accuracy"]}, torch.zeros(2, 2), TOKENS),
        ({"type": "multilabel", "metrics": [{"type": "F1Score"}]}, torch.zeros(2, 3), LABELS),
        ({"type": "regression"}, [torch.zeros(2)], torch.zeros(2)),
    ],
    ids=["dict", "too many for a threshold", "one row a text", "too many labels", "list"],
)
def test_outputs_that_only_the_users_own_loss_takes_are_told_by_the_metric(
    package, task, outputs, target
):
    name = package("def make():\n    return lambda outputs, batch: batch.target.sum(-1)\n")
    loss = {"type": "import", "path": f"{name}:make"}
    made = make_task(("cat", "dog"), trust={name}, losses=[loss], **task)
    with pytest.raises(ModelError, match=r"metric '\w+' cannot take") as caught:
        made.update_metrics(outputs, batch_of(target))
    assert caught.value.key == ("model", "layers")


@pytest.mark.parametrize("outputs", [{"a": torch.zeros(2, 2)}, [torch.zeros(2, 2)], None], ids=type)
@pytest.mark.parametrize(
    ("kind", "loss", "target"),
    [
        ("classification", "cross_entropy", torch.tensor([0, 1])),
        ("classification", "focal", torch.tensor([0, 1])),
        ("classification", "triplet", torch.tensor([0, 1])),
        ("multilabel", "binary_cross_entropy", LABELS),
        ("regression", "huber", torch.zeros(2)),
        ("token_classification", "cross_entropy", TOKENS),
    ],
)
def test_outputs_that_are_not_one_tensor_are_told_by_the_loss(kind, loss, target, outputs):
    task = make_task(("cat", "dog"), type=kind, losses=[{"type": loss}], metrics=[])
    with pytest.raises(ModelError, match=f"loss '{loss}' cannot take .*: one tensor is needed"):
        task.loss(outputs, batch_of(target))


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_outputs_that_are_not_one_tensor_cannot_be_read(kind):
    task = make_task(("cat", "dog"), type=kind)
    with pytest.raises(ModelError, match="a dict"):
        task.read({"a": torch.zeros(2, 2)})


OF_BATCHES = """
import torchmetrics

class OfBatches(torchmetrics.MeanMetric):
    def update(self, outputs, batch):
        super().update((outputs - batch.target).abs())
"""


def test_a_metric_of_whole_batches_has_no_figure_of_each_output(package):
    name = package(OF_BATCHES)
    node = TypeAdapter(TaskConfig).validate_python(
        {
            "type": "regression",
            "metrics": ["mae", {"type": "import", "path": f"{name}:OfBatches"}],
            "per_output": True,
        }
    )
    with pytest.raises(FinetuneError, match="'OfBatches' takes whole batches") as caught:
        build_task(node, classes=None, trust={name}, device=CPU, outputs=("a", "b"))
    assert caught.value.key == ("task", "metrics", 1)


IMPORTED_TASK = """
import torch, torchmetrics

class Ranking:
    def __init__(self, margin):
        self.margin = margin
        self.metrics = {"mae": torchmetrics.MeanAbsoluteError()}

    def loss(self, outputs, batch):
        return (self.margin - outputs * batch.target).clamp(min=0).mean(1)

def without_loss():
    return object()
"""


def test_an_imported_task_brings_its_loss_and_metrics(package, numbers):
    name = package(IMPORTED_TASK)
    outputs, target = numbers
    config = {"type": "import", "path": f"{name}:Ranking", "args": {"margin": 0.5}}
    with pytest.raises(TrustError):
        make_task(**config)
    task = make_task(classes=None, trust={name}, **config)
    expected = (0.5 - outputs * target).clamp(min=0).mean(1)
    assert torch.equal(each(task, outputs, target), expected)
    error = (outputs - target).abs().mean().item()
    assert measured(task, outputs, target) == {"mae": pytest.approx(error)}
    assert task.read(outputs)[0].values == tuple(outputs[0].tolist())


def test_an_imported_task_without_a_loss_is_told(package):
    name = package(IMPORTED_TASK)
    with pytest.raises(FinetuneError, match=r"needs a method 'loss\(outputs, batch\)'") as caught:
        make_task(type="import", path=f"{name}:without_loss", trust={name})
    assert caught.value.key == ("task", "path")
