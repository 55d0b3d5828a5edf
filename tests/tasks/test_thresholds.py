"""Thresholds that are chosen are the best ones, are kept in the run, and everything uses them."""

import json
import shutil

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.metrics import f1_score

from finetune import evaluate, load_predictor
from finetune.config.task_keys import Task as TaskConfig
from finetune.data.batches import Batch
from finetune.errors import CheckpointError, FinetuneError
from finetune.tasks.build_task import build_task
from finetune.tasks.thresholds import best_threshold


@pytest.mark.slow
def test_the_chosen_threshold_has_the_best_f1_of_all_cuts_on_200_random_cases():
    for seed in range(200):
        random = np.random.default_rng(seed)
        count = random.integers(1, 20)
        shares = random.random(count).astype(np.float32)
        if seed % 3 == 0:
            shares = shares.round(1)  # ties
        target = random.random(count) < random.random()
        found = best_threshold(torch.tensor(shares), torch.tensor(target))
        if not target.any():
            assert found is None
            continue

        def f1(cut, shares=shares, target=target):
            return f1_score(target, shares >= np.float32(cut), zero_division=0)

        best = max((f1(cut) for cut in shares if cut > 0), default=0)
        assert f1(found) == pytest.approx(best), seed
        assert 0 < found <= 1


@pytest.mark.parametrize(
    ("shares", "target", "cut"),
    [
        ([0.9, 0.1], [1, 0], 0.5),
        ([0.2, 0.1], [1, 0], 0.15),
        ([0.2, 0.2], [1, 0], 0.1),
        ([0.4], [1], 0.2),
        ([0.4], [0], None),
        ([float("nan"), 0.2], [1, 0], None),
        ([1.0, 0.0], [1, 1], 0.5),
        ([0.0, 0.0], [1, 0], None),
    ],
)
def test_a_threshold_lies_between_two_samples(shares, target, cut):
    found = best_threshold(torch.tensor(shares), torch.tensor(target).bool())
    assert found == (None if cut is None else pytest.approx(cut))


