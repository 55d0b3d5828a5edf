"""Metrics of torchmetrics by class are those of scikit-learn and scipy on 200 random cases."""

import numpy as np
import pytest
import torch
from compared_metrics import CASES, compare, measured, task_of
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from sklearn import metrics as sk

from finetune.config.task_keys import Task as TaskConfig
from finetune.errors import FinetuneError
from finetune.tasks.build_task import build_task


def of_classes(count, least=1):
    def draw(random):
        samples = random.integers(least, 30)
        logits = random.normal(size=(samples, count)).round(1).astype(np.float32) * 3
        return logits, random.integers(random.integers(1, count + 1), size=samples)

    return draw


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def macro(function, count, **more):
    def of(logits, target):
        labels = list(range(count))
        return function(
            target, logits.argmax(1), labels=labels, average="macro", zero_division=0, **more
        )

    return of


@pytest.mark.slow
def test_metrics_of_classes_are_scikit_learns():
    metrics = [
        {"type": "MatthewsCorrCoef"},
        {"type": "CohenKappa", "weights": "quadratic"},
        {"type": "FBetaScore", "beta": 2.0, "average": "macro"},
        {"type": "F1Score", "average": "micro", "name": "pooled"},
        {"type": "JaccardIndex"},
        {"type": "Accuracy", "name": "balanced"},
        {"type": "Accuracy", "top_k": 2, "average": "micro"},
        {"type": "AUROC"},
        {"type": "AveragePrecision"},
    ]
    one_hot = np.eye(3)
    references = {
        "MatthewsCorrCoef": lambda z, y: sk.matthews_corrcoef(y, z.argmax(1)),
        "CohenKappa": lambda z, y: sk.cohen_kappa_score(
            y, z.argmax(1), weights="quadratic", labels=[0, 1, 2]
        ),
        "FBetaScore": macro(sk.fbeta_score, 3, beta=2.0),
        "pooled": lambda z, y: sk.accuracy_score(y, z.argmax(1)),
        "JaccardIndex": macro(sk.jaccard_score, 3),
        "balanced": lambda z, y: sk.balanced_accuracy_score(y, z.argmax(1)),
        "Accuracy": lambda z, y: sk.top_k_accuracy_score(y, z, k=2, labels=[0, 1, 2]),
        "AUROC": lambda z, y: sk.roc_auc_score(y, softmax(z), multi_class="ovr"),
        "AveragePrecision": lambda z, y: sk.average_precision_score(one_hot[y], softmax(z)),
    }

    # Ties of the two best logits are broken otherwise there.
    def draw(random):
        logits, target = of_classes(3)(random)
        return logits + random.normal(size=logits.shape).astype(np.float32) / 50, target

    defined = compare(task_of("classification", metrics, classes=3), draw, references)
    assert defined["Accuracy"] == defined["pooled"] == CASES
    assert all(20 < count <= CASES for count in defined.values())


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2], ids=["one logit", "two logits"])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_metrics_of_two_classes_take_the_second_as_positive(width, threshold):
    metrics = [
        {"type": "BinaryF1Score"},
        {"type": "BinaryAUROC"},
        {"type": "BinaryAveragePrecision"},
        {"type": "BinaryMatthewsCorrCoef"},
        {"type": "Precision", "name": "macro"},
        "recall",
    ]

    def share(logits):
        z = logits[:, 0] if width == 1 else logits[:, 1] - logits[:, 0]
        return 1 / (1 + np.exp(-z))

    def said(logits):
        return (share(logits) >= (threshold or 0.5)).astype(int)

    references = {
        "BinaryF1Score": lambda z, y: sk.f1_score(y, said(z), zero_division=0),
        "BinaryAUROC": lambda z, y: sk.roc_auc_score(y, share(z)),
        "BinaryAveragePrecision": lambda z, y: sk.average_precision_score(y, share(z)),
        "BinaryMatthewsCorrCoef": lambda z, y: sk.matthews_corrcoef(y, said(z)),
        "macro": lambda z, y: sk.precision_score(y, said(z), average="macro", zero_division=0),
        "recall": lambda z, y: sk.recall_score(y, said(z), average="macro", zero_division=0),
    }

    def draw(random):
        samples = random.integers(1, 25)
        logits = random.normal(size=(samples, width)).astype(np.float32)
        return logits, random.integers(random.integers(1, 3), size=samples)

    task = task_of("classification", metrics, classes=2, threshold=threshold)
    defined = compare(task, draw, references)
    assert all(50 < count < CASES for count in defined.values())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_metrics_of_labels_are_scikit_learns(count, threshold):
    metrics = [
        {"type": "FBetaScore", "beta": 2.0, "average": "macro"},
        {"type": "AveragePrecision"},
        {"type": "AUROC"},
        {"type": "MatthewsCorrCoef"},
    ]
    if count > 1:
        metrics += [{"type": "ExactMatch"}, {"type": "HammingDistance"}]

    def said(logits):
        return (1 / (1 + np.exp(-logits)) >= threshold).astype(int)

    references = {
        "FBetaScore": lambda z, y: np.mean(
            [sk.fbeta_score(y[:, n], said(z)[:, n], beta=2, zero_division=0) for n in range(count)]
        ),
        "AveragePrecision": lambda z, y: sk.average_precision_score(y, z),
        "AUROC": lambda z, y: sk.roc_auc_score(y, z),
        "MatthewsCorrCoef": lambda z, y: sk.matthews_corrcoef(y.flatten(), said(z).flatten()),
        "ExactMatch": lambda z, y: sk.accuracy_score(y, said(z)),
        "HammingDistance": lambda z, y: sk.hamming_loss(y, said(z)),
    }

    def draw(random):
        samples = random.integers(1, 25)
        logits = random.normal(size=(samples, count)).astype(np.float32) * 3
        return logits, (random.random((samples, count)) < random.random()).astype(np.float32)

    names = {one.get("name", one["type"]) for one in metrics}
    task = task_of("multilabel", metrics, classes=count, threshold=threshold)
    defined = compare(task, draw, {name: references[name] for name in names})
    assert all(50 < found <= CASES for found in defined.values())


