"""Triplet and contrastive losses are the formulas of their papers, computed pair by pair."""

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from finetune.config.task_keys import Task as TaskConfig
from finetune.config.train import TrainConfig
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError
from finetune.tasks.build_task import build_task
from finetune.tasks.whole_windows import refuse_cut_windows


def loss_of(loss, outputs, target):
    """Return loss and gradient of one window."""
    node = TypeAdapter(TaskConfig).validate_python({"type": "classification", "losses": loss})
    task = build_task(node, classes=("a", "b", "c"), trust=(), device=torch.device("cpu"))
    outputs = outputs.clone().requires_grad_()
    found = task.loss(outputs, Batch({}, target, torch.arange(len(target))))
    found.backward()
    return found.detach(), outputs.grad


def apart(one, other, distance):
    if distance == "cosine":
        return 1 - F.cosine_similarity(one, other, dim=0)
    return torch.linalg.vector_norm(one - other)


def triplet(outputs, target, margin, distance):
    losses = []
    for a in range(len(target)):
        others = [n for n in range(len(target)) if n != a]
        of_class = [
            apart(outputs[a], outputs[n], distance) for n in others if target[n] == target[a]
        ]
        of_other = [
            apart(outputs[a], outputs[n], distance) for n in others if target[n] != target[a]
        ]
        if of_class and of_other:
            losses.append((margin + max(of_class) - min(of_other)).clamp_min(0))
    return sum(losses) / len(losses) if losses else outputs.sum() * 0


def contrastive(outputs, target, margin, distance):
    losses = []
    for a in range(len(target)):
        for b in range(a):
            d = apart(outputs[a], outputs[b], distance)
            losses.append(
                d**2 / 2 if target[a] == target[b] else (margin - d).clamp_min(0) ** 2 / 2
            )
    return sum(losses) / len(losses) if losses else outputs.sum() * 0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(("kind", "formula"), [("triplet", triplet), ("contrastive", contrastive)])
def test_they_are_the_formulas_on_random_windows(kind, formula, distance):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        outputs = torch.randn(2 + seed % 7, 4, generator=draw)
        target = torch.randint(1 + seed % 3, (len(outputs),), generator=draw)
        found = loss_of({"type": kind, "margin": 0.7, "distance": distance}, outputs, target)
        given = outputs.clone().requires_grad_()
        wish = formula(given, target, 0.7, distance)
        wish.backward()
        torch.testing.assert_close(found, (wish.detach(), given.grad), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["triplet", "contrastive"])
@pytest.mark.parametrize("target", [[0], [0, 0, 0], [0, 1, 2]], ids=["one", "alike", "all other"])
@pytest.mark.parametrize("equal", [True, False])
def test_windows_without_such_pairs_and_equal_embeddings_have_finite_gradients(kind, target, equal):
    outputs = torch.ones(len(target), 3) if equal else torch.eye(3)[: len(target)]
    loss, grad = loss_of({"type": kind}, outputs, torch.tensor(target))
    assert loss.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("kind", ["triplet", "contrastive"])
def test_windows_are_never_cut(kind):
    config = {"type": "classification", "losses": [{"type": "cross_entropy"}, {"type": kind}]}
    node = TypeAdapter(TaskConfig).validate_python(config)
    task = build_task(node, classes=("a", "b"), trust=(), device=torch.device("cpu"))
    with pytest.raises(FinetuneError, match=f"loss '{kind}' needs whole"):
        refuse_cut_windows(task, TrainConfig(epochs=1, batch_size=8, micro_batch=2))
    assert task.hard_losses == (kind,)


@pytest.mark.parametrize("kind", ["triplet", "contrastive"])
def test_embeddings_are_predicted_where_nothing_else_is_learnt(kind):
    config = {"type": "classification", "losses": {"type": kind}, "metrics": []}
    node = TypeAdapter(TaskConfig).validate_python(config)
    task = build_task(node, classes=("a", "b", "c"), trust=(), device=torch.device("cpu"))
    outputs = torch.arange(10.0).reshape(2, 5)
    assert [one.row() for one in task.read(outputs)] == [
        {"values": row} for row in outputs.tolist()
    ]


@pytest.mark.parametrize("shape", [(2, 5), (2,), (2, 4, 3)])
def test_classes_of_other_outputs_are_refused(shape):
    node = TypeAdapter(TaskConfig).validate_python({"type": "classification"})
    task = build_task(node, classes=("a", "b", "c"), trust=(), device=torch.device("cpu"))
    with pytest.raises(ModelError, match="3 classes need as many outputs"):
        task.read(torch.zeros(shape))


@pytest.mark.parametrize(("kind", "what"), [("regression", "numbers"), ("multilabel", "labels")])
@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_losses_that_compare_classes_are_refused_where_there_is_not_one_class(kind, what, loss):
    node = TypeAdapter(TaskConfig).validate_python({"type": kind, "losses": {"type": loss}})
    with pytest.raises(FinetuneError, match=f"{loss} compares .* here they have {what}"):
        build_task(node, classes=("a", "b"), trust=(), device=torch.device("cpu"))


@pytest.mark.parametrize("threshold", ["auto", 0.3])
def test_embeddings_have_no_threshold(threshold):
    config = {"type": "classification", "losses": {"type": "triplet"}, "threshold": threshold}
    node = TypeAdapter(TaskConfig).validate_python(config)
    with pytest.raises(FinetuneError, match="learn embeddings alone") as caught:
        build_task(node, classes=("a", "b"), trust=(), device=torch.device("cpu"))
    assert caught.value.key == ("task", "threshold")
