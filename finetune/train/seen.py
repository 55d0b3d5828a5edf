"""What an evaluation has seen, sample by sample, and the pictures of it.

One class for each form of target; each takes outputs and batches as they come, and keeps a few
numbers per sample. Letters: B samples of a batch, N of the split, C classes or labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.batches import Batch
from finetune.data.pixel_classes import IGNORED
from finetune.pictures.beside_targets import draw_beside_targets
from finetune.pictures.calibration import bins_of, draw_calibration
from finetune.pictures.class_scores import draw_class_scores, scores_of
from finetune.pictures.confusion import draw_confusion
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import (
    MOST_SHOWN,
    ShownSample,
    colours_of_classes,
    draw_samples,
)
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.segmentation import pixel_logits

_MOST_CURVES = 20
"""Classes with a precision-recall curve; of more, those with the most samples."""
_MOST_SCORES = 4_000_000
"""Scores kept for these curves; beyond, there are none."""
_MOST_OUTPUTS = 8
"""Numbers of a regression that get a picture each."""


class Inputs(NamedTuple):
    """The inputs of a sample as a person sees them."""

    pixels: tuple[np.ndarray, ...]
    """Its image `(H, W, 3)` uint8, if it has one."""
    words: tuple[str, ...]
    """Its text, or the values of its columns."""


Show = Callable[[int], Inputs]
"""Returns the inputs of a sample, by its position in the split."""


class Curve(NamedTuple):
    """What the precision-recall curve of a class is made of, `(N,)` each."""

    name: str
    is_so: np.ndarray
    score: np.ndarray


class Seen(Protocol):
    """Collects an evaluation."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take the outputs of a batch.

        Raises:
            ValueError: they are of another form.
        """
        ...

    def shown(self) -> Sequence[int]:
        """Return the positions of the samples that the pictures show."""
        ...

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return pictures by name; `show` has the inputs of the samples of `shown`."""
        ...

    def curves(self) -> list[Curve]:
        """Return what precision-recall curves are made of; empty without any."""
        ...


