"""What an evaluation has seen of labels or numbers, a row per sample, and the pictures of it.

Letters: B samples of a batch, N of the split, C labels or numbers of a sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.batches import Batch
from finetune.pictures.beside_targets import draw_beside_targets
from finetune.pictures.class_scores import draw_class_scores
from finetune.pictures.drawing import Picture
from finetune.pictures.shown_samples import MOST_SHOWN, ShownSample, draw_samples
from finetune.train.looks.seen import MOST_CURVES, MOST_SCORES, Curve, Inputs

_MOST_OUTPUTS = 8
"""Numbers of a regression that get a picture each."""


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
        # Asked before they are kept: a split of millions would fill the memory for a picture.
        self._kept += target.numel()
        if self._kept > MOST_SCORES:
            raise ValueError(f"they are more than {MOST_SCORES:,} numbers")
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
        # A label that nobody predicts has no precision, and one that no sample has no recall: NaN.
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
        most = sorted(np.argsort(-true.sum(0), kind="stable")[:MOST_CURVES].tolist())
        return [Curve(self.names[n], true[:, n], scores[:, n]) for n in most]

    def _scores_and_labels(self) -> tuple[Tensor, Tensor]:
        """Return probabilities, and whether each label is there, `(N, C)` each."""
        return self._rows.outputs.sigmoid(), self._rows.targets.bool()

    def _wrong(self) -> list[int]:
        """Return the rows of samples with a wrong label, the largest mean loss first."""
        scores, true = self._scores_and_labels()
        is_wrong = ((scores >= 0.5) != true).any(1)
        # Outputs of a network that has diverged are NaN: they are as wrong as a coin, not an error.
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
        # Constant targets have no spread, and one number of several may be in thousands.
        spread = so.std(0, correction=0).clamp(min=1e-12)
        error = ((said - so) / spread).square().mean(1).nan_to_num(torch.inf)
        return error.argsort(descending=True, stable=True)[:MOST_SHOWN].tolist()


def _few(values: np.ndarray) -> str:
    """Return the first numbers of a sample as text."""
    more = ", ..." if len(values) > 4 else ""
    return ", ".join(f"{value:.4g}" for value in values[:4].tolist()) + more
