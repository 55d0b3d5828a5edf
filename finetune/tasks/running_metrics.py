"""Metrics that are computed from running counts: accuracy, F1, precision, recall, overlap.

torchmetrics has them all, but takes longer to load than torch: it loads scipy, torchvision,
matplotlib and torch's compiler. These metrics give the same figures to the last bit. Where they
differ on purpose, the docstring says so.

Letters: B samples, C classes or labels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from finetune.errors import named
from finetune.tasks.conditions import Always, Condition, EveryClass, OnePositive

ClassScore = Literal["accuracy", "f1", "precision", "recall"]
PixelScore = Literal["mean_iou", "dice", "pixel_accuracy"]


class ByClass(NamedTuple):
    """What a mean over classes is the mean of."""

    names: Sequence[str]
    scores: Callable[[Tensor], Tensor]
    """Returns the score of each class `(C,)` from the sums; NaN for one without a sample."""


@dataclass(slots=True)
class RunningMetric:
    """A metric that is a function of sums over all samples.

    Args:
        sums: Returns the sums of a batch, given outputs and targets. Raises `ValueError` if these
            do not fit.
        figure: Returns the figure, given the sums over all batches and the number of targets.
        new_condition: Makes the condition that decides whether the metric is defined.
        higher_is_better: Which way it improves.
        left_out: Returns what the figure is not of, such as a class, with the reason, given the
            sums; nothing without it.
        by_class: The score of each class; None of a metric that is about no class.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    figure: Callable[[Tensor, int], Tensor]
    new_condition: Callable[[], Condition]
    higher_is_better: bool
    left_out: Callable[[Tensor], dict[str, str]] | None = None
    by_class: ByClass | None = None
    _total: Tensor | None = None
    _count: int = 0

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: outputs and targets do not fit.
        """
        # Sums stay on the device: reading them would wait for it in every batch.
        sums = self.sums(outputs.detach(), target)
        self._total = sums if self._total is None else self._total + sums
        self._count += target.numel()

    def compute(self) -> Tensor:
        """Return the figure of all batches.

        Raises:
            ValueError: there was no batch.
        """
        if self._total is None:
            raise ValueError("it has seen no sample")
        return self.figure(self._total, self._count)

    def score_of_class(self, number: int) -> float:
        """Return the score of one class over all batches.

        Raises:
            ValueError: there was no batch, or none of its samples is of the class.
        """
        assert self.by_class is not None  # whoever asks has seen that there is one
        if self._total is None:
            raise ValueError("it has seen no sample")
        score = float(self.by_class.scores(self._total)[number])
        if math.isnan(score):
            raise ValueError(f"nothing is of class {self.by_class.names[number]!r}")
        return score

    def parts_left_out(self) -> dict[str, str]:
        """Return what the figure of all batches is not of, such as a class, with the reason."""
        if self.left_out is None or self._total is None:
            return {}
        return self.left_out(self._total)

    def reset(self) -> None:
        """Forget the batches."""
        self._total, self._count = None, 0


def metric_of_classes(score: ClassScore, classes: Sequence[str]) -> RunningMetric:
    """Return a metric fed with logits (B, C) and class numbers (B,).

    Accuracy is the share of right samples; the others are means over classes.
    """
    if score == "accuracy":
        rights = partial(_rights_of_classes, len(classes))
        return RunningMetric(rights, _share_of_rights, Always, higher_is_better=True)
    counts = partial(_counts_of_classes, len(classes))
    condition = partial(EveryClass, classes, needs_others=False)
    figure = partial(_mean_over_classes, _SCORES[score])
    each = ByClass(classes, partial(_score_of_each, _SCORES[score]))
    return RunningMetric(counts, figure, condition, higher_is_better=True, by_class=each)


def metric_of_pixels(score: PixelScore, classes: Sequence[str]) -> RunningMetric:
    """Return a metric fed with logits (P, C) and classes (P,) of the pixels that have a class.

    Accuracy is the share of right pixels. Intersection over union and Dice are means over the
    classes that some mask has: of TP / (TP + FP + FN), and of 2 TP / (2 TP + FP + FN), which is F1.
    A class that no mask has would count as 0 as soon as one pixel is taken for it, so torchmetrics
    gives other figures there: its means are also over classes that are only predicted.
    """
    match score:
        case "pixel_accuracy":
            rights = partial(_rights_of_classes, len(classes))
            figure = partial(_of_any_pixel, _share_of_rights)
            return RunningMetric(rights, figure, Always, higher_is_better=True)
        case "mean_iou":
            of_counts = _overlap
        case "dice":
            of_counts = _f1
        case _:
            assert_never(score)
    counts = partial(_counts_of_classes, len(classes))
    return RunningMetric(
        counts,
        partial(_of_any_pixel, partial(_mean_over_present, of_counts)),
        Always,
        higher_is_better=True,
        left_out=partial(_absent, classes),
        by_class=ByClass(classes, partial(_score_of_each, of_counts)),
    )


def metric_of_labels(
    score: ClassScore, labels: Sequence[str], threshold: float | Callable[[Tensor], Tensor]
) -> RunningMetric:
    """Return a metric fed with logits and targets of 0 and 1, both (B, C); a mean over labels.

    With a single label they may be (B,) as well. A label counts as predicted if its probability is
    at least `threshold`, or if that function of the probabilities says so, as in `Prediction`.
    torchmetrics differs twice: it does not count a probability that equals the threshold, and it
    takes a batch of logits that all lie between 0 and 1 for probabilities.
    """
    condition: Callable[[], Condition] = partial(EveryClass, labels, needs_others=False)
    if score == "accuracy":
        condition = Always
    # One label is a binary metric: without it a sample is of no other class.
    elif len(labels) == 1:
        condition = OnePositive
    is_reached = threshold if callable(threshold) else partial(torch.le, torch.tensor(threshold))
    counts = partial(_counts_of_labels, len(labels), is_reached)
    figure = partial(_mean_over_labels, _SCORES[score])
    each = ByClass(labels, partial(_score_of_each, _SCORES[score]))
    return RunningMetric(counts, figure, condition, higher_is_better=True, by_class=each)


class _Counts(NamedTuple):
    """How often each class or label was predicted, rightly or wrongly; (C,) int64 each."""

    hits: Tensor
    """True positives."""
    false: Tensor
    """False positives."""
    missed: Tensor
    """False negatives."""
    rest: Tensor
    """True negatives."""


def _rights_of_classes(size: int, outputs: Tensor, target: Tensor) -> Tensor:
    """Count what is right and all there is, as (2,) int64; takes what `_counts_of_classes` takes.

    Steps that are logged measure it, so it does not count each class.
    """
    said, so = _classes(size, outputs, target)
    return torch.stack([(said == so).sum(), so.new_tensor(len(so))])


def _counts_of_classes(size: int, outputs: Tensor, target: Tensor) -> Tensor:
    """Count each class in logits (B, C, ...) and class numbers (B, ...); return (4, C) int64."""
    said, so = _classes(size, outputs, target)
    hits, num_said, num_so = (
        torch.bincount(classes, minlength=size) for classes in (so[said == so], said, so)
    )
    missed = num_so - hits
    return torch.stack([hits, num_said - hits, missed, len(so) - num_said - missed])


def _classes(size: int, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return which classes were predicted and which are true, one number each, as int64.

    Raises:
        ValueError: the shapes do not fit, or a target is no class.
    """
    if outputs.shape[1:2] != (size,) or outputs[:, 0].shape != target.shape:
        raise ValueError(f"{size} classes need as many outputs")
    said, so = outputs.argmax(dim=1).flatten(), target.long().flatten()
    # `bincount` would count a class too many without an error.
    if len(so) and not bool(((so >= 0) & (so < size)).all()):
        raise ValueError(f"a target is none of the {size} classes")
    return said, so


