"""Losses with weights, smoothing and focus are torch's and the papers'; cuts change nothing."""

import json

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from finetune import evaluate
from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import CheckpointError, FinetuneError, SeveralFaultsError
from finetune.tasks.build_task import build_task
from finetune.tasks.task import add_up
from finetune.tasks.task_facts import TrainingCounts
from finetune.tasks.window_mean import WindowMean

CLASSES = ("cat", "dog", "eel")
WEIGHTS = [0.5, 2.0, 4.0]


def task_of(kind, loss, classes=CLASSES, counts=None, samples=100):
    node = TypeAdapter(TaskConfig).validate_python({"type": kind, "losses": loss})
    counted = None if counts is None else TrainingCounts(samples, tuple(counts))
    return build_task(node, classes=classes, trust=(), device=torch.device("cpu"), counts=counted)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(count, top, seed=1):
    return torch.randint(top, (count,), generator=torch.Generator().manual_seed(seed))


def step(task, logits, target, size):
    """Return loss and gradient of a window that is cut into micro-batches of `size`."""
    logits = logits.clone().requires_grad_()
    parts = zip(logits.split(size), target.split(size), strict=True)
    window = [(part, Batch({}, wanted, torch.arange(len(wanted)))) for part, wanted in parts]
    mean = WindowMean(task.losses, [batch for _, batch in window])
    loss = sum(add_up(mean.shares(task.parts(part, batch))) for part, batch in window)
    loss.backward()
    return loss.detach(), logits.grad


def reference(function, logits, *others):
    logits = logits.clone().requires_grad_()
    loss = function(logits, *others)
    loss.backward()
    return loss.detach(), logits.grad


def shares_of(target, count=3):
    """Mix each sample with the one before it, as `mixup` does."""
    once = F.one_hot(target, count).float()
    return 0.7 * once + 0.3 * once.roll(1, 0)


def own_mean(logits, shares, weights, smoothing):
    """The weighted mean that the description of `class_weights` promises for shares."""
    spread = shares * (1 - smoothing) + smoothing / 3
    return -(weights * spread * logits.log_softmax(1)).sum() / (shares * weights).sum()


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(3,), (3, 5)], ids=["samples", "tokens"])
def test_class_weights_are_torchs_however_the_window_is_cut(size, smoothing, shape):
    logits = normal(10, *shape)
    target = numbers(10 * 5, 3).reshape(10, 5) if len(shape) > 1 else numbers(10, 3)
    if len(shape) > 1:
        target[:, 3:] = -100
    loss = {"type": "cross_entropy", "class_weights": WEIGHTS, "label_smoothing": smoothing}
    found = step(task_of("classification", loss), logits, target, size)
    there = nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)
    torch.testing.assert_close(found, reference(there, logits, target))


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_samples_weigh_what_their_shares_of_classes_do(size, smoothing):
    logits, target = normal(10, 3), numbers(10, 3)
    loss = {"type": "cross_entropy", "class_weights": WEIGHTS, "label_smoothing": smoothing}
    task, weights = task_of("classification", loss), torch.tensor(WEIGHTS)
    mixed = shares_of(target)
    wish = reference(own_mean, logits, mixed, weights, smoothing)
    torch.testing.assert_close(step(task, logits, mixed, size), wish)
    # Shares of 0 and 1 are class numbers.
    whole = step(task, logits, F.one_hot(target, 3).float(), size)
    torch.testing.assert_close(whole, step(task, logits, target, size))


def test_balanced_weights_are_scikit_learns():
    counts = [70, 25, 5]
    task = task_of(
        "classification", {"type": "cross_entropy", "class_weights": "balanced"}, counts=counts
    )
    labels = [number for number, count in enumerate(counts) for _ in range(count)]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    logits, target = normal(10, 3), numbers(10, 3)
    there = nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32))
    torch.testing.assert_close(step(task, logits, target, 3), reference(there, logits, target))


def test_a_class_without_a_training_sample_weighs_1_and_counts_for_no_other():
    task = task_of(
        "classification", {"type": "cross_entropy", "class_weights": "balanced"}, counts=[75, 0, 25]
    )
    logits, target = normal(10, 3), numbers(10, 3)
    weights = compute_class_weight(
        "balanced", classes=np.array([0, 2]), y=[0] * 75 + [2] * 25
    ).tolist()
    there = nn.CrossEntropyLoss(torch.tensor([weights[0], 1.0, weights[1]]))
    torch.testing.assert_close(step(task, logits, target, 3), reference(there, logits, target))


