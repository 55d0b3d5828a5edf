"""Mix the samples of a window with each other, and their targets alike: mixup and cutmix.

A sample is mixed with the one before it in its window, the first with the last. So it matters to no
bit how a window is cut into micro-batches: each needs one sample of the one before, which is there.

Letters: W samples of a window, B of a micro-batch, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from finetune.config.transform_keys import CutmixTransform, Mix, MixupTransform, Transform
from finetune.data.batches import Batch, Samples, seed_for
from finetune.errors import DataError, Key, named
from finetune.models.declared import TensorSpec

Box = tuple[int, int, int, int]
"""Rows and columns of pixels: the first of each, and the first behind."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixes the samples of each window of training; without a node it mixes nothing.

    Args:
        nodes: The kinds of mixing, of which each window draws one.
        seed: The run's seed.
        num_classes: C if targets are class numbers, which become shares `(B, C)`; None if targets
            are numbers, which are mixed as they are.
    """

    nodes: tuple[Mix, ...] = ()
    seed: int = 0
    num_classes: int | None = None

    @property
    def not_cached(self) -> str | None:
        """Why no outputs of the network can be stored; None if they can."""
        if not self.nodes:
            return None
        names = named(dict.fromkeys(node.type for node in self.nodes))
        return f"not stored, {names} comes before the network and mixes samples anew in every step"

    def mixed(self, window: Sequence[Batch], step: int) -> Sequence[Batch]:
        """Return the micro-batches of a window with their samples mixed.

        What is drawn depends on seed and step only; no global random state is used.

        Args:
            window: All micro-batches of an optimizer step; not changed.
            step: Number of the step.
        """
        if not self.nodes:
            return window
        draw = np.random.default_rng(seed_for("mix", self.seed, step))
        node = self.nodes[int(draw.integers(len(self.nodes)))]
        shares = draw.beta(node.alpha, node.alpha, size=sum(map(len, window)))
        boxes: list[Box] = []
        if isinstance(node, CutmixTransform):
            shape = next(iter(window[0].inputs.values())).shape[-2:]
            boxes = [_box(share, shape[0], shape[1], draw) for share in shares.tolist()]
            # The share of pixels that stay: a box at the border is cut off.
            shares = np.array([1 - _area(box) / shape.numel() for box in boxes])
        mixed, begin = [], 0
        # Shares are drawn for the window as a whole, so that cuts into micro-batches move none.
        for number, batch in enumerate(window):
            end = begin + len(batch)
            share = torch.from_numpy(shares[begin:end]).float().to(batch.indices.device)
            before = window[number - 1]  # the first is mixed with the last
            mixed.append(self._mixed(node, batch, before, share, boxes[begin:end]))
            begin = end
        return mixed

    def _mixed(
        self, node: Mix, batch: Batch, before: Batch, share: Tensor, boxes: Sequence[Box]
    ) -> Batch:
        """Return a micro-batch mixed with the samples that come before its own."""
        inputs = {}
        for name, values in batch.inputs.items():
            # The same partner for every column: an image and its second view stay a pair.
            others = _shifted(values, before.inputs[name])
            match node:
                case MixupTransform():
                    inputs[name] = _blended(values, others, share)
                case CutmixTransform():
                    inputs[name] = _pasted(values, others, boxes)
                case _:
                    assert_never(node)
        target = batch.target
        if target is not None and before.target is not None:
            own, other = self._shares(target), self._shares(before.target)
            target = _blended(own, _shifted(own, other), share)
        return replace(batch, inputs=inputs, target=target)

    def _shares(self, target: Tensor) -> Tensor:
        """Return class numbers as shares of classes `(B, C)`, other targets as floats."""
        if self.num_classes is None:
            return target.float()
        return functional.one_hot(target, self.num_classes).float()


def mixing_of(
    transforms: Sequence[Transform],
    samples: Samples,
    *,
    classes: int | None,
    seed: int,
    hard: Sequence[str],
) -> Mixing:
    """Return the mixing that a config asks for, after checking that data and losses suit it.

    Args:
        transforms: `data.transforms`.
        samples: The training samples.
        classes: Number of classes; None without classes.
        seed: The run's seed.
        hard: Names of the losses that are not known to take shares of classes.

    Raises:
        DataError: inputs, targets or losses do not suit it.
    """
    nodes = {n: node for n, node in enumerate(transforms) if isinstance(node, Mix)}
    if not nodes:
        return Mixing()
    # One sample tells shapes and types, which are the same for all.
    first = samples.fetch([0])
    target = first.target
    has_classes = classes is not None and target is not None and target.dtype == torch.int64
    for number, node in nodes.items():
        key: Key = ("data", "transforms", number)
        if first.columns:
            raise DataError(
                f"{node.type} does not mix the columns of data.loss_columns, nor targets of a list "
                "of tasks",
                key=key,
            )
        _refuse_inputs(node, samples.specs, key)
        _refuse_target(node, target, key, hard if has_classes else (), has_classes=has_classes)
    return Mixing(tuple(nodes.values()), seed, classes if has_classes else None)


def _refuse_target(
    node: Mix, target: Tensor | None, key: Key, hard: Sequence[str], *, has_classes: bool
) -> None:
    """Raise if targets have no mixture, or losses may not take it."""
    is_fit = target is not None and (
        target.ndim == 1 if has_classes else target.is_floating_point()
    )
    if not is_fit:
        raise DataError(f"{node.type} needs one class or numbers as target of a sample", key=key)
    if hard:
        raise DataError(
            f"{node.type} turns targets into shares of classes, and loss {named(hard)} does not "
            "say that it takes them",
            hint="a loss or task of your own that takes shares (B, C) says so by "
            "soft_targets = True",
            key=key,
        )


def _refuse_inputs(node: Mix, specs: Mapping[str, TensorSpec], key: Key) -> None:
    """Raise if an input column is no number to blend, or no image to paste into."""
    for name, spec in specs.items():
        # Whole numbers are names, as of tokens: what lies between two of them means nothing.
        if "float" not in spec.dtype:
            raise DataError(
                f"{node.type} cannot mix column {name!r}, which holds whole numbers", key=key
            )
    sizes = {spec.shape[-2:] if len(spec.shape) == 3 else () for spec in specs.values()}
    if isinstance(node, CutmixTransform) and (len(sizes) > 1 or () in sizes):
        shapes = {name: spec.shape for name, spec in specs.items()}
        raise DataError(f"cutmix needs images of one size as inputs, got {shapes}", key=key)


def _shifted(values: Tensor, before: Tensor) -> Tensor:
    """Return for each sample the one before it; the first gets the last of another batch."""
    return torch.cat([before[-1:], values[:-1]])


def _blended(values: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Return `share * values + (1 - share) * others`, Zhang et al., "mixup" (2018), section 1."""
    share = share.reshape(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    return values * share + others * (1 - share)


def _pasted(values: Tensor, others: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Return images with a box of another image in each."""
    # A copy: the next sample is pasted from these values as they were.
    pasted = values.clone()
    for number, (top, bottom, left, right) in enumerate(boxes):
        pasted[number, :, top:bottom, left:right] = others[number, :, top:bottom, left:right]
    return pasted


def _box(share: float, height: int, width: int, draw: np.random.Generator) -> Box:
    """Return a box of about `1 - share` of an image, at a random place.

    Yun et al., "CutMix" (2019), equation 2: its sides are those of the image times the root of
    `1 - share`, its middle is uniform, and what lies outside of the image is cut off.
    """
    part = (1 - share) ** 0.5 / 2
    middle = draw.integers(height), draw.integers(width)
    top, bottom = (int(middle[0] + sign * part * height) for sign in (-1, 1))
    left, right = (int(middle[1] + sign * part * width) for sign in (-1, 1))
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def _area(box: Box) -> int:
    """Return the number of pixels in a box."""
    return (box[1] - box[0]) * (box[3] - box[2])
