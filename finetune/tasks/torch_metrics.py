"""Metrics of torchmetrics that a config names by class: built for the task, and fed what they take.

Metrics that rank, or compare probabilities, are fed probabilities; those that count right and wrong
answers get the task's own decisions where it has a threshold. torchmetrics would guess from the
numbers of each batch whether they are logits.

Letters: B samples, C classes or labels.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finetune.config.metric_keys import TorchMetric
from finetune.data.batches import Batch
from finetune.errors import FinetuneError, Key
from finetune.models.shapes import describe, first_line
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.metrics import Feed, Measure, measure_of, target_of
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.thresholds import Threshold

if TYPE_CHECKING:
    import torchmetrics

_BY_SCORE = {"AUROC", "AveragePrecision", "CalibrationError", "EER", "HingeLoss", "LogAUC"}
"""Metrics of classes that take a probability of each class, not the most probable one."""


def measure_of_classes(
    facts: TaskFacts, threshold: Threshold | None, entry: TorchMetric, key: Key
) -> Measure:
    """Return a metric of a task with one class per sample.

    Args:
        facts: What the task is built from.
        threshold: Threshold of the second of two classes; None if the most probable one counts.
        entry: The metric in the config.
        key: Its place.

    Raises:
        FinetuneError: it does not suit the classes or its arguments.
    """
    count = len(facts.names)
    example = _example_logits(2 * count, count), torch.arange(2 * count) % count
    if entry.type.startswith("Binary"):
        if count != 2:
            raise FinetuneError(
                f"{entry.type} is for two classes; there are {count}",
                hint=f"{entry.type.removeprefix('Binary')} is for any number of them",
                key=(*key, "type"),
            )
        metric = _built(entry, entry.type, {}, key)
        # Where it takes a threshold it counts answers, and the task has the threshold.
        decides = "threshold" in inspect.signature(type(metric)).parameters
        two: Feed = partial(_as_two, facts, threshold, decides=decides)
        return _tried(entry, metric, two, facts, key, example)
    metric = _built(entry, f"Multiclass{entry.type}", {"num_classes": count}, key)
    feed: Feed = partial(_as_scores, facts)
    if entry.type in _BY_SCORE:
        feed = partial(_as_probabilities, facts)
    elif threshold is not None and entry.arguments.get("top_k", 1) == 1:
        feed = partial(_as_answers, facts, threshold)
    return _tried(entry, metric, feed, facts, key, example)


def measure_of_labels(
    facts: TaskFacts, threshold: Threshold, entry: TorchMetric, key: Key
) -> Measure:
    """Return a metric of a task with several labels per sample; see `measure_of_classes`."""
    count = len(facts.names)
    arguments, name = dict(entry.arguments), f"Multilabel{entry.type}"
    filled: dict[str, int] = {"num_labels": count}
    if count == 1:
        # torchmetrics refuses one label among "multilabel": the mean over one is that of "binary".
        name, filled = f"Binary{entry.type}", {}
        arguments.pop("average", None)
    metric = _built(entry, name, filled, key, arguments)
    decides = "threshold" in inspect.signature(type(metric)).parameters
    feed = partial(_as_labels, count, threshold if decides else None)
    example = _example_logits(4, count), torch.tensor([[0.0], [1.0], [1.0], [0.0]]).expand(4, count)
    return _tried(entry, metric, feed, facts, key, example)


def measure_of_numbers(facts: TaskFacts, feed: Feed, entry: TorchMetric, key: Key) -> Measure:
    """Return a metric of numbers; `feed` gives outputs and targets. See `measure_of_classes`."""
    metric = _built(entry, entry.type, {}, key)
    if facts.device.type != "mps":  # has no float64
        metric.set_dtype(torch.float64)
    # Positive, for logarithms; as many outputs as there are target columns.
    said = torch.tensor([[1.0], [2.0], [4.0], [3.0]]).repeat(1, max(1, len(facts.outputs)))
    example = said, said + 0.5
    return _tried(entry, metric, partial(_precise, feed), facts, key, example)


def _built(
    entry: TorchMetric,
    name: str,
    filled: Mapping[str, Any],
    key: Key,
    arguments: Mapping[str, Any] | None = None,
) -> "torchmetrics.Metric":
    """Build the class `name` with the arguments of the config and those that the task fills in."""
    # It takes longer to load than torch, so only runs with such a metric load it.
    from torchmetrics import classification, regression
    from torchmetrics.utilities.exceptions import TorchMetricsUserError

    cls = getattr(classification, name, None) or getattr(regression, name, None)
    if cls is None:
        raise FinetuneError(f"{entry.type} needs two labels; there is one", key=(*key, "type"))
    given = entry.arguments if arguments is None else arguments
    try:
        with warnings.catch_warnings():
            # That it keeps all outputs, as every ranking must.
            warnings.simplefilter("ignore")
            made: torchmetrics.Metric = cls(**_plain(entry, given), **filled)
    except (ValueError, TypeError, RuntimeError, TorchMetricsUserError) as error:
        raise FinetuneError(f"{entry.type}: {first_line(error)}", key=key) from error
    return made


def _plain(entry: TorchMetric, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments in the types that torchmetrics wants: pairs for ranges, floats."""
    known = type(entry).table[entry.type].arguments
    made: dict[str, Any] = {}
    for name, value in arguments.items():
        kinds = known[name].kinds
        made[name] = value
        if name == "fpr_range" and isinstance(value, list | tuple):
            made[name] = tuple(value)
        # torchmetrics refuses a whole number where it wants a float, as for `beta`.
        elif type(value) is int and "float" in kinds and "int" not in kinds:
            made[name] = float(value)
    return made