def test_weights_by_name_leave_the_other_classes_at_1():
    by_name = {"type": "cross_entropy", "class_weights": {"eel": 3}}
    in_order = {"type": "cross_entropy", "class_weights": [1, 1, 3]}
    logits, target = normal(10, 3), numbers(10, 3)
    one, other = (task_of("classification", loss) for loss in (by_name, in_order))
    assert torch.equal(step(one, logits, target, 10)[0], step(other, logits, target, 10)[0])


def test_class_weights_of_one_logit_are_those_of_the_pair():
    loss = {"type": "cross_entropy", "class_weights": [0.5, 3]}
    task = task_of("classification", loss, classes=("no", "yes"))
    logit, target = normal(10, 1), numbers(10, 2)
    pair = torch.cat([torch.zeros(10, 1), logit], 1)
    wish = F.cross_entropy(pair, target, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(step(task, logit, target, 3)[0], wish)


def test_a_window_of_classes_that_weigh_nothing_has_loss_0():
    loss = {"type": "cross_entropy", "class_weights": [0, 1, 1]}
    found, grad = step(task_of("classification", loss), normal(4, 3), torch.zeros(4).long(), 2)
    assert found == 0
    assert not grad.any()


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pos_weight_and_smoothing_of_labels_are_torchs_and_the_formulas(size, smoothing):
    logits, target = normal(10, 3), (normal(10, 3, seed=1) > 0).float()
    loss = {
        "type": "binary_cross_entropy",
        "pos_weight": WEIGHTS,
        "label_smoothing": smoothing,
    }
    spread = target * (1 - smoothing) + smoothing / 2
    there = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))
    found = step(task_of("multilabel", loss), logits, target, size)
    torch.testing.assert_close(found, reference(there, logits, spread))


def test_balanced_pos_weight_is_the_samples_without_a_label_over_those_with_it():
    loss = {"type": "binary_cross_entropy", "pos_weight": "balanced"}
    task = task_of("multilabel", loss, counts=[20, 0, 100], samples=100)
    logits, target = normal(10, 3), (normal(10, 3, seed=1) > 0).float()
    # A label that none or all samples have cannot be balanced.
    there = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([4.0, 1.0, 1.0]))
    torch.testing.assert_close(step(task, logits, target, 3), reference(there, logits, target))


@pytest.mark.parametrize("weight", ["balanced", [3], {"yes": 3}], ids=str)
def test_pos_weight_of_one_logit_is_that_of_the_second_class(weight):
    loss = {"type": "binary_cross_entropy", "pos_weight": weight}
    task = task_of("classification", loss, classes=("no", "yes"), counts=[75, 25])
    logit, target = normal(10, 1), numbers(10, 2)
    there = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    wish = reference(there, logit, target[:, None].float())
    torch.testing.assert_close(step(task, logit, target, 3), wish)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_focal_of_labels_is_torchvisions(gamma, alpha, size):
    logits, target = normal(10, 3), (normal(10, 3, seed=1) > 0).float()
    loss = {"type": "focal", "gamma": gamma, "alpha": alpha}

    def there(given):
        return sigmoid_focal_loss(
            given, target, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean"
        )

    found = step(task_of("multilabel", loss), logits, target, size)
    torch.testing.assert_close(found, reference(there, logits))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_focal_of_classes_is_the_formula(gamma, weights, size):
    logits, target = normal(10, 3), numbers(10, 3)
    loss = {"type": "focal", "gamma": gamma, "class_weights": weights}
    each = torch.tensor(weights or [1.0] * 3)[target]

    def there(given):
        p = given.softmax(1)[torch.arange(10), target]
        return -(each * (1 - p) ** gamma * p.log()).sum() / each.sum()

    found = step(task_of("classification", loss), logits, target, size)
    torch.testing.assert_close(found, reference(there, logits))


