"""Similarity: losses and metrics of pairs and triplets, and what predictions say."""

import math
import random

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from torch.nn import functional as F

from finetune.config.task_keys import Task as TaskConfig
from finetune.config.train import TrainConfig
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, ModelError
from finetune.tasks.build_task import build_task
from finetune.tasks.pair_metrics import pearson, ranks, spearman
from finetune.tasks.whole_windows import refuse_cut_windows

SCORES = {"compares": "scores"}
PAIRS = {"compares": "pairs"}
TRIPLETS = {"compares": "triplets"}


def config_of(**keys):
    return TypeAdapter(TaskConfig).validate_python({"type": "similarity"} | keys)


def task_of(**keys):
    return build_task(config_of(**keys), classes=None, trust=(), device=torch.device("cpu"))


def batch_of(count, scores=None):
    return Batch({}, None if scores is None else torch.tensor(scores), torch.arange(count))


def drawn(seed, number=2, count=None, width=5):
    torch.manual_seed(seed)
    return torch.randn(count or random.Random(seed).randint(2, 40), number, width)


def figures_of(outputs, scores=None, left_out=None, **keys):
    """The figures of a split that is seen in batches of 7."""
    task, whole = task_of(**keys), batch_of(len(outputs), scores)
    for rows in torch.arange(len(outputs)).split(7):
        target = None if scores is None else whole.target[rows]
        task.update_metrics(outputs[rows], Batch({}, target, rows))
    return task.compute_metrics(left_out)