def _counts_of_labels(
    size: int, is_reached: Callable[[Tensor], Tensor], outputs: Tensor, target: Tensor
) -> Tensor:
    """Count each label in logits and targets, (B, C, ...) or (B,) each; return (4, C) int64."""
    refuse_other_shapes(outputs, target)
    if outputs.shape[1:2] != (size,) and (size > 1 or outputs.ndim > 1):
        raise ValueError(f"{size} labels need as many outputs")
    if bool(((target != 0) & (target != 1)).any()):
        raise ValueError("a target is neither 0 nor 1")
    # At least (B, C, 1): a single label may come as (B,).
    shape = (*target.shape, 1, 1)[: max(3, target.ndim)]
    said, so = is_reached(outputs.sigmoid()).reshape(shape), target.bool().reshape(shape)
    kinds = (said & so, said & ~so, ~said & so, ~said & ~so)
    return torch.stack([kind.flatten(2).sum(dim=(0, 2)) for kind in kinds])


def refuse_other_shapes(outputs: Tensor, target: Tensor) -> None:
    """Raise `ValueError` if outputs and targets differ in shape."""
    if outputs.shape != target.shape:
        raise ValueError("outputs and targets differ in shape")


def _share_of_rights(total: Tensor, _: int) -> Tensor:
    rights, count = total
    return _share(rights, count)


