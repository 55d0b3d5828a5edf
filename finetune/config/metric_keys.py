"""`metrics:` of a task: built in and given by name, or imported."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import Arguments

ClassificationMetric = Literal["accuracy", "f1", "precision", "recall", "auroc"]
TokenMetric = Literal["f1", "precision", "recall", "accuracy"]
RegressionMetric = Literal["mse", "rmse", "mae", "r2"]
SegmentationMetric = Literal["mean_iou", "dice", "pixel_accuracy"]
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


def _form_of_metric(value: Any) -> str:
    """Return the tag of a metric: imported, or built in and given by name."""
    return "import" if isinstance(value, dict | ImportMetric) else "name"


METRIC = Discriminator(_form_of_metric)
"""Tells an imported metric from one that is given by its name."""
Imported = Annotated[ImportMetric, Tag("import")]
"""A metric of the user's own in a list of metrics."""