@dataclass(slots=True)
class SeenClasses:
    """One class per sample."""

    names: Sequence[str]
    _scores: list[Tensor] = field(default_factory=list)
    """Probabilities `(B, C)`; only while they are few."""
    _rows: list[Tensor] = field(default_factory=list)
    """Position, true class, said class, its probability and that of the true class `(B, 5)`."""
    _kept: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, C)`, or one logit for two classes."""
        logits = class_logits(outputs, self.names)
        target = batch.target
        if target is None or target.ndim != 1 or logits.shape[1:] != (len(self.names),):
            raise ValueError("no logit for each class")
        shares = logits.float().softmax(1)
        best, said = shares.max(1)
        true = shares.gather(1, target[:, None]).squeeze(1)
        # In float64 on the CPU: Apple's GPUs have none, and float32 rounds large positions.
        each = (batch.indices, target, said, best, true)
        self._rows.append(torch.stack([one.cpu().double() for one in each], 1))
        self._kept += shares.numel()
        if self._kept <= _MOST_SCORES:
            self._scores.append(shares.cpu())
        else:
            self._scores.clear()

    def shown(self) -> Sequence[int]:
        """Return the most wrong and the least certain samples."""
        return [int(row[0]) for row in (*self._wrong(), *self._unsure())]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return confusion, scores of classes, calibration and samples."""
        rows = self._all()
        size = len(self.names)
        flat = rows[:, 1].astype(int) * size + rows[:, 2].astype(int)
        counts = np.bincount(flat, minlength=size * size).reshape(size, size)
        is_right = rows[:, 1] == rows[:, 2]
        of = f"of {len(rows):,} validation samples"
        wrong = [self._sample(row, show) for row in self._wrong()]
        unsure = [self._sample(row, show) for row in self._unsure()]
        samples = {
            "most_wrong": draw_samples(wrong, f"most wrong {of}"),
            "least_certain": draw_samples(unsure, f"least certain {of}"),
        }
        return {
            "confusion": draw_confusion(counts, self.names),
            "classes": draw_class_scores(*scores_of(counts), self.names),
            "calibration": draw_calibration(bins_of(rows[:, 3], is_right)),
            **{name: picture for name, picture in samples.items() if len(picture.shapes) > 1},
        }

    def curves(self) -> list[Curve]:
        """Return a curve for each of the classes with the most samples."""
        if not self._scores:
            return []
        scores, true = torch.cat(self._scores).numpy(), self._all()[:, 1].astype(int)
        support = np.bincount(true, minlength=len(self.names))
        # In the order of the classes; of two classes, the second alone.
        most = sorted(np.argsort(-support, kind="stable")[:_MOST_CURVES].tolist())
        most = [1] if len(self.names) == 2 else most
        return [Curve(self.names[n], true == n, scores[:, n]) for n in most]

    def _all(self) -> np.ndarray:
        rows: np.ndarray = torch.cat(self._rows).numpy()
        return rows

    def _wrong(self) -> np.ndarray:
        """Return the rows of wrong samples, the smallest probability of the true class first."""
        rows = self._all()
        wrong = rows[rows[:, 1] != rows[:, 2]]
        worst: np.ndarray = wrong[np.argsort(wrong[:, 4], kind="stable")[:MOST_SHOWN]]
        return worst

    def _unsure(self) -> np.ndarray:
        """Return the rows with the smallest probability of what was said, right or wrong."""
        rows = self._all()
        return rows[np.argsort(rows[:, 3], kind="stable")[:MOST_SHOWN]]

    def _sample(self, row: np.ndarray, show: Mapping[int, Inputs]) -> ShownSample:
        """Return a sample with what was said of it."""
        number, true, said = (int(value) for value in row[:3])
        inputs = show[number]
        return ShownSample(
            f"{self.names[said]} ({row[3]:.0%})",
            f"{self.names[true]} ({row[4]:.0%})",
            f"sample {number}",
            is_right=true == said,
            pixels=inputs.pixels,
            words=inputs.words,
        )


@dataclass(slots=True)
class _SeenRows:
    """Outputs and targets of the samples so far, a row of numbers for each sample."""

    _outputs: list[Tensor] = field(default_factory=list)
    _targets: list[Tensor] = field(default_factory=list)
    _indices: list[Tensor] = field(default_factory=list)
    _kept: int = 0

    def add(self, outputs: Any, batch: Batch, wanted: str) -> None:
        """Take a batch.

        Raises:
            ValueError: the outputs are not of the targets' size, or all are too many to be kept.
        """
        target = batch.target
        if not isinstance(outputs, Tensor) or target is None or outputs.numel() != target.numel():
            raise ValueError(f"no {wanted}")
        self._kept += target.numel()
        if self._kept > _MOST_SCORES:
            raise ValueError(f"they are more than {_MOST_SCORES:,} numbers")
        self._outputs.append(outputs.float().reshape(len(target), -1).cpu())
        self._targets.append(target.reshape(len(target), -1).cpu())
        self._indices.append(batch.indices.cpu())

    @property
    def outputs(self) -> Tensor:
        """Outputs `(N, C)` float32."""
        return torch.cat(self._outputs)

    @property
    def targets(self) -> Tensor:
        """Targets `(N, C)`, of their own type."""
        return torch.cat(self._targets)

    def positions(self, rows: Sequence[int]) -> list[int]:
        """Return the positions in the split of some rows."""
        indices = torch.cat(self._indices)
        return [int(indices[row]) for row in rows]

    def shown(
        self, rows: Sequence[int], show: Mapping[int, Inputs], words: Callable[[int], Sequence[str]]
    ) -> list[ShownSample]:
        """Return some rows as samples; `words` gives what was predicted, and the target."""
        found = []
        for row, number in zip(rows, self.positions(rows), strict=True):
            predicted, target = words(row)
            inputs = show[number]
            found.append(
                ShownSample(
                    predicted,
                    target,
                    f"sample {number}",
                    pixels=inputs.pixels,
                    words=inputs.words,
                )
            )
        return found


@dataclass(slots=True)
class SeenLabels:
    """Any number of labels per sample."""

    names: Sequence[str]
    _rows: _SeenRows = field(default_factory=_SeenRows)

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, C)`."""
        self._rows.add(outputs, batch, "logit for each label")

    def shown(self) -> Sequence[int]:
        """Return the most wrong samples."""
        return self._rows.positions(self._wrong())

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return scores of labels at a threshold of 0.5, and the most wrong samples."""
        scores, true = self._scores_and_labels()
        said, so = (scores >= 0.5).numpy(), true.numpy()
        hits, num_said, support = (each.sum(0) for each in (said & so, said, so))
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = hits / num_said, hits / support
        wrong = self._rows.shown(
            self._wrong(), show, lambda row: (self._named(said[row]), self._named(so[row]))
        )
        heading = f"most wrong of {len(scores):,} validation samples, at 0.5"
        worst = {"most_wrong": draw_samples(wrong, heading)} if wrong else {}
        return {"labels": draw_class_scores(precision, recall, support, self.names), **worst}

    def curves(self) -> list[Curve]:
        """Return a curve for each of the labels with the most samples."""
        scores, true = (each.numpy() for each in self._scores_and_labels())
        most = sorted(np.argsort(-true.sum(0), kind="stable")[:_MOST_CURVES].tolist())
        return [Curve(self.names[n], true[:, n], scores[:, n]) for n in most]

    def _scores_and_labels(self) -> tuple[Tensor, Tensor]:
        """Return probabilities, and whether each label is there, `(N, C)` each."""
        return self._rows.outputs.sigmoid(), self._rows.targets.bool()

    def _wrong(self) -> list[int]:
        """Return the rows of samples with a wrong label, the largest mean loss first."""
        scores, true = self._scores_and_labels()
        is_wrong = ((scores >= 0.5) != true).any(1)
        loss = F.binary_cross_entropy(scores.nan_to_num(0.5), true.float(), reduction="none").mean(
            1
        )
        order = loss.argsort(descending=True, stable=True)
        return order[is_wrong[order]][:MOST_SHOWN].tolist()

    def _named(self, labels: np.ndarray) -> str:
        names = [name for name, is_so in zip(self.names, labels, strict=True) if is_so]
        return ", ".join(names) or "no label"


