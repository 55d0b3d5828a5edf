"""Runs over equal frozen prefixes share one pass, with the bits of each predictor alone."""

import shutil

import pytest
import torch

from finetune import FinetuneError, load_predictor, load_predictors
from finetune.models.declared import build_network
from finetune.predict.predictors import Head

SGD = {"type": "SGD", "lr": 0.05}


@pytest.fixture
def trained(small_run, tmp_path):
    """Train a tiny network; return its folder."""

    def train(name, **changes):
        small_run(name, **{"freeze": ["body"], "optimizer": SGD} | changes).fit(quiet=True)
        return tmp_path / name

    return train


@pytest.fixture
def heads(trained):
    """Three runs that differ in what their heads have learnt."""
    return [
        trained(name, optimizer={"type": "SGD", "lr": rate})
        for name, rate in (("one", 0.05), ("two", 0.1), ("three", 0.2))
    ]


def values(records):
    return torch.tensor([record.values for record in records], dtype=torch.float64)


def test_three_heads_over_one_prefix_give_the_bits_of_three_predictors(heads):
    inputs = torch.randn(11, 4).tolist()
    predictors = load_predictors(heads, batch_size=4)
    found = predictors(inputs)
    assert list(found) == ["one", "two", "three"]
    alone = {run.name: values(load_predictor(run, batch_size=4)(inputs)) for run in heads}
    assert all(torch.equal(values(found[name]), alone[name]) for name in alone)
    assert not torch.equal(alone["one"], alone["two"])
    # three batches, of each of which the prefix has run once in place of three times
    assert (predictors.passes, predictors.spared) == (3, 6)
    assert predictors.notes() == ["one, two, three share one pass up to act"]


def test_the_prefix_runs_once_for_all_heads(heads, monkeypatch):
    calls, own = [], torch.nn.Linear.forward

    def counted(self, value):
        calls.append(self.out_features)
        return own(self, value)

    monkeypatch.setattr("torch.nn.Linear.forward", counted)
    predictors = load_predictors(heads)
    weights = [predictors[one].model.get_parameter("body.weight") for one in predictors]
    assert len({weight.data_ptr() for weight in weights}) == 1, "its tensors are held once"
    calls.clear()
    predictors([[0.0] * 4])
    assert calls == [6, 3, 3, 3]


@pytest.mark.parametrize(("seeds", "times"), [((0, 0, 0), 1), ((0, 1, 0), 2)])
def test_runs_that_begin_with_one_network_build_it_once(trained, monkeypatch, seeds, times):
    runs = [trained(f"run{number}", seed=seed) for number, seed in enumerate(seeds)]
    inputs, built = torch.randn(5, 4).tolist(), []

    def counted(*args, **named):
        built.append(build_network(*args, **named))
        return built[-1]

    monkeypatch.setattr("finetune.train.after.bases.build_network", counted)
    predictors = load_predictors(runs)
    assert len(built) == times
    heads = [predictors[run.name].model.get_parameter("head.weight") for run in runs]
    assert len({head.data_ptr() for head in heads}) == 3, "what a run trains is its own"
    found = predictors(inputs)
    for run in runs:
        assert torch.equal(values(found[run.name]), values(load_predictor(run)(inputs)))


def test_networks_that_share_less_than_they_train_are_held_once(trained, monkeypatch):
    runs = [trained(f"run{number}", seed=number, freeze=[]) for number in range(2)]
    built = []

    def collected(*args, **named):
        built.append(build_network(*args, **named))
        return built[-1]

    monkeypatch.setattr("finetune.train.after.bases.build_network", collected)
    predictors = load_predictors(runs)
    assert [predictors[run.name].model for run in runs] == built


def test_a_third_run_over_one_network_is_added_without_a_pass(heads, monkeypatch):
    predictors = load_predictors(heads[:2])
    third, alone = load_predictor(heads[2]), load_predictor(heads[2])
    calls, own = [], torch.nn.Linear.forward

    def counted(self, value):
        calls.append(self.out_features)
        return own(self, value)

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.Linear.forward", counted)
        predictors.add("three", third)
    assert calls == [], "the boundary, and that it can be shared, is known"
    inputs = torch.randn(5, 4).tolist()
    assert torch.equal(values(predictors(inputs)["three"]), values(alone(inputs)))
    assert predictors.notes() == ["one, two, three share one pass up to act"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "no other run has its frozen prefix"),
        ({"freeze": []}, "nothing is frozen"),
        ({"inference": {"mode": "no_grad"}}, "no other run has its frozen prefix"),
    ],
    ids=["other weights", "all trained", "run otherwise"],
)
def test_what_differs_runs_alone_and_is_told(heads, trained, changes, reason):
    other = trained("other", **changes)
    predictors = load_predictors([*heads[:2], other])
    assert predictors.notes() == [
        "one, two share one pass up to act",
        f"other runs alone: {reason}",
    ]
    inputs = torch.randn(3, 4).tolist()
    assert torch.equal(values(predictors(inputs)["other"]), values(load_predictor(other)(inputs)))
    assert predictors.shares_with("one") == ("two",)
    assert predictors.shares_with("other") == ()


def test_a_removed_run_leaves_the_others_as_they_were(heads):
    inputs = torch.randn(5, 4).tolist()
    predictors = load_predictors(heads)
    before = predictors(inputs)
    gone = predictors["one"]
    predictors.remove("one")
    assert list(predictors) == ["two", "three"]
    assert predictors(inputs) == {name: before[name] for name in ("two", "three")}
    assert gone(inputs) == before["one"]
    assert "forward" not in vars(gone.model.get_submodule("body"))


def test_only_the_named_runs_predict(heads):
    predictors = load_predictors(heads)
    assert list(predictors([[0.0] * 4], ["three", "one", "three"])) == ["three", "one"]
    with pytest.raises(FinetuneError, match="no run 'tow'"):
        predictors([[0.0] * 4], ["tow"])
    assert predictors([]) == {"one": [], "two": [], "three": []}


def test_two_runs_of_one_name_are_refused(heads, tmp_path):
    shutil.copytree(heads[0], tmp_path / "copy" / "one")
    with pytest.raises(FinetuneError, match="two runs are named 'one'"):
        load_predictors([heads[0], tmp_path / "copy" / "one"])


def test_a_replaced_run_answers_until_the_new_one_does(heads, monkeypatch):
    inputs = torch.randn(5, 4).tolist()
    predictors = load_predictors(heads)
    old, before = predictors["one"], predictors(inputs)
    seen, own = [], Head.of.__func__

    def looking(cls, predictor, others):
        seen.append(predictors["one"])
        return own(cls, predictor, others)

    monkeypatch.setattr(Head, "of", classmethod(looking))
    new = load_predictor(heads[1])
    predictors.add("one", new)
    assert seen == [old]
    assert list(predictors) == ["one", "two", "three"]
    assert predictors(inputs) == {**before, "one": before["two"]}
    assert old(inputs) == before["one"]
    assert "forward" not in vars(old.model.get_submodule("body"))
    # the very same one again
    predictors.add("one", new)
    assert predictors(inputs) == {**before, "one": before["two"]}
    assert predictors.shares_with("one") == ("two", "three")


def test_a_run_that_cannot_be_added_leaves_the_old_one(heads):
    inputs = torch.randn(5, 4).tolist()
    predictors = load_predictors(heads)
    before = predictors(inputs)
    new = load_predictor(heads[1])
    (heads[1] / "data.json").write_text("{")
    with pytest.raises(FinetuneError):
        predictors.add("one", new)
    assert predictors(inputs) == before
