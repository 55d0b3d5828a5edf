"""Running metrics are those of torchmetrics, whatever the samples and however they are batched."""

import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torchmetrics import regression as of_numbers
from torchmetrics.functional import classification as of_classes
from torchmetrics.functional.regression import r2_score

from finetune.tasks.number_metrics import metric_of_numbers
from finetune.tasks.running_metrics import metric_of_classes, metric_of_labels

SCORES = ["accuracy", "f1", "precision", "recall"]
seeds = st.integers(0, 2**31)


def random(seed):
    return torch.Generator().manual_seed(seed)


def fed(metric, outputs, target, cuts):
    """Return the figure of samples that come in batches of uneven lengths, some of them empty."""
    ends = [0, *sorted(cut % (len(target) + 1) for cut in cuts), len(target)]
    for start, end in pairwise(ends):
        metric.update(outputs[start:end], target[start:end])
    return metric.compute()


def same(ours, theirs):
    return torch.equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("score", SCORES)
@given(
    num=st.integers(1, 60),
    size=st.integers(2, 7),
    there=st.sets(st.integers(0, 6), min_size=1),
    said=st.sets(st.integers(0, 6), min_size=1),
    shape=st.sampled_from([(), (2,), (2, 3)]),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    seed=seeds,
)
@settings(max_examples=25, deadline=None)
def test_of_classes(score, num, size, there, said, shape, cuts, seed):
    """Among them a single sample, classes that are absent or never said, and ties."""
    of, outputs = random(seed), torch.zeros(num, size, *shape)
    known = torch.tensor(sorted({one % size for one in there}))
    target = known[torch.randint(len(known), (num, *shape), generator=of)]
    columns = sorted({one % size for one in said})
    drawn = torch.randint(-2, 3, (num, len(columns), *shape), generator=of).float()
    outputs[:, columns] = drawn
    theirs = getattr(of_classes, f"multiclass_{'f1_score' if score == 'f1' else score}")
    average = "micro" if score == "accuracy" else "macro"
    ours = fed(metric_of_classes(score, tuple("abcdefg"[:size])), outputs, target, cuts)
    assert same(ours, theirs(outputs, target, num_classes=size, average=average))


@pytest.mark.parametrize("score", SCORES)
@given(
    num=st.integers(1, 40),
    size=st.integers(1, 5),
    threshold=st.sampled_from([0.5, 0.3, 0.9]),
    shares=st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=5, max_size=5),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=seeds,
)
@settings(max_examples=25, deadline=None)
def test_of_labels(score, num, size, threshold, shares, cuts, seed):
    """Among them a single label, labels that no sample has, or all have."""
    of = random(seed)
    outputs = torch.randn(num, size, generator=of)
    target = (torch.rand(num, size, generator=of) < torch.tensor(shares[:size])).long()
    labels = tuple("abcde"[:size])
    said = (outputs.sigmoid() >= threshold).long()
    name = "f1_score" if score == "f1" else score
    if size == 1:
        theirs = getattr(of_classes, f"binary_{name}")(said[:, 0], target[:, 0])
        flat = metric_of_labels(score, labels, threshold)
        assert same(fed(flat, outputs[:, 0], target[:, 0], cuts), theirs)
    else:
        theirs = getattr(of_classes, f"multilabel_{name}")(said, target, num_labels=size)
    assert same(fed(metric_of_labels(score, labels, threshold), outputs, target, cuts), theirs)