@pytest.mark.parametrize("seed", range(200))
def test_correlations_are_those_of_scipy(seed):
    """With ties, many of them: a third of the cases has three different scores."""
    draw = random.Random(seed)
    outputs = drawn(seed)
    scores = [
        draw.choice((0.0, 1.0, 2.0)) if seed % 3 == 0 else draw.uniform(0, 2) for _ in outputs
    ]
    if seed % 5 == 0:
        outputs[: len(outputs) // 2] = outputs[0]
    left_out = {}
    found = figures_of(
        outputs, scores, left_out, score_range=[0, 2], metrics=["spearman", "pearson"], **SCORES
    )
    cosines = F.cosine_similarity(outputs[:, 0], outputs[:, 1]).double().numpy()
    if len(set(scores)) == 1:
        assert not found
        assert left_out.keys() == {"spearman", "pearson"}
        return
    expected = {
        "spearman": stats.spearmanr(cosines, scores).statistic,
        "pearson": stats.pearsonr(cosines, scores).statistic,
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_constant_predictor_has_correlation_0_and_finds_no_partner():
    same = torch.ones(30, 2, 4)
    scores = [float(number % 3) for number in range(30)]
    found = figures_of(same, scores, score_range=[0, 2], metrics=["spearman", "pearson"])
    assert found == {"spearman": 0.0, "pearson": 0.0}
    found = figures_of(same, metrics=["mrr", "recall@5"], **PAIRS)
    assert found == {"mrr": pytest.approx(1 / 30), "recall@5": 0.0}
    assert figures_of(torch.ones(9, 3, 4), **TRIPLETS) == {"triplet_accuracy": 0.0}


def test_correlations_hold_where_numbers_are_tiny_or_far_from_zero():
    torch.manual_seed(0)
    one, other = torch.randn(50), torch.randn(50)
    for first, second in ((one * 1e-20, other), (one, other * 0.01 + 1000)):
        expected = stats.pearsonr(first.double().numpy(), second.double().numpy()).statistic
        assert float(pearson(first, second)) == pytest.approx(expected, abs=1e-9)
        expected = stats.spearmanr(first.numpy(), second.numpy()).statistic
        assert float(spearman(first, second)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(200))
def test_ranks_of_partners_are_those_of_a_sort(seed):
    number = 3 if seed % 2 else 2
    outputs = drawn(seed, number, width=2 if seed % 3 == 0 else 6)
    if seed % 4 == 0:
        outputs[: len(outputs) // 3] = outputs[0]
    unit = F.normalize(outputs, dim=2)
    cosines = (unit[:, 0] @ unit[:, 1].T).numpy()
    places = [int(np.sum(row >= row[n])) for n, row in enumerate(cosines)]
    names = ["mrr", "recall@1", "recall@3", "recall@10"]
    left_out = {}
    found = figures_of(
        outputs, None, left_out, metrics=names, **(TRIPLETS if number == 3 else PAIRS)
    )
    expected = {"mrr": np.mean([1 / place for place in places])}
    expected |= {f"recall@{k}": np.mean([place <= k for place in places]) for k in (1, 3, 10)}
    assert found == pytest.approx({name: expected[name] for name in found})
    few = {f"recall@{k}" for k in (1, 3, 10) if len(outputs) <= k}
    assert left_out.keys() == few
    assert found.keys() == {*names} - few


def test_ranks_do_not_depend_on_how_many_are_compared_at_once(monkeypatch):
    one, other = F.normalize(drawn(3, 2, 50), dim=2).unbind(1)
    whole = ranks(one, other)
    monkeypatch.setattr("finetune.tasks.pair_metrics._AT_ONCE", 8)
    assert torch.equal(ranks(one, other), whole)


def test_recall_at_more_than_there_are_pairs_is_left_out_and_told():
    left_out = {}
    assert figures_of(drawn(0, count=5), None, left_out, metrics=["recall@5"], **PAIRS) == {}
    assert left_out == {"recall@5": "it needs more than 5 pairs, got 5"}


def test_nan_of_a_network_is_shown():
    outputs = drawn(0, count=9)
    outputs[3] = torch.nan
    task = task_of(metrics=["mrr", "recall@1"], **PAIRS)
    task.update_metrics(outputs, batch_of(9))
    found = task.compute_metrics(is_finite=False)
    assert found.keys() == {"mrr", "recall@1"}
    assert all(math.isnan(figure) for figure in found.values())


@pytest.mark.parametrize("keys", [PAIRS, TRIPLETS], ids=["pairs", "triplets"])
def test_windows_of_in_batch_negatives_are_not_cut(keys):
    cut = TrainConfig(epochs=1, batch_size=8, micro_batch=4)
    with pytest.raises(FinetuneError, match="'in_batch_negatives' needs whole"):
        refuse_cut_windows(task_of(**keys), cut)
    refuse_cut_windows(task_of(**keys), TrainConfig(epochs=1, batch_size=8))


def test_scores_are_learnt_as_cosines():
    outputs, scores = drawn(2, count=6), torch.tensor([0.0, 1, 2, 3, 4, 5])
    batch = Batch({}, scores, torch.arange(6))
    expected = F.mse_loss(F.cosine_similarity(outputs[:, 0], outputs[:, 1]), scores / 5)
    torch.testing.assert_close(task_of(score_range=[0, 5]).loss(outputs, batch), expected)


@pytest.mark.parametrize("number", [2, 3])
def test_in_batch_negatives_is_the_cross_entropy_over_all_partners(number):
    """Written out pair by pair, as in Henderson et al. (2017), equation 3."""
    outputs = drawn(4, number, 6)
    keys = {"compares": "pairs" if number == 2 else "triplets"}
    candidates = [outputs[n, place] for place in range(1, number) for n in range(6)]
    rows = [
        torch.stack([10 * F.cosine_similarity(outputs[n, 0], one, dim=0) for one in candidates])
        for n in range(6)
    ]
    expected = torch.stack([row.logsumexp(0) - row[n] for n, row in enumerate(rows)]).mean()
    loss = {"type": "in_batch_negatives", "scale": 10.0}
    torch.testing.assert_close(task_of(losses=loss, **keys).loss(outputs, batch_of(6)), expected)


def test_a_symmetric_loss_is_the_mean_of_both_directions():
    outputs = drawn(5, count=6)
    loss = {"type": "in_batch_negatives", "symmetric": True}
    found = task_of(losses=loss, **PAIRS).loss(outputs, batch_of(6))
    plain = task_of(**PAIRS)
    both = [plain.loss(one, batch_of(6)) for one in (outputs, outputs.flip(1))]
    torch.testing.assert_close(found, sum(both) / 2)


def test_triplets_and_contrasts_are_those_of_torch():
    outputs = drawn(6, 3, 7)
    keys = {"losses": {"type": "triplet", "margin": 1.5}, **TRIPLETS}
    expected = F.triplet_margin_loss(*outputs.unbind(1), margin=1.5, eps=0.0)
    torch.testing.assert_close(task_of(**keys).loss(outputs, batch_of(7)), expected)
    pairs, alike = outputs[:, :2], torch.tensor([1.0, 0, 1, 0, 0, 1, 1])
    loss = {"type": "contrastive", "distance": "cosine", "margin": 0.8}
    batch = Batch({}, alike, torch.arange(7))
    apart = 1 - F.cosine_similarity(pairs[:, 0], pairs[:, 1])
    expected = torch.where(alike == 1, apart**2, (0.8 - apart).clamp(min=0) ** 2).mean() / 2
    torch.testing.assert_close(task_of(losses=loss).loss(pairs, batch), expected)


LOSSES = {
    "cosines": (2, SCORES | {"score_range": [0, 2]}),
    "contrastive": (2, SCORES | {"score_range": [0, 2], "losses": {"type": "contrastive"}}),
    "triplet": (3, TRIPLETS | {"losses": {"type": "triplet", "margin": 1.0}}),
    "cosine triplet": (3, TRIPLETS | {"losses": {"type": "triplet", "distance": "cosine"}}),
}


def test_equal_embeddings_have_finite_gradients():
    for number, keys in LOSSES.values():
        outputs = torch.ones(4, number, 3, requires_grad=True)
        target = torch.tensor([0.0, 1, 2, 0]) if number == 2 else None
        task_of(**keys).loss(outputs, Batch({}, target, torch.arange(4))).backward()
        assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 8), (4, 1, 8)], ids=["one", "three", "flat"])