def _tried(
    entry: TorchMetric,
    metric: "torchmetrics.Metric",
    feed: Feed,
    facts: TaskFacts,
    key: Key,
    example: tuple[Tensor, Tensor],
) -> Measure:
    """Return the metric after a try on made-up samples: it must give one number.

    Raises:
        FinetuneError: it refuses its arguments, or gives several numbers.
    """
    measure = measure_of(entry.label, metric, entry.better, facts, feed)
    outputs, target = (one.to(facts.device) for one in example)
    batch = Batch({}, target, torch.arange(len(target), device=facts.device))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.update(*feed(outputs, batch))
            figure = metric.compute()
    except (ValueError, RuntimeError, IndexError) as error:
        raise FinetuneError(f"{entry.type}: {first_line(error)}", key=key) from error
    if not isinstance(figure, Tensor) or figure.numel() != 1:
        raise FinetuneError(
            f"{entry.type} gives {describe(figure)}, needs to give one number",
            hint="average: macro" if "average" in type(entry).table[entry.type].arguments else None,
            key=key,
        )
    metric.reset()
    if isinstance(getattr(metric, "confmat", None), Tensor) and entry.type.endswith(_MATTHEWS):
        measure.metric = _Matthews(metric)
    return measure


_MATTHEWS = "MatthewsCorrCoef"


class _Matthews:
    """Matthews' correlation that is 0 where all answers are of one class, as in scikit-learn.

    torchmetrics gives a number there that depends on a small constant, and may be 0.4.

    Args:
        metric: The metric of torchmetrics.
    """

    def __init__(self, metric: "torchmetrics.Metric") -> None:
        self._metric = metric

    def update(self, *given: Any) -> None:
        """Add a batch."""
        self._metric.update(*given)

    def compute(self) -> Any:
        """Return the figure of all batches."""
        counts = self._metric.confmat
        assert isinstance(counts, Tensor)
        # Rows are the true classes, columns the answers; with labels there is a table for each.
        answers = counts.reshape(-1, *counts.shape[-2:]).sum(dim=(0, 1))
        return self._metric.compute() if int((answers > 0).sum()) > 1 else torch.tensor(0.0)

    def reset(self) -> None:
        """Forget the batches."""
        self._metric.reset()


def _example_logits(count: int, width: int) -> Tensor:
    """Return made-up logits `(count, width)`, all of them different."""
    return torch.arange(count * width).reshape(count, width).mul(1.7).sin()


def _precise(feed: Feed, outputs: Any, batch: Batch) -> tuple[Any, ...]:
    """Return what a metric of numbers takes, in float64 where there is one."""
    fed = feed(outputs, batch)
    return fed if fed[0].device.type == "mps" else tuple(one.double() for one in fed)


def _shares(outputs: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return probabilities, in float64 where there is one: float32 makes ties of sure answers."""
    return function(outputs.float() if outputs.device.type == "mps" else outputs.double())


def _as_scores(facts: TaskFacts, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return class_logits(outputs, facts.names).float(), target_of(batch)


def _as_probabilities(facts: TaskFacts, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = class_logits(outputs, facts.names)
    return _shares(logits, partial(torch.softmax, dim=1)), target_of(batch)


def _as_answers(
    facts: TaskFacts, threshold: Threshold, outputs: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    return threshold.second_class(class_logits(outputs, facts.names)), target_of(batch)


def _as_two(
    facts: TaskFacts,
    threshold: Threshold | None,
    outputs: Tensor,
    batch: Batch,
    *,
    decides: bool,
) -> tuple[Tensor, Tensor]:
    """Return the answers for two classes `(B,)`, or the probabilities of the second one."""
    logits = class_logits(outputs, facts.names)
    if not decides:
        return _shares(logits, partial(torch.softmax, dim=1))[:, 1], target_of(batch)
    if threshold is None:
        return logits.argmax(1), target_of(batch)
    return threshold.second_class(logits), target_of(batch)


def _as_labels(
    count: int, threshold: Threshold | None, outputs: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return which labels are predicted, or their probabilities, and targets; both `(B, C)`."""
    target = target_of(batch).long()
    if threshold is None:
        fed = _shares(outputs, torch.sigmoid)
    else:
        fed = threshold.is_reached(outputs.float().sigmoid()).long()
    return (fed.flatten(), target.flatten()) if count == 1 else (fed, target)