@pytest.mark.parametrize(
    ("score", "theirs"),
    [
        ("mse", of_numbers.MeanSquaredError),
        ("rmse", partial(of_numbers.MeanSquaredError, squared=False)),
        ("mae", of_numbers.MeanAbsoluteError),
    ],
)
@given(
    num=st.integers(1, 60),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4, float("inf"), float("nan")]),
    offset=st.sampled_from([0.0, 2000.0]),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    seed=seeds,
)
@settings(max_examples=25, deadline=None)
def test_of_errors(score, theirs, num, scale, offset, cuts, seed):
    """Among them equal targets, and outputs of a broken network."""
    of = random(seed)
    target = torch.randn(num, generator=of) * scale + offset
    outputs = target + torch.randn(num, generator=of) * scale
    ours = fed(metric_of_numbers(score), outputs, target, cuts)
    expected = fed(theirs(), outputs, target, cuts)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@given(
    num=st.integers(2, 60),
    offset=st.sampled_from([0.0, -3.0, 100.0]),
    error=st.sampled_from([0.0, 0.1, 10.0]),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    seed=seeds,
)
@settings(max_examples=30, deadline=None)
def test_of_the_explained_variance(num, offset, error, cuts, seed):
    of = random(seed)
    target = torch.randn(num, generator=of) + offset
    outputs = target + torch.randn(num, generator=of) * error
    theirs = r2_score(outputs.double(), target.double())
    ours = fed(metric_of_numbers("r2"), outputs, target, cuts)
    # two values of the sum of squares are subtracted: where they are large, fewer digits are left
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("offset", "spread"), [(2000.0, 1.0), (0.0, 1e-4), (-1e6, 30.0)], ids=str)
def test_r2_holds_where_float32_would_lose_it(offset, spread):
    target = offset + spread * torch.randn(50, generator=random(0))
    outputs = target + spread * torch.randn(50, generator=random(1))
    wanted, said = target.double(), outputs.double()
    formula = 1 - (wanted - said).square().sum() / (wanted - wanted.mean()).square().sum()
    ours = fed(metric_of_numbers("r2"), outputs, target, [7, 30])
    torch.testing.assert_close(ours, formula, rtol=1e-4, atol=0)
    theirs = r2_score(outputs, target)
    assert abs(float(theirs - formula)) > 100 * abs(float(ours - formula))


def test_logits_are_logits_in_every_batch():
    """They may all lie between 0 and 1, and are no probabilities for that."""
    outputs, target = torch.tensor([[0.2, 0.1], [0.3, 0.4]]), torch.ones(2, 2).long()
    metric = metric_of_labels("recall", ("a", "b"), 0.5)
    metric.update(outputs, target)
    assert metric.compute() == 1


def test_a_label_at_the_threshold_is_said_as_in_a_prediction():
    metric = metric_of_labels("recall", ("a", "b"), 0.5)
    metric.update(torch.zeros(1, 2), torch.ones(1, 2).long())
    assert metric.compute() == 1


CLASSES = partial(metric_of_classes, "f1", ("a", "b", "c"))
LABELS = partial(metric_of_labels, "f1", ("a", "b", "c"), 0.5)


@pytest.mark.parametrize(
    ("make", "outputs", "target"),
    [
        (CLASSES, (4, 2), torch.zeros(4).long()),
        (CLASSES, (4,), torch.zeros(4).long()),
        (CLASSES, (4, 3), torch.zeros(3).long()),
        (CLASSES, (4, 3), torch.tensor([0, 1, 2, 3])),
        (CLASSES, (4, 3), torch.tensor([0, 1, 2, -1])),
        (LABELS, (4, 6), torch.zeros(4, 6).long()),
        (LABELS, (4, 3), torch.zeros(4, 2).long()),
        (LABELS, (12,), torch.zeros(12).long()),
        (LABELS, (4, 3), torch.full((4, 3), 2)),
        (partial(metric_of_numbers, "mae"), (4,), torch.zeros(4, 1)),
        (partial(metric_of_numbers, "r2"), (4, 1), torch.zeros(4)),
    ],
)
def test_what_does_not_fit_is_refused_and_not_counted(make, outputs, target):
    metric = make()
    with pytest.raises(ValueError, match=r"need as many|differ in shape|a target is"):
        metric.update(torch.zeros(outputs), target)
    with pytest.raises(ValueError, match="it has seen no sample"):
        metric.compute()


def test_many_classes_take_no_square_of_memory():
    """A matrix of a million classes by a million would be 8 TB."""
    metric = metric_of_classes("f1", range(1_000_000))
    outputs = F.one_hot(torch.tensor([5, 999_999]), 1_000_000).float()
    metric.update(outputs, torch.tensor([5, 7]))
    assert metric.compute() == pytest.approx(1 / 3)


@pytest.mark.slow
def test_built_in_metrics_but_rankings_load_no_torchmetrics():
    program = """
import sys, torch
from pydantic import TypeAdapter
from finetune.config.task_keys import Task
from finetune.tasks.build_task import build_task
for kind, metrics in [
    ("classification", ["accuracy", "f1", "precision", "recall"]),
    ("multilabel", ["accuracy", "f1", "precision", "recall"]),
    ("regression", ["mse", "rmse", "mae", "r2"]),
]:
    config = TypeAdapter(Task).validate_python({"type": kind, "metrics": metrics})
    build_task(config, classes=("a", "b"), trust=(), device=torch.device("cpu"))
    print("torchmetrics" in sys.modules)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["False", "False", "False"]
