"""Lists of tasks: their losses over samples with a target, their metrics, records and keys."""

import csv
import json
from pathlib import Path

import palmerpenguins
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, r2_score
from torch.nn import functional as F

from finetune import build_trainer, load_config, load_predictor
from finetune.config.task_list_keys import ShortTask
from finetune.data.batches import Batch
from finetune.data.targets.listed_targets import KNOWN
from finetune.errors import FinetuneError
from finetune.tasks.build_task import build_task
from finetune.tasks.task import add_up
from finetune.tasks.task_facts import TrainingClasses, TrainingCounts
from finetune.tasks.window_mean import WindowMean
from finetune.train.after.trained import evaluate_run

SHIPPED = Path(__file__).parents[2] / "configs" / "penguins_tasks.yaml"
KIND = {"type": "classification", "output": "a", "target": "kind"}
SIZE = {"type": "regression", "output": "b", "target": "size", "weight": 0.25}
MARKS = {"type": "multilabel", "output": "c", "target": "marks", "name": "signs"}
LIKE = {"type": "similarity", "output": "c", "target": "score", "score_range": [0, 2]}
CLASSES = ("cat", "dog", "owl")
LABELS = ("wet", "old")


def made(*tasks):
    node = TypeAdapter(ShortTask).validate_python(list(tasks or (KIND, SIZE, MARKS)))
    known = {
        "kind": TrainingClasses(CLASSES, TrainingCounts(10, (5, 3, 2))),
        "marks": TrainingClasses(LABELS, TrainingCounts(10, (4, 6))),
    }
    return build_task(node, classes=None, trust=(), device=torch.device("cpu"), by_target=known)