@pytest.mark.slow
def test_metrics_of_numbers_are_scikit_learns_and_scipys():
    metrics = [
        {"type": "SpearmanCorrCoef"},
        {"type": "PearsonCorrCoef"},
        {"type": "KendallRankCorrCoef"},
        {"type": "ExplainedVariance"},
        {"type": "R2Score"},
        {"type": "MeanSquaredError", "squared": False, "name": "root"},
        {"type": "MeanAbsolutePercentageError"},
        {"type": "MeanSquaredLogError"},
    ]
    references = {
        "SpearmanCorrCoef": lambda z, y: stats.spearmanr(z, y).statistic,
        "PearsonCorrCoef": lambda z, y: stats.pearsonr(z, y).statistic,
        "KendallRankCorrCoef": lambda z, y: stats.kendalltau(z, y).statistic,
        "ExplainedVariance": lambda z, y: sk.explained_variance_score(y, z),
        "R2Score": lambda z, y: sk.r2_score(y, z),
        "root": lambda z, y: sk.root_mean_squared_error(y, z),
        "MeanAbsolutePercentageError": lambda z, y: sk.mean_absolute_percentage_error(y, z),
        "MeanSquaredLogError": lambda z, y: sk.mean_squared_log_error(y, z),
    }

    def draw(random):
        samples = random.integers(1, 25)
        outputs = (1 + random.random(samples) * 9).astype(np.float32)
        far = random.choice([1.0, 1000.0])
        target = far + random.integers(random.integers(1, 8), size=samples).astype(np.float32)
        return outputs, target

    def draw_wide(random):
        # At least three samples: of two, a correlation is 1 or -1 in each library, or NaN.
        while True:
            outputs, target = draw(random)
            if len(outputs) > 2:
                return outputs, target

    defined = compare(task_of("regression", metrics), draw_wide, references)
    assert all(100 < found <= CASES for found in defined.values())


