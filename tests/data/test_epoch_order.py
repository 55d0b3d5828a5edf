"""Which samples an epoch draws: `data.balance` and `train.limit`."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

import finetune
from finetune.config.train import TrainConfig
from finetune.data.batches import sample_order
from finetune.data.parts.epoch_order import EpochOrder
from finetune.errors import CheckpointError, DataError

SIZES = {"a": 12, "b": 5, "c": 2}
LABELS = [label for label, size in SIZES.items() for _ in range(size)]


def rows_of(labels, **columns):
    lines = [
        [n, label, *(values[n] for values in columns.values())] for n, label in enumerate(labels)
    ]
    return [["x", "label", *columns], *lines]


@pytest.fixture
def order_of(write_csv, opened):
    """Return the order that a table of labels has, and the notes."""

    def make(labels=LABELS, task="classification", limit=None, seed=0, **data):
        columns = {"w": data.pop("w")} if "w" in data else {}
        source = write_csv(rows_of(labels, **columns))
        config = {"source": source, "inputs": ["x"], "target": "label"} | data
        found = opened(config, task, limit=limit, seed=seed)
        return found.order, found.facts.notes

    return make


def counted(order, labels=LABELS, seed=0, epoch=0):
    return Counter(labels[row] for row in order.of(seed, epoch).tolist())


def test_without_balance_an_epoch_is_the_order_that_it_always_was(order_of):
    order, notes = order_of()
    assert torch.equal(order.of(3, 2), sample_order(len(LABELS), 3, 2))
    assert not any("balance" in note or "limit" in note for note in notes)


def test_oversample_draws_every_class_as_often_as_the_largest(order_of):
    order, notes = order_of(balance="oversample")
    assert order.count == 36
    assert counted(order) == {"a": 12, "b": 12, "c": 12}
    assert (
        "balance: oversample: an epoch draws 12 samples of each of 3 classes, 36 in all; "
        "the 2 of 'c' are drawn up to 6 times each"
    ) in notes


def test_samples_of_one_class_come_equally_often_and_every_sample_comes(order_of):
    rows = Counter(order_of(balance="oversample")[0].of(0, 0).tolist())
    assert set(rows) == set(range(len(LABELS)))
    assert {rows[row] for row in range(12)} == {1}
    assert {rows[row] for row in range(12, 17)} == {2, 3}
    assert {rows[row] for row in range(17, 19)} == {6}


def test_which_samples_come_once_more_differs_from_epoch_to_epoch(order_of):
    order, _ = order_of(balance="oversample")
    more = {
        tuple(row for row, times in Counter(order.of(0, epoch).tolist()).items() if times == 3)
        for epoch in range(6)
    }
    assert len(more) > 1


@pytest.mark.parametrize(
    "data", [{"balance": "oversample"}, {"balance": {"weights": "w"}}], ids=["classes", "weights"]
)
def test_an_epoch_depends_on_seed_and_epoch_alone(order_of, data):
    order, _ = order_of(w=range(1, 20), **data)
    again = order.of(7, 3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    assert torch.equal(order.of(7, 3), again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(order.of(7, 4), again)
    assert not torch.equal(order.of(8, 3), again)


def test_classes_that_are_equally_frequent_are_told(order_of):
    order, notes = order_of(["a", "b"] * 4, balance="oversample")
    assert order.count == 8
    assert "balance: oversample changes nothing, each class has 4 training samples" in notes


def test_a_sample_is_drawn_as_often_as_its_weight_says(order_of):
    weights = [1] * 10 + [3] * 5 + [0] * 4
    order, notes = order_of(balance={"weights": "w"}, w=weights)
    assert order.count == len(LABELS)
    for epoch in range(5):
        rows = Counter(order.of(0, epoch).tolist())
        # 19 draws over weights of 25 in all: 0.76 for a weight of 1, 2.28 for one of 3.
        assert all(rows[row] in (0, 1) for row in range(10))
        assert all(rows[row] in (2, 3) for row in range(10, 15))
        assert not any(rows[row] for row in range(15, 19))
    assert (
        "balance: an epoch draws 19 samples by the weights in 'w', some of them up to 3 times; "
        "4 have weight 0 and are never drawn"
    ) in notes


def test_equal_weights_draw_every_sample_once():
    order = EpochOrder(1000, weights=torch.full((1000,), 0.1, dtype=torch.float64))
    assert order.of(0, 0).sort().values.tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("heavy", "column 'w' holds 'heavy' in row 3 of .*, a weight is a number from 0 on"),
        (-1, "column 'w' holds '-1' in row 3 of"),
        ("inf", "column 'w' holds 'inf' in row 3 of"),
        ("", "column 'w' has no value in row 3 of"),
    ],
)
def test_what_is_no_weight_is_told_with_its_row(order_of, value, message):
    with pytest.raises(DataError, match=message):
        order_of(balance={"weights": "w"}, w=[1, 1, value, *[1] * 16])


def test_weights_that_are_all_zero_are_told(order_of):
    with pytest.raises(DataError, match="column 'w' has no weight above 0"):
        order_of(balance={"weights": "w"}, w=[0] * 19)


def test_a_column_of_weights_that_is_not_there_is_told(order_of):
    with pytest.raises(DataError, match="no column 'u'") as caught:
        order_of(balance={"weights": "u"}, w=[1] * 19)
    assert caught.value.key == ("data", "balance", "weights")


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_oversample_needs_one_class_a_sample(order_of, task):
    labels = [str(n) for n in range(19)] if task == "regression" else LABELS
    with pytest.raises(DataError, match="oversample needs one class a sample") as caught:
        order_of(labels, task, balance="oversample")
    assert "weights: COLUMN" in caught.value.hint


@pytest.mark.parametrize(("limit", "count"), [(0.5, 10), (7, 7), (0.01, 1), (1, 1)])
def test_a_limit_is_a_share_or_a_number_of_training_samples(order_of, limit, count):
    order, notes = order_of(limit=limit)
    assert order.count == count
    first = sorted(order.of(0, 0).tolist())
    assert first == sorted(order.of(0, 1).tolist())
    told = f"train.limit: {count} of 19 training samples are used, the same in every epoch"
    assert told in notes


def test_a_limit_keeps_classes_at_their_shares_and_has_one_of_each(order_of):
    assert counted(order_of(limit=10)[0]) == {"a": 6, "b": 3, "c": 1}
    assert set(counted(order_of(limit=3)[0])) == set(SIZES)


def test_a_smaller_limit_takes_a_part_of_what_a_larger_one_takes(order_of):
    taken = [set(order_of(limit=count)[0].of(0, 0).tolist()) for count in (2, 5, 9, 14)]
    assert taken == sorted(taken, key=len)
    assert all(few < more for few, more in pairwise(taken))
    assert taken[-1] != set(order_of(limit=14, seed=1)[0].of(0, 0).tolist())


def test_a_limit_that_leaves_nothing_out_is_told(order_of):
    order, notes = order_of(limit=40)
    assert order.count == 19
    assert "train.limit: 40 leaves out none of 19 training samples" in notes


def test_oversample_balances_what_a_limit_leaves(order_of):
    order, _ = order_of(limit=10, balance="oversample")
    assert counted(order) == {"a": 6, "b": 6, "c": 6}
    assert set(order.of(0, 0).tolist()) == set(order_of(limit=10)[0].of(0, 0).tolist())


@pytest.mark.parametrize("limit", [1.0, 2.5, True])
def test_a_limit_that_may_mean_all_samples_or_one_is_refused(limit):
    with pytest.raises(ValidationError, match="a share is below 1"):
        TrainConfig.model_validate({"epochs": 1, "limit": limit})


@pytest.fixture
def csv_config(write_csv, small_config):
    """The config of a run on a table with rare classes and a column of weights."""

    def make(balance="none", limit=None, steps=11, **changes):
        draw = torch.Generator().manual_seed(0)
        numbers = torch.randn(len(LABELS), 4, generator=draw).tolist()
        rows = [[*numbers[n], label, 1 + n % 3] for n, label in enumerate(LABELS)]
        source = write_csv([["a", "b", "c", "d", "label", "w"], *rows])
        data = {
            "source": source,
            "inputs": ["a", "b", "c", "d"],
            "target": "label",
            "transforms": [{"type": "stack"}],
            "balance": balance,
        }
        train = {"steps": steps, "batch_size": 8, "log_every": 1} | {"limit": limit}
        return small_config(data=data, task={"type": "classification"}, train=train, **changes)

    return make


CHOICES = [{"balance": "oversample"}, {"balance": {"weights": "w"}}, {"limit": 0.5},
           {"limit": 9, "balance": "oversample"}]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_run_that_was_stopped_ends_with_the_same_bits(csv_config, tmp_path, choice):
    whole = finetune.build_trainer(csv_config(**choice), tmp_path / "whole")
    whole.fit(quiet=True)
    assert whole.timeline.steps_per_epoch == -(-whole.timeline.order.count // 8)
    # In the middle of the second epoch, or of the fourth one.
    finetune.build_trainer(csv_config(steps=7, **choice), tmp_path / "cut").fit(quiet=True)
    again = finetune.build_trainer(csv_config(**choice), tmp_path / "cut")
    again.fit(quiet=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize("choice", CHOICES[:2], ids=str)
def test_another_balance_is_another_run(csv_config, tmp_path, choice):
    finetune.build_trainer(csv_config(steps=2), tmp_path / "run").fit(quiet=True)
    with pytest.raises(CheckpointError, match="another config"):
        finetune.build_trainer(csv_config(**choice), tmp_path / "run")


@pytest.mark.slow
def test_samples_that_come_several_times_are_answered_from_the_cache_with_the_same_bits(
    csv_config, tmp_path
):
    """A batch may hold a sample twice, and its row is recorded and read all the same."""
    freeze = {"phases": [{"name": "head", "train": ["head"]}]}
    runs = {}
    for use in ("off", "auto"):
        config = csv_config("oversample", steps=150, cache=use, freeze=freeze)
        runs[use] = finetune.build_trainer(config, tmp_path / use)
        runs[use].fit(quiet=True)
    for name, value in runs["off"].model.state_dict().items():
        assert torch.equal(value, runs["auto"].model.state_dict()[name])


DRAWN = {
    "all": ({}, 19),
    "some": ({"limit": 7}, 7),
    "every class alike": ({"balance": "oversample"}, 19),
    "some of every class alike": ({"balance": "oversample", "limit": 7}, 7),
}


@pytest.mark.parametrize("settings", DRAWN)
def test_the_samples_that_epochs_draw_from_are_counted(order_of, settings):
    keys, count = DRAWN[settings]
    order, _ = order_of(**keys)
    seen = {row for epoch in range(3) for row in order.of(0, epoch).tolist()}
    assert order.num_drawn == len(seen) == count