@pytest.fixture
def table(tmp_path):
    """Write rare labels `a` and `b` of two numbers, and a class of them."""
    random = np.random.default_rng(0)
    rows = ["x,y,tags,kind"]
    for _ in range(200):
        x, y = random.normal(size=2)
        tags = [name for name, z in (("a", x), ("b", y)) if z + random.normal() / 2 > 1]
        rows.append(f"{x:.4f},{y:.4f},{' '.join(tags) or 'none'},{'rare' if x > 1 else 'common'}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def built(table, tmp_path):
    """Return a function that builds a run on that table; `target` is `tags` or `kind`."""
    from finetune.config.run import RunConfig
    from finetune.train.wire import build_trainer

    def build(target, run="run", split=None, threshold="auto", steps=20, **data):
        width = 1 if target == "kind" else "classes"
        task = {"type": "classification"} if target == "kind" else {"type": "multilabel"}
        task |= {"metrics": ["f1", {"type": "MatthewsCorrCoef"}], "threshold": threshold}
        config = RunConfig.model_validate(
            {
                "model": {"layers": [{"name": "head", "type": "Linear", "out_features": width}]},
                "data": {
                    "source": {"type": "csv", "path": str(table)},
                    "inputs": ["x", "y"],
                    "target": target,
                    "transforms": [{"type": "stack"}],
                    "split": split or {"validation": 0.4, "test": 0.2},
                    **data,
                },
                "task": task | ({} if target == "kind" else {"separator": " "}),
                "optimizer": {"type": "SGD", "lr": 0.1},
                "train": {"steps": steps, "batch_size": 20, "evaluate_every": {"steps": 5}},
            }
        )
        return build_trainer(config, tmp_path / run)

    return build


def outputs_of(trainer, samples):
    """Return the logits of all samples, and their targets."""
    batch = samples.fetch(torch.arange(len(samples)))
    with torch.no_grad():
        return trainer.model.eval()(**batch.inputs), batch.target


@pytest.mark.parametrize("target", ["tags", "kind"])
def test_a_run_chooses_on_validation_keeps_it_and_uses_it_for_test_evaluation_and_prediction(
    target, built, tmp_path, capsys
):
    trainer = built(target)
    trainer.fit()
    logits, wanted = outputs_of(trainer, trainer.splits.validation)
    wanted = wanted.reshape(len(wanted), -1).bool()
    best = [best_threshold(logits[:, n].sigmoid(), wanted[:, n]) for n in range(wanted.shape[1])]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    kept = summary["threshold"]
    assert list(kept["values"].values()) == pytest.approx(best, rel=1e-5)
    assert kept["step"] == trainer.progress.step_in_use
    assert any(value != 0.5 for value in kept["values"].values())
    said = capsys.readouterr().err
    assert "by the best F1 on 80 validation samples" in said
    assert said.count("threshold") >= 2
    # The test figures of the run are those of the thresholds, and `finetune eval` has the same.
    logits, wanted = outputs_of(trainer, trainer.splits.test)
    cuts = torch.tensor(list(kept["values"].values()))
    answers, wanted = (logits.sigmoid() >= cuts).int(), wanted.reshape(len(wanted), -1).int()
    labels = [0, 1] if target == "kind" else None
    f1 = f1_score(wanted, answers, average="macro", labels=labels)
    assert summary["metrics"]["test/f1"] == pytest.approx(f1, rel=1e-5)
    there = evaluate(tmp_path / "run")
    assert there["f1"] == summary["metrics"]["test/f1"]
    assert there["MatthewsCorrCoef"] == summary["metrics"]["test/MatthewsCorrCoef"]
    predictor = load_predictor(tmp_path / "run")
    rows = [{"x": x, "y": y} for x, y in torch.randn(50, 2).mul(2).tolist()]
    for found in predictor(rows):
        shares = found.probabilities
        given = {name for name, cut in kept["values"].items() if shares[name] >= cut}
        assert given == ({found.label} - {"common"} if target == "kind" else set(found.label))


def test_a_run_that_was_killed_before_its_end_chooses_the_same(built, tmp_path):
    built("tags").fit(quiet=True)
    whole = json.loads((tmp_path / "run" / "summary.json").read_text())
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    (tmp_path / "killed" / "summary.json").unlink()
    again = built("tags", run="killed")
    again.fit(quiet=True)
    there = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert there["threshold"] == whole["threshold"]
    assert there["metrics"] == whole["metrics"]
    # A run that is done already takes what it has kept.
    done = built("tags", run="killed")
    done.fit(quiet=True)
    assert done.evaluator.task.threshold.as_data()["values"] == there["threshold"]["values"]


def test_weights_without_a_chosen_threshold_use_one_half_and_say_so(built, tmp_path):
    built("tags").fit(quiet=True)
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["threshold"]["step"] += 1
    path.write_text(json.dumps(summary))
    predictor = load_predictor(tmp_path / "run")
    assert "is 0.5" in predictor.run.notes[0]
    assert set(predictor.run.task.threshold.values) == {0.5}


@pytest.mark.parametrize(
    "values", [{"a": 0.5}, {"a": 0.1, "b": "x", "none": 0.1}, {"a": 2.0, "b": 0.1, "none": 0.1}, []]
)
def test_damaged_thresholds_are_refused_with_their_file(values, built, tmp_path):
    built("tags").fit(quiet=True)
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["threshold"]["values"] = values
    path.write_text(json.dumps(summary))
    with pytest.raises(CheckpointError, match=r"summary\.json: does not hold a threshold"):
        load_predictor(tmp_path / "run")


def test_a_damaged_summary_is_refused_and_a_missing_one_is_told(built, tmp_path):
    built("tags").fit(quiet=True)
    path = tmp_path / "run" / "summary.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"summary\.json: missing or damaged"):
        load_predictor(tmp_path / "run")
    path.unlink()
    assert "is 0.5" in load_predictor(tmp_path / "run").run.notes[0]


def test_without_validation_samples_auto_is_refused_with_its_key(built):
    with pytest.raises(FinetuneError, match="chosen on validation samples") as caught:
        built("kind", split={"test": 0.2})
    assert "task.threshold" in str(caught.value)
    assert "validation: 0.1" in caught.value.hint


def test_three_classes_have_no_threshold(make_trainer):
    with pytest.raises(FinetuneError, match="threshold is for two classes; there are 10"):
        make_trainer(task={"type": "classification", "threshold": 0.4})


@pytest.mark.parametrize("kind", ["multilabel", "classification"])
def test_predictions_and_metrics_agree_on_a_probability_at_the_threshold(kind):
    """0.7 has no exact float32: the nearest one lies below it."""
    node = TypeAdapter(TaskConfig).validate_python(
        {"type": kind, "threshold": 0.7, "metrics": ["accuracy"]}
    )
    task = build_task(node, classes=("a", "b"), trust=(), device=torch.device("cpu"))
    drawn = torch.linspace(0.84, 0.86, 400_000)
    pairs = torch.stack([torch.zeros_like(drawn), drawn], 1)
    shares = drawn.sigmoid() if kind == "multilabel" else pairs.softmax(1)[:, 1]
    (at,) = (shares == torch.tensor(0.7)).nonzero()[:1]
    outputs = pairs[at]
    target = torch.tensor([[0.0, 1.0]]) if kind == "multilabel" else torch.tensor([1])
    task.update_metrics(outputs, Batch({}, target, torch.arange(1)))
    assert task.compute_metrics() == {"accuracy": 1.0}
    assert task.read(outputs)[0].label == (("b",) if kind == "multilabel" else "b")