def test_a_figure_is_left_out_with_its_reason_where_the_targets_do_not_define_it():
    metrics = [{"type": "MatthewsCorrCoef"}, {"type": "AveragePrecision"}, {"type": "Specificity"}]
    task = task_of("classification", metrics, classes=2)
    found, left_out = measured(task, torch.randn(6, 2), torch.ones(6, dtype=torch.long))
    assert not found
    assert left_out["MatthewsCorrCoef"] == "every target is 1"
    assert left_out["AveragePrecision"] == "none of 6 samples is of class 'c0'"
    assert left_out.keys() == {"MatthewsCorrCoef", "AveragePrecision", "Specificity"}


def test_constant_outputs_leave_a_correlation_out_without_a_warning(recwarn):
    task = task_of("regression", [{"type": "PearsonCorrCoef"}])
    found, left_out = measured(task, torch.ones(6), torch.arange(6.0))
    assert not found
    assert left_out == {"PearsonCorrCoef": "it gives NaN"}
    assert not recwarn.list


def test_the_direction_is_that_of_the_class_or_of_the_config():
    metrics = [
        {"type": "HammingDistance"},
        {"type": "MatthewsCorrCoef"},
        {"type": "Specificity"},
        {"type": "Specificity", "name": "known", "better": "higher"},
    ]
    better = task_of("classification", metrics, classes=3).directions.by_tag
    assert [*better.values()] == ["lower", "lower", "higher", None, "higher"]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"type": "MatthewsCorCoef"}, "no metric 'MatthewsCorCoef'"),
        ({"type": "FBetaScore", "betta": 2.0}, "no argument 'betta'"),
        ({"type": "FBetaScore"}, "missing, and FBetaScore needs it"),
        ({"type": "FBetaScore", "beta": "two"}, "needs a number"),
        ({"type": "F1Score", "num_classes": 3}, "no argument 'num_classes'"),
        ({"type": "ConfusionMatrix"}, "does not return one number"),
        ({"type": "AUROC", "average": "none"}, "a number for each class"),
        ({"type": "R2Score"}, "no metric"),
        ({"type": "AUROC", "thresholds": 10**9}, "between 0 and 10000"),
    ],
    ids=str,
)
def test_wrong_names_and_arguments_are_told_by_the_config(metric, words):
    with pytest.raises(ValidationError) as caught:
        task_of("classification", [metric], classes=3)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "metric", "classes", "words"),
    [
        ("classification", {"type": "BinaryF1Score"}, 3, "is for two classes; there are 3"),
        ("classification", {"type": "F1Score", "top_k": 9}, 3, "top_k"),
        ("classification", {"type": "EER"}, 3, "needs to give one number"),
        ("classification", {"type": "LogAUC"}, 3, "needs to give one number"),
        ("classification", {"type": "AUROC", "thresholds": [2.0, 3.0]}, 3, "AUROC: "),
        ("multilabel", {"type": "ExactMatch"}, 1, "needs two labels"),
        ("regression", {"type": "R2Score", "multioutput": "raw"}, None, "R2Score: "),
        ("regression", {"type": "MinkowskiDistance", "p": 0}, None, "MinkowskiDistance: "),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_what_only_the_data_or_torchmetrics_knows_is_refused_before_training(
    kind, metric, classes, words
):
    with pytest.raises(FinetuneError) as caught:
        task_of(kind, ["auroc" if classes else "mae", metric], classes=classes)
    assert words in caught.value.message
    assert caught.value.key[:3] == ("task", "metrics", 1)


@pytest.mark.parametrize(("kind", "classes"), [("classification", 3), ("classification", 2)])
def test_every_class_of_the_catalogue_gives_one_number(kind, classes):
    every_class_gives_a_number(kind, classes)


@pytest.mark.parametrize(("kind", "classes"), [("multilabel", 3), ("multilabel", 1)])
def test_every_metric_of_labels_gives_one_number(kind, classes):
    every_class_gives_a_number(kind, classes)


def test_every_metric_of_numbers_gives_one_number():
    every_class_gives_a_number("regression", None)


NEEDS_TWO_LABELS = {"CoverageError", "ExactMatch", "RankingAveragePrecision"}


def every_class_gives_a_number(kind, classes):
    from finetune.config import catalogue

    tables = {
        "classification": catalogue.METRICS_OF_CLASSES,
        "multilabel": catalogue.METRICS_OF_LABELS,
        "regression": catalogue.METRICS_OF_NUMBERS,
    }
    needed = {"beta": 2.0, "p": 2.0, "threshold": 2.5}
    for name, entry in tables[kind].items():
        given = {key: needed[key] for key, one in entry.arguments.items() if one.required}
        if name in ("EER", "LogAUC") and "average" in entry.arguments:
            given["average"] = "macro"
        if classes == 3 and name.startswith("Binary"):
            continue
        if classes == 1 and name in NEEDS_TWO_LABELS:
            continue
        task = task_of(kind, [{"type": name, **given}], classes=classes)
        assert [one.name for one in task.metrics] == [name]


@pytest.mark.parametrize(
    ("kind", "metric", "classes"),
    [
        ("classification", {"type": "FBetaScore", "beta": 2}, 3),
        ("classification", {"type": "BinaryFBetaScore", "beta": 2}, 2),
        ("classification", {"type": "BinaryAUROC", "max_fpr": 1}, 2),
        ("multilabel", {"type": "FBetaScore", "beta": 2, "zero_division": 1}, 3),
        ("regression", {"type": "MinkowskiDistance", "p": 2}, None),
        ("regression", {"type": "TweedieDevianceScore", "power": 1}, None),
    ],
)
def test_a_whole_number_is_taken_where_a_metric_wants_a_float(kind, metric, classes):
    (made,) = task_of(kind, [metric], classes=classes).metrics
    assert made.name == metric["type"]


def test_each_of_several_outputs_has_its_own_figures():
    task = task_of("regression", ["mae", {"type": "R2Score"}], per_output=True)
    outputs = torch.tensor(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    target = outputs + torch.tensor([[0.5, -2.0]])
    found, _ = measured(task, outputs, target)
    assert found["mae"] == pytest.approx(1.25)
    assert (found["mae/a"], found["mae/b"]) == (pytest.approx(0.5), pytest.approx(2.0))
    assert found["R2Score/b"] == pytest.approx(sk.r2_score(target[:, 1], outputs[:, 1]), rel=1e-4)
    assert task.directions.by_tag["validation/mae/b"] == "lower"


@pytest.mark.slow
def test_metrics_that_depend_on_the_spread_are_means_over_columns_on_200_random_cases():
    """As those of scikit-learn and scipy are; over all numbers at once they would be near 1."""

    def mean_of(function):
        return lambda out, so: np.mean([function(so[:, k], out[:, k]) for k in range(2)])

    def weighted(out, so):
        return sk.r2_score(so, out, multioutput="variance_weighted")

    references = {
        "r2": lambda out, so: sk.r2_score(so, out),
        "R2Score": lambda out, so: sk.r2_score(so, out),
        "weighted": weighted,
        "ExplainedVariance": lambda out, so: sk.explained_variance_score(so, out),
        "PearsonCorrCoef": mean_of(lambda so, out: stats.pearsonr(so, out)[0]),
        "SpearmanCorrCoef": mean_of(lambda so, out: stats.spearmanr(so, out)[0]),
        "KendallRankCorrCoef": mean_of(lambda so, out: stats.kendalltau(so, out)[0]),
        "NormalizedRootMeanSquaredError": mean_of(
            lambda so, out: np.sqrt(sk.mean_squared_error(so, out)) / so.mean()
        ),
    }
    metrics = [{"type": name} for name in references if name not in ("r2", "weighted")]
    named = {"type": "R2Score", "name": "weighted", "multioutput": "variance_weighted"}
    task = task_of("regression", ["r2", *metrics, named])

    def draw(random):
        size = random.integers(3, 30)
        so = random.normal(size=(size, 2)) * [1, 3] + [1000, 5]
        out = so + random.normal(size=(size, 2))
        return out.astype(np.float32), so.astype(np.float32)

    assert compare(task, draw, references) == dict.fromkeys(references, CASES)


def test_figures_of_each_output_need_several_target_columns():
    node = TypeAdapter(TaskConfig).validate_python({"type": "regression", "per_output": True})
    with pytest.raises(FinetuneError, match="several target columns"):
        build_task(node, classes=None, trust=(), device=torch.device("cpu"))
