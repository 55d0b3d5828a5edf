"""`metrics:` of a task: built in and given by name, a class of torchmetrics, or imported."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from finetune.config.base import PUBLIC, Node, OpenNode
from finetune.config.bounds import Arguments
from finetune.config.catalogue import (
    METRICS_OF_CLASSES,
    METRICS_OF_LABELS,
    METRICS_OF_NUMBERS,
    Complaint,
    KnownClasses,
    check_arguments,
)

ClassificationMetric = Literal["accuracy", "f1", "precision", "recall", "auroc"]
TokenMetric = Literal["f1", "precision", "recall", "accuracy"]
RegressionMetric = Literal["mse", "rmse", "mae", "r2"]
SpanMetric = Literal["exact_match", "f1"]
SegmentationMetric = Literal["mean_iou", "dice", "pixel_accuracy"]
DetectionMetric = Literal[
    "map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100"
]
ScoreMetric = Literal["spearman", "pearson"]
RankMetric = Literal["mrr", "recall@1", "recall@3", "recall@5", "recall@10", "recall@100"]
PairMetric = ScoreMetric | RankMetric | Literal["triplet_accuracy"]
Better = Literal["lower", "higher"]


class ImportMetric(Node):
    """The user's own metric, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.metrics:make`: called with `args`, it returns a `torchmetrics.Metric`, which gets the same inputs as the built-in ones, or `(outputs, batch)` if the second argument of its `update` is called `batch`."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""
    name: Annotated[str | None, PUBLIC] = Field(default=None, pattern=r"^[A-Za-z_0-9]+$")
    """Name in the logs; the part of `path` behind the colon if left out."""
    better: Better | None = None
    """Direction in which it improves; as its class says (`higher_is_better`) if left out. Needed only if a rule watches the metric."""

    @property
    def label(self) -> str:
        """Name of the metric in the logs."""
        return self.name or self.path.rpartition(":")[2].rpartition(".")[2]


class TorchMetric(OpenNode):
    """A metric of torchmetrics by the name of its class, with its own arguments beside `type`."""

    table: ClassVar[KnownClasses]
    """The classes that suit the task."""

    type: str
    """Name of the class, such as `MatthewsCorrCoef`."""
    name: Annotated[str | None, PUBLIC] = Field(default=None, pattern=r"^[A-Za-z_0-9]+$")
    """Name in the logs; `type` if left out."""
    better: Better | None = None
    """Direction in which it improves; as its class says (`higher_is_better`) if left out. Needed only if a rule watches the metric and the class says nothing."""

    @property
    def label(self) -> str:
        """Name of the metric in the logs."""
        return self.name or self.type

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for an unknown class, and for each argument that does not fit."""
        type_ = value.get("type")
        if not isinstance(type_, str):
            return []
        if _SEVERAL_NUMBERS.search(type_):
            return [(("type",), f"{type_} does not return one number", None)]
        short = _PREFIX.sub("", type_)
        if type_ not in cls.table and short in cls.table:
            return [(("type",), f"no metric {type_!r}", f"did you mean {short!r}?")]
        given, own = cls.arguments_in(value), list(cls.model_fields)
        hint = "a built-in metric is its name alone, such as [accuracy] or [mae]"
        found = check_arguments(cls.table, "metric", type_, given, own=own, otherwise=hint)
        # torchmetrics reads both alike, and returns one number for each class.
        if given.get("average", "macro") in ("none", None):
            message = f"{type_} gives a number for each class then, and needs to give one"
            hint = "average: macro; f1, precision and recall of each class: per_class: true"
            found.append((("average",), message, hint))
        return found


_PREFIX = re.compile("^(Multiclass|Multilabel)")
_SEVERAL_NUMBERS = re.compile(
    "(ConfusionMatrix|(?<!AU)ROC|PrecisionRecallCurve|StatScores|Fairness|GroupStatRates)$"
    "|AtFixed|At(Specificity|Sensitivity)$"
)
"""Classes of torchmetrics that return curves, tables or pairs."""


class ClassMetric(TorchMetric):
    """A metric of torchmetrics for one class per sample: its class without `Multiclass`, such as `MatthewsCorrCoef`; or one for two classes, such as `BinaryF1Score`, where the second class is the positive one."""

    table: ClassVar[KnownClasses] = METRICS_OF_CLASSES


class LabelMetric(TorchMetric):
    """A metric of torchmetrics for several labels per sample: its class without `Multilabel`, such as `FBetaScore`. A label is predicted from the task's threshold on."""

    table: ClassVar[KnownClasses] = METRICS_OF_LABELS


class NumberMetric(TorchMetric):
    """A metric of torchmetrics for numbers, such as `SpearmanCorrCoef`."""

    table: ClassVar[KnownClasses] = METRICS_OF_NUMBERS


def _form_of_metric(value: Any) -> str:
    """Return the tag of a metric: imported, or built in and given by name."""
    return "import" if isinstance(value, dict | ImportMetric) else "name"


METRIC = Discriminator(_form_of_metric)
"""Tells an imported metric from one that is given by its name."""
Imported = Annotated[ImportMetric, Tag("import")]
"""A metric of the user's own in a list of metrics."""


def _form_of_any_metric(value: Any) -> str:
    """Return the tag of a metric: imported, a class of torchmetrics, or given by name."""
    type_ = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if type_ == "import":
        return "import"
    return "class" if isinstance(value, Mapping | TorchMetric) else "name"


ANY_METRIC = Discriminator(_form_of_any_metric)
"""Tells apart a metric given by name, a class of torchmetrics, and an imported one."""
OfClasses = (
    Annotated[ClassificationMetric, Tag("name")] | Annotated[ClassMetric, Tag("class")] | Imported
)
OfLabels = (
    Annotated[ClassificationMetric, Tag("name")] | Annotated[LabelMetric, Tag("class")] | Imported
)
OfNumbers = (
    Annotated[RegressionMetric, Tag("name")] | Annotated[NumberMetric, Tag("class")] | Imported
)