def samples(count=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    outputs = {
        name: torch.randn(count, width, generator=draw)
        for name, width in zip("abc", (3, 1, 2), strict=True)
    }
    columns = {
        "kind": torch.randint(0, 3, (count,), generator=draw),
        "size": torch.randn(count, generator=draw),
        "marks": torch.randint(0, 2, (count, 2), generator=draw).float(),
        KNOWN + "size": torch.tensor([n % 4 != 1 for n in range(count)]),
    }
    return outputs, Batch({}, None, torch.arange(count), columns=columns)


def mean_over_window(task, outputs, batch, size):
    outputs = {name: values.clone().requires_grad_() for name, values in outputs.items()}
    rows = [slice(n, n + size) for n in range(0, len(batch), size)]
    window = [batch.at(some) for some in rows]
    mean, whole = WindowMean(task.losses, window), 0.0
    for some, part in zip(rows, window, strict=True):
        of_part = {name: values[some] for name, values in outputs.items()}
        share = add_up(mean.shares(task.parts(of_part, part)))
        share.backward()
        whole += float(share.detach())
    return whole, [values.grad for values in outputs.values()]


def test_the_loss_is_the_weighted_sum_of_each_mean_over_the_samples_with_a_target():
    outputs, batch = samples()
    known = batch.columns[KNOWN + "size"]
    expected = (
        F.cross_entropy(outputs["a"], batch.columns["kind"])
        + 0.25 * F.mse_loss(outputs["b"][known, 0], batch.columns["size"][known])
        + F.binary_cross_entropy_with_logits(outputs["c"], batch.columns["marks"])
    )
    torch.testing.assert_close(made().loss(outputs, batch), expected)


def test_what_stands_where_a_target_is_missing_changes_nothing():
    task, (outputs, batch) = made(), samples()
    expected = task.loss(outputs, batch)
    batch.columns["size"][~batch.columns[KNOWN + "size"]] = 1e6
    assert torch.equal(task.loss(outputs, batch), expected)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_window_has_the_same_loss_however_it_is_cut(size):
    """Cut into single samples, some micro-batches have no target of one task at all."""
    task, (outputs, batch) = made(), samples()
    whole, gradients = mean_over_window(task, outputs, batch, len(batch))
    again, others = mean_over_window(task, outputs, batch, size)
    assert again == pytest.approx(whole, rel=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_a_split_without_any_target_of_a_task_leaves_its_metrics_out_and_its_loss_at_zero():
    task, (outputs, batch) = made(KIND, SIZE), samples()
    batch.columns[KNOWN + "size"][:] = False
    assert mean_over_window(task, outputs, batch, 9)[0] == pytest.approx(
        float(F.cross_entropy(outputs["a"], batch.columns["kind"]))
    )
    task.update_metrics(outputs, batch)
    left_out = {}
    assert task.compute_metrics(left_out).keys() == {"kind/accuracy"}
    assert left_out.keys() == {"size/mae"}


def test_metrics_are_those_of_scikit_learn_on_the_samples_with_a_target():
    task = made(KIND, SIZE | {"metrics": ["r2"]})
    for seed in range(50):
        outputs, batch = samples(12, seed)
        for some in (slice(0, 5), slice(5, 6), slice(6, 12)):
            part = {name: values[some] for name, values in outputs.items()}
            task.update_metrics(part, batch.at(some))
        found, known = task.compute_metrics(), batch.columns[KNOWN + "size"]
        right = accuracy_score(batch.columns["kind"], outputs["a"].argmax(1))
        assert found["kind/accuracy"] == pytest.approx(right)
        r2 = r2_score(batch.columns["size"][known], outputs["b"][known, 0])
        assert found["size/r2"] == pytest.approx(r2, rel=1e-4)


def test_rules_may_watch_each_figure_of_each_task():
    assert dict(made().directions.by_tag) == {
        "validation/loss": "lower",
        "validation/kind/accuracy": "higher",
        "validation/size/mae": "lower",
        "validation/signs/f1": "higher",
        "validation/kind/loss": "lower",
        "validation/size/loss": "lower",
        "validation/signs/loss": "lower",
    }
    assert made().directions.main() == "validation/kind/accuracy"


def test_the_losses_of_the_tasks_add_up_to_the_loss():
    two = {"losses": [{"type": "mse"}, {"type": "l1"}]}
    figures = made(KIND, SIZE | two).figures_of_losses([1.0, 2.0, 4.0])
    assert figures == {"loss": 7.0, "kind/loss": 1.0, "size/loss": 6.0}


def test_a_record_has_the_row_of_each_task():
    outputs, _ = samples(2)
    first, _ = made().read(outputs)
    alone = build_task(
        TypeAdapter(ShortTask).validate_python({"type": "classification"}),
        classes=CLASSES, trust=(), device=torch.device("cpu"),
    )  # fmt: skip
    assert first.row()["kind"] == alone.read(outputs["a"])[0].row()
    assert first.row()["size"] == {"values": outputs["b"][0].tolist()}
    assert list(first.row()) == ["kind", "size", "signs"]


def test_two_tasks_may_learn_one_column_from_two_layers():
    outputs, batch = samples()
    task = made(KIND, KIND | {"output": "c2", "name": "early", "weight": 0.5})
    outputs["c2"] = outputs["a"] * 2
    expected = F.cross_entropy(outputs["a"], batch.columns["kind"])
    expected += 0.5 * F.cross_entropy(outputs["c2"], batch.columns["kind"])
    torch.testing.assert_close(task.loss(outputs, batch), expected)


def test_pairs_with_a_score_are_one_of_several_tasks():
    outputs, batch = samples()
    draw = torch.Generator().manual_seed(3)
    outputs["c"] = torch.randn(9, 2, 4, generator=draw)
    batch.columns["score"] = torch.rand(9, generator=draw) * 2
    batch.columns[KNOWN + "score"] = known = torch.arange(9) % 4 > 0
    task = made(KIND, LIKE)
    cosines = F.cosine_similarity(*outputs["c"][known].unbind(1))
    expected = F.cross_entropy(outputs["a"], batch.columns["kind"])
    expected += F.mse_loss(cosines, batch.columns["score"][known] / 2)
    torch.testing.assert_close(task.loss(outputs, batch), expected)
    task.update_metrics(outputs, batch)
    right = spearmanr(cosines, batch.columns["score"][known]).statistic
    assert task.compute_metrics()["score/spearman"] == pytest.approx(right, rel=1e-5)
    read = task.read(outputs)[0].row()
    assert read["score"]["score"] == pytest.approx(2 * read["score"]["cosine"])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([KIND, KIND], "two tasks are called 'kind'"),
        ([KIND, SIZE | {"target": "kind", "name": "x"}], "learn column 'kind' as different things"),
        ([KIND | {"threshold": "auto"}], "threshold 'auto' is for a single task"),
        ([SIZE | {"per_output": True}], "per_output is for several target columns"),
        ([{"type": "classification", "target": "kind"}], "output"),
        ([LIKE | {"compares": "pairs", "score_range": None}], "compares: pairs learns no column"),
        ([{"type": "token_classification"}], "the tags of a text go to its tokens"),
        ([KIND, {"type": "segmentation"}], "a mask must move and be resized with its image"),
        ([{"type": "span"}, KIND], "cut into windows.* run of its own: task: {type: span}"),
        ([{"type": "detection"}], "has no output that a second task could read"),
        ([{"type": "import", "path": "a:b"}], "compute the losses of all tasks in it"),
        ([{"type": "classifcation"}], "classifcation"),
        ([], "at least 1"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(tasks, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ShortTask).validate_python(tasks)


def test_a_column_may_not_be_input_and_target(pets):
    with pytest.raises(
        FinetuneError, match=r"task\.1\.target: column 'x' is both input and target"
    ):
        load_config(pets(task=[KIND, SIZE | {"target": "x"}]))


PETS = [(f"{n * 0.37 % 1:.3f}", f"{n * 0.61 % 1:.3f}") for n in range(60)]


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A config on 60 rows, of which some have no size and others no kind; `change` edits rows."""
    monkeypatch.chdir(tmp_path)

    def made_of(change=lambda rows: rows, **sections):
        rows = [["x", "y", "kind", "size"]]
        for n, (x, y) in enumerate(PETS):
            kind = "" if n % 7 == 3 else "cat" if float(x) > 0.5 else "dog"
            rows.append([x, y, kind, "" if n % 5 == 2 else str(float(x) - float(y))])
        with (tmp_path / "pets.csv").open("w", newline="") as file:
            csv.writer(file).writerows(change(rows))
        layers = [
            {"name": "body", "type": "Linear", "out_features": 8},
            {"name": "act", "type": "Tanh"},
            {"name": "a", "type": "Linear", "inputs": ["act"], "out_features": "classes"},
            {"name": "b", "type": "Linear", "inputs": ["act"], "out_features": 1},
        ]
        config = {
            "model": {"layers": layers},
            "data": {
                "source": {"type": "csv", "path": "pets.csv"},
                "inputs": ["x", "y"],
                "split": {"validation": 0.2, "test": 0.2},
                "transforms": [{"type": "stack"}],
            },
            "task": [KIND, SIZE],
            "optimizer": {"type": "AdamW", "lr": 0.05},
            "train": {"epochs": 20, "batch_size": 8},
        } | sections
        (tmp_path / "pets.yaml").write_text(json.dumps(config))
        return tmp_path / "pets.yaml"

    return made_of


def trained(path, run="run", **values):
    overrides = [f"{key}={value}" for key, value in values.items()]
    trainer = build_trainer(load_config(path, overrides=overrides), Path(run))
    trainer.fit(quiet=True)
    return trainer


def test_a_run_learns_every_task_where_rows_lack_targets_and_says_how_many(pets):
    trainer = trained(pets())
    figures = trainer.progress.metrics
    assert figures["test/kind/accuracy"] > 0.9
    assert figures["test/size/loss"] < 0.02
    notes = json.loads(Path("run/data.json").read_text())["notes"]
    told = "column 'size' is empty in 12 of 60 rows of the data, which do not count for task 'size'"
    assert told in notes
    assert evaluate_run("run", "test") == pytest.approx(dict(_of_test(figures)), rel=1e-5)
    whole = evaluate_run("run", source="pets.csv")
    assert whole["kind/accuracy"] > 0.9
    first, second = load_predictor("run")([{"x": 0.9, "y": 0.1}, {"x": 0.1, "y": 0.9}])
    assert [said.by_task["kind"].label for said in (first, second)] == ["cat", "dog"]
    assert first.by_task["size"].values[0] > 0.3 > -0.3 > second.by_task["size"].values[0]


def _of_test(figures):
    return [(tag[5:], value) for tag, value in figures.items() if tag.startswith("test/")]


@pytest.mark.slow
def test_a_frozen_body_is_cached_and_the_run_ends_bit_identical(pets, always):
    path = pets(freeze=["body"])
    cached = trained(path, "cached")
    plain = trained(path, "plain", **{"cache.use": "off"})
    summary = json.loads(Path("cached/summary.json").read_text())
    assert summary["activation_cache"]["answered"] > 0
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(cached.model.state_dict()[name], tensor), name
    assert json.loads(Path("cached/freeze_proof.json").read_text())["intact"]


def test_micro_batches_change_the_weights_by_rounding_alone(pets):
    whole, cut = (
        trained(pets(), run, **{"train.micro_batch": size, "train.epochs": 2}).model.state_dict()
        for run, size in (("whole", 8), ("cut", 1))
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=1e-5)


def test_other_classes_in_one_column_are_told_when_a_run_goes_on(pets):
    trained(pets(), **{"train.epochs": 1})
    renamed = pets(lambda rows: [[cell.replace("dog", "owl") for cell in row] for row in rows])
    with pytest.raises(FinetuneError, match="column 'kind': classes: 'dog' gone, 'owl' new"):
        trained(renamed, **{"train.epochs": 1})


def without(column, rows):
    place = rows[0].index(column)
    return [rows[0], *([*row[:place], "", *row[place + 1 :]] for row in rows[1:])]


@pytest.mark.parametrize(
    ("sections", "change", "message", "key"),
    [
        ({"task": [KIND, SIZE | {"target": "sise"}]}, None, "no column 'sise'", "task.1.target"),
        ({"task": [KIND, SIZE | {"output": "hed"}]}, None, "no earlier layer", "task.1.output"),
        ({"task": [KIND, SIZE | {"output": "x"}]}, None, "no earlier layer", "task.1.output"),
        ({}, "size", "is empty in all rows of the data", "task.1.target"),
        ({"task": [SIZE, KIND | {"type": "regression"}]}, None, "holds 'dog'", "task.1.target"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_task(pets, sections, change, message, key):
    path = pets(*([lambda rows: without(change, rows)] if change else []), **sections)
    with pytest.raises(FinetuneError, match=message) as error:
        trained(path)
    assert key in f"{error.value.where}"


@pytest.mark.slow
def test_the_shipped_tasks_learn_what_shuffled_targets_do_not_teach(tmp_path, monkeypatch):
    """A constant predictor has an accuracy of 0.44 (Adelie), and an r2 of 0 at most."""
    monkeypatch.chdir(tmp_path)
    config = load_config(SHIPPED)
    with Path(palmerpenguins.__file__).with_name("data").joinpath("penguins.csv").open() as file:
        header, *rows = list(csv.reader(file))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    learnt = {header.index(name) for name in ("species", "bill_depth_mm")}
    shuffled = [
        [rows[order[n]][c] if c in learnt else cell for c, cell in enumerate(row)]
        for n, row in enumerate(rows)
    ]
    with Path("shuffled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *shuffled])
    build_trainer(config, Path("run")).fit(quiet=True)
    other = load_config(SHIPPED, overrides=["data.source.path=shuffled.csv"])
    build_trainer(other, Path("other")).fit(quiet=True)
    right, wrong = evaluate_run("run", "test"), evaluate_run("other", "test")
    assert right["species/accuracy"] > 0.9
    assert right["bill_depth/r2"] > 0.5
    assert wrong["species/accuracy"] < 0.6
    assert wrong["bill_depth/r2"] < 0.1