@dataclass(slots=True)
class SeenNumbers:
    """One or several numbers per sample."""

    outputs: Sequence[str]
    _rows: _SeenRows = field(default_factory=_SeenRows)

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take numbers of the shape of the targets."""
        self._rows.add(outputs, batch, "number for each target")

    def shown(self) -> Sequence[int]:
        """Return the samples with the largest errors."""
        return self._rows.positions(self._wrong())

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return predictions beside targets for each number, and the most wrong samples."""
        said, so = self._rows.outputs.numpy(), self._rows.targets.float().numpy()
        found = {}
        for number in range(min(said.shape[1], _MOST_OUTPUTS)):
            name = self.outputs[number] if number < len(self.outputs) else f"output {number}"
            key = "targets" if said.shape[1] == 1 else f"targets/{name}"
            found[key] = draw_beside_targets(said[:, number], so[:, number], name)
        wrong = self._rows.shown(self._wrong(), show, lambda row: (_few(said[row]), _few(so[row])))
        heading = f"largest errors of {len(said):,} validation samples"
        return {**found, "most_wrong": draw_samples(wrong, heading)}

    def curves(self) -> list[Curve]:
        """Return none."""
        return []

    def _wrong(self) -> list[int]:
        """Return the rows with the largest errors, each number in units of its spread."""
        said, so = self._rows.outputs, self._rows.targets.float()
        spread = so.std(0, correction=0).clamp(min=1e-12)
        error = ((said - so) / spread).square().mean(1).nan_to_num(torch.inf)
        return error.argsort(descending=True, stable=True)[:MOST_SHOWN].tolist()


class _Mask(NamedTuple):
    """A sample with its masks of class numbers `(H, W)`."""

    right: float
    number: int
    said: np.ndarray
    so: np.ndarray


def confusion(target: Tensor, said: Tensor, size: int) -> np.ndarray:
    """Count the pairs of right class and given class.

    Args:
        target: The right classes `(N,)`, whole numbers below `size`.
        said: The classes that the network gave, `(N,)`.
        size: How many classes there are, C.

    Returns:
        Counts `(C, C)`, a row for each right class.
    """
    return (target * size + said).bincount(minlength=size * size).reshape(size, size).cpu().numpy()


@dataclass(slots=True)
class SeenMasks:
    """A class for each pixel."""

    names: Sequence[str]
    _worst: list[_Mask] = field(default_factory=list)
    _counts: np.ndarray | None = None
    _num: int = 0

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take logits `(B, C, H, W)`."""
        target = batch.target
        if target is None or target.ndim != 3:
            raise ValueError("no class for each pixel")
        said = pixel_logits(self.names, outputs, tuple(target.shape[1:])).argmax(1)
        has_class = target != IGNORED
        counts = confusion(target[has_class], said[has_class], len(self.names))
        self._counts = counts if self._counts is None else self._counts + counts
        self._num += len(batch)
        right = ((said == target) & has_class).flatten(1).sum(1) / has_class.flatten(1).sum(1)
        rows = zip(right.tolist(), batch.indices.tolist(), said.cpu(), target.cpu(), strict=True)
        # A sample without a class has nothing to be wrong about.
        found = [_Mask(r, n, a.numpy(), b.numpy()) for r, n, a, b in rows if r == r]
        self._worst = sorted([*self._worst, *found], key=lambda mask: mask[:2])[: MOST_SHOWN // 2]

    def shown(self) -> Sequence[int]:
        """Return the samples with the smallest share of right pixels."""
        return [mask.number for mask in self._worst]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return the confusion of pixels, the scores of classes, and the worst masks."""
        assert self._counts is not None
        size = len(self.names)
        worst = [
            ShownSample(
                f"the right mask: {mask.right:.1%} of pixels right",
                "the middle mask",
                f"sample {mask.number}",
                pixels=(
                    *show[mask.number].pixels,
                    *(colours_of_classes(each, size) for each in (mask.so, mask.said)),
                ),
            )
            for mask in self._worst
        ]
        heading = f"worst of {self._num:,} validation samples"
        return {
            "confusion": draw_confusion(self._counts, self.names),
            "classes": draw_class_scores(*scores_of(self._counts), self.names),
            "most_wrong": draw_samples(worst, heading),
        }

    def curves(self) -> list[Curve]:
        """Return none: pixels are too many."""
        return []


def _few(values: np.ndarray) -> str:
    """Return the first numbers of a sample as text."""
    more = ", ..." if len(values) > 4 else ""
    return ", ".join(f"{value:.4g}" for value in values[:4].tolist()) + more