def _mean_over_classes(score: Callable[[_Counts], Tensor], total: Tensor, _: int) -> Tensor:
    """Return the mean score of the classes that have a sample or were predicted."""
    counts = _Counts(*total)
    num_known = (counts.hits + counts.false + counts.missed > 0).sum()
    # Divided before the sum, as in torchmetrics: the other order may round otherwise.
    return _share(score(counts), num_known).sum()


def _mean_over_present(score: Callable[[_Counts], Tensor], total: Tensor, _: int) -> Tensor:
    """Return the mean score of the classes that have a sample, whatever is predicted."""
    counts = _Counts(*total)
    scores = torch.where(_has_samples(counts), score(counts), 0.0)
    # Divided before the sum, see `_mean_over_classes`.
    return _share(scores, _has_samples(counts).sum()).sum()


def _score_of_each(score: Callable[[_Counts], Tensor], total: Tensor) -> Tensor:
    """Return the score of each class or label, `(C,)`; NaN for one that no sample has."""
    counts = _Counts(*total)
    return torch.where(_has_samples(counts), score(counts), torch.nan)


def _absent(classes: Sequence[str], total: Tensor) -> dict[str, str]:
    """Return the classes that no mask has, with that as the reason."""
    present = _has_samples(_Counts(*total)).tolist()
    names = [name for name, is_there in zip(classes, present, strict=True) if not is_there]
    noun, them = ("class", "it") if len(names) == 1 else ("classes", "them")
    return {f"{noun} {named(names)}": f"no mask has {them}"} if names else {}


def _has_samples(counts: _Counts) -> Tensor:
    """Return which classes have a sample, `(C,)`."""
    return counts.hits + counts.missed > 0


def _mean_over_labels(score: Callable[[_Counts], Tensor], total: Tensor, _: int) -> Tensor:
    """Return the mean score over all labels."""
    scores = score(_Counts(*total))
    # By a tensor, since a GPU rounds otherwise for a number; and before the sum, see
    # `_mean_over_classes`.
    return (scores / torch.ones_like(scores).sum()).sum()


def _of_any_pixel(figure: Callable[[Tensor, int], Tensor], total: Tensor, count: int) -> Tensor:
    """Return a figure; raise `ValueError` if it is of no pixel."""
    if not count:
        raise ValueError("no pixel has a class")
    return figure(total, count)


def _overlap(counts: _Counts) -> Tensor:
    """Return TP / (TP + FP + FN): intersection over union."""
    return _share(counts.hits, counts.hits + counts.false + counts.missed)


def _accuracy(counts: _Counts) -> Tensor:
    right = counts.hits + counts.rest
    return _share(right, right + counts.false + counts.missed)


def _precision(counts: _Counts) -> Tensor:
    return _share(counts.hits, counts.hits + counts.false)


def _recall(counts: _Counts) -> Tensor:
    return _share(counts.hits, counts.hits + counts.missed)


def _f1(counts: _Counts) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall."""
    return _share(2 * counts.hits, 2 * counts.hits + counts.missed + counts.false)


_SCORES: dict[ClassScore, Callable[[_Counts], Tensor]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "precision": _precision,
    "recall": _recall,
}
"""The score of each class or label, (C,) float32."""


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Divide elementwise in float32; 0 where `whole` is 0."""
    part, whole = part.float(), whole.float()
    return torch.where(whole != 0, part / whole, torch.zeros_like(part))