def test_focal_of_one_logit_is_that_of_a_label():
    loss = {"type": "focal", "alpha": 0.25}
    task = task_of("classification", loss, classes=("no", "yes"))
    logit, target = normal(10, 1), numbers(10, 2)
    wish = sigmoid_focal_loss(logit, target[:, None].float(), reduction="mean")
    torch.testing.assert_close(step(task, logit, target, 3)[0], wish)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_a_sure_answer_has_a_finite_gradient(gamma):
    task = task_of("classification", {"type": "focal", "gamma": gamma})
    loss, grad = step(task, torch.tensor([[200.0, 0, 0]]), torch.tensor([0]), 1)
    assert loss == 0
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "loss", "words"),
    [
        ("classification", {"type": "cross_entropy", "class_weights": [1, 2]}, "2 weights for 3"),
        ("classification", {"type": "cross_entropy", "class_weights": {"dgo": 2}}, "no class"),
        ("classification", {"type": "cross_entropy", "class_weights": [0, 0, 0]}, "every weight"),
        ("classification", {"type": "cross_entropy", "class_weights": "balanced"}, "has counted"),
        ("classification", {"type": "binary_cross_entropy", "pos_weight": [1]}, "two classes"),
        ("classification", {"type": "focal", "alpha": 0.5}, "for two classes"),
        ("multilabel", {"type": "focal", "class_weights": WEIGHTS}, "for classes"),
        ("regression", {"type": "binary_cross_entropy", "label_smoothing": 0.1}, "yes or no"),
        ("regression", {"type": "cross_entropy", "class_weights": [1]}, "has not"),
        ("regression", {"type": "focal"}, "has not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_refused_with_their_key(kind, loss, words):
    with pytest.raises(FinetuneError, match=words) as caught:
        task_of(kind, loss, classes=None if kind == "regression" else CLASSES)
    assert caught.value.key[:3] == ("task", "losses", 0)


def test_a_misspelt_class_gets_its_name_as_hint():
    loss = {"type": "cross_entropy", "class_weights": {"dgo": 2}}
    with pytest.raises(FinetuneError) as caught:
        task_of("classification", loss)
    assert caught.value.hint == "did you mean 'dog'?"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("balance", "did you mean 'balanced'"),
        ([1, -1, 1], "at least 0"),
        ({"cat": "much"}, "needs a number"),
        (3, "needs 'balanced'"),
    ],
    ids=str,
)
def test_wrong_weights_are_told_by_the_config(weights, words, config_faults):
    text = config_faults(
        {"type": "classification", "losses": {"type": "cross_entropy", "class_weights": weights}}
    )
    assert words in text
    assert "class_weights" in text


@pytest.fixture
def config_faults(tmp_path):
    """Return a function that loads a config with a task and returns what is told of its faults."""
    import yaml

    from finetune.config.loader import load_config

    def tell(task):
        path = tmp_path / "run.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "model": {"layers": [{"type": "Linear", "out_features": "classes"}]},
                    "data": {"source": {"type": "csv", "path": "x.csv"}, "target": "y"},
                    "task": task,
                    "optimizer": {"type": "SGD", "lr": 0.1},
                    "train": {"epochs": 1, "batch_size": 4},
                }
            )
        )
        with pytest.raises((FinetuneError, SeveralFaultsError)) as caught:
            load_config(path)
        return str(caught.value)

    return tell


def test_a_run_counts_its_training_samples_and_evaluates_with_the_same_weights(
    make_trainer, tmp_path
):
    loss = {"type": "cross_entropy", "class_weights": "balanced"}
    trainer = make_trainer(
        data={"balance": "none"}, task={"type": "classification", "losses": [loss]}
    )
    trainer.fit(quiet=True)
    counts = json.loads((tmp_path / "run" / "data.json").read_text())["counts"]
    assert sum(counts) == len(trainer.splits.train)
    there = evaluate(tmp_path / "run", "validation")["loss"]
    assert there == pytest.approx(trainer.evaluate(trainer.splits.validation)["loss"], rel=1e-6)


@pytest.mark.parametrize("counts", [[1, 2], "many", [-1] * 10], ids=str)
def test_counts_that_are_no_counts_are_refused_with_their_file(counts, make_trainer, tmp_path):
    make_trainer(train={"steps": 1}).fit(quiet=True)
    path = tmp_path / "run" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": counts}))
    with pytest.raises(CheckpointError, match=r"data\.json"):
        evaluate(tmp_path / "run", "test")