def test_outputs_that_are_no_pairs_are_named_with_the_layer_that_makes_them(shape):
    """Embeddings that are joined to one row could be halves of a single one."""
    batch = Batch({}, torch.zeros(4), torch.arange(4))
    with pytest.raises(ModelError, match="2 embeddings a sample") as error:
        task_of().loss(torch.randn(shape), batch)
    assert "type: stack, inputs: [first, second]" in error.value.hint
    with pytest.raises(ModelError, match="2 embeddings a sample"):
        task_of().read(torch.randn(shape))


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        (PAIRS | {"losses": {"type": "mse"}}, "loss 'mse' does not suit compares: pairs"),
        (PAIRS | {"metrics": ["spearman"]}, "metric 'spearman' is not of compares: pairs"),
        (PAIRS | {"score_range": [0, 5]}, "score_range is of scores"),
        (SCORES | {"metrics": ["mrr"]}, "metric 'mrr' is not of compares: scores"),
        (SCORES | {"losses": {"type": "in_batch_negatives"}}, "does not suit compares: scores"),
        (SCORES | {"score_range": [5, 5]}, "score_range begins below its end"),
        (TRIPLETS | {"losses": {"type": "contrastive"}}, "does not suit compares: triplets"),
    ],
)
def test_what_does_not_suit_the_samples_is_refused(keys, fault):
    with pytest.raises(ValidationError, match=fault):
        config_of(**keys)


def test_in_batch_negatives_is_refused_by_other_tasks():
    node = {"type": "classification", "losses": {"type": "in_batch_negatives"}}
    config = TypeAdapter(TaskConfig).validate_python(node)
    with pytest.raises(FinetuneError, match=r"is for task: \{type: similarity\}"):
        build_task(config, classes=("a", "b"), trust=(), device=torch.device("cpu"))


def test_predictions_are_cosines_and_scores():
    outputs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    rows = [record.row() for record in task_of(score_range=[1, 5]).read(outputs)]
    assert rows == [{"cosine": 1.0, "score": 5.0}, {"cosine": 0.0, "score": 1.0}]
    assert task_of(**PAIRS).read(outputs)[1].row() == {"cosine": 0.0}
    third = torch.cat([outputs, -outputs[:, :1]], dim=1)
    row = task_of(**TRIPLETS).read(third)[0].row()
    assert row == {"cosine": 1.0, "cosine_of_other": -1.0}
