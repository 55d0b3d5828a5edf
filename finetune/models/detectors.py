"""torchvision's detectors as layers: images in, detections out; in training what their losses need.

A detector of torchvision takes targets in its forward pass and returns losses. Here the forward
pass of training ends where the targets begin, and `Undetected.losses` runs the rest: so everything
that runs a network (probes of the activation cache, plan, inspection) needs no target for it.

Letters: B images, C channels, H height, W width, D detections of an image, K boxes of an image.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.importing import require
from finetune.randomness import random_state_kept

OUTSIDE = math.nan
"""Value of what lies outside of an image, below it and to the right, in a batch of larger ones."""
NO_BOX = -1
"""Class of a row that holds no box: images have different numbers of them."""


def sizes_of(images: Tensor) -> list[tuple[int, int]]:
    """Return height and width of each image `(B, C, H, W)`, without what lies outside of it."""
    height, width = images.shape[-2:]
    if not images.is_floating_point() or not images.shape[1]:
        return [(height, width)] * len(images)
    # One comparison a side: nothing but padding is NaN, which no image holds.
    first = images[:, 0]
    outside = torch.stack([first[:, :, 0].isnan().sum(1), first[:, 0].isnan().sum(1)], dim=1)
    return [(height - below, width - right) for below, right in outside.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class Undetected:
    """What a detector in training gives for its images, before targets are looked at.

    Args:
        detector: The network, whose parts compute the losses.
        images: The images as the backbone takes them, torchvision's `ImageList`.
        sizes: Height and width of each image as it came in.
        features: Feature maps of the backbone by name, `(B, C, H, W)` each.
        heads: What the heads of a detector of one stage give; empty for one of two stages.
    """

    detector: "Detector"
    images: Any
    sizes: tuple[tuple[int, int], ...]
    features: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]

    def losses(self, boxes: Tensor) -> dict[str, Tensor]:
        """Return the losses of the batch by name, `()` each.

        Args:
            boxes: x1, y1, x2, y2 in pixels and the number of the class `(B, K, 5)`; class `NO_BOX`
                in rows without a box.
        """
        return self.detector.losses(self, self._targets(boxes))

    def _targets(self, boxes: Tensor) -> list[dict[str, Tensor]]:
        """Return boxes as torchvision takes them: of the images that the backbone saw.

        Class 0 is the background there.
        """
        transform = require("torchvision.models.detection.transform", extra="vision")
        found = []
        for rows, size, seen in zip(boxes, self.sizes, self.images.image_sizes, strict=True):
            there = rows[rows[:, 4] != NO_BOX]
            resized = transform.resize_boxes(there[:, :4], list(size), list(seen))
            found.append({"boxes": resized, "labels": there[:, 4].long() + 1})
        return found


class Detector(nn.Module):
    """A detector of torchvision, whose parts are its children under their own names.

    Args:
        network: The network that torchvision builds.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # The parts keep torchvision's names, so that its weights fit without renaming. The network
        # itself is no child: it would hold every parameter a second time.
        for name, part in network.named_children():
            self.add_module(name, part)
        self._network: tuple[Any, ...] = (network,)

    @property
    def network(self) -> Any:
        """The network that torchvision built; it shares its parts with this one."""
        return self._network[0]

    @property
    def has_two_stages(self) -> bool:
        """Whether it proposes boxes first, and then looks at each."""
        return hasattr(self, "roi_heads")

    def size_seen(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return height and width of what the backbone takes of an image of this size alone.

        In a batch all images are as large as the largest of these.
        """
        transform = self.network.transform
        if transform.fixed_size is not None:
            width, height = transform.fixed_size
            return height, width
        with torch.no_grad(), random_state_kept():
            seen, _ = transform([torch.zeros(3, *size)], None)
        return tuple(seen.tensors.shape[2:])

    def forward(self, images: Tensor) -> Tensor | Undetected:
        """Return what is in images `(B, C, H, W)` with values from 0 to 1, and `OUTSIDE` beyond.

        Returns:
            In evaluation detections `(B, D, 6)`: x1, y1, x2, y2 in pixels, probability, number of
            the class; class `NO_BOX` in rows without one. In training what losses are made of.
        """
        sizes = tuple(sizes_of(images))
        each = zip(images, sizes, strict=True)
        seen, _ = self.network.transform([one[:, :high, :wide] for one, (high, wide) in each], None)
        features = self.network.backbone(seen.tensors)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        heads = {} if self.has_two_stages else self.network.head([*features.values()])
        given = Undetected(self, seen, sizes, features, heads)
        return given if self.training else self._detections(given)

    def losses(self, given: Undetected, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of a batch by name; see `Undetected.losses`.

        Args:
            given: The forward pass.
            targets: Boxes and labels of each image, as torchvision takes them.
        """
        network = self.network
        if self.has_two_stages:
            features, images = OrderedDict(given.features), given.images
            proposals, of_proposals = network.rpn(images, features, targets)
            _, of_boxes = network.roi_heads(features, proposals, images.image_sizes, targets)
            return {**of_boxes, **of_proposals}
        maps = [*given.features.values()]
        anchors = network.anchor_generator(given.images, maps)
        more: list[Any] = []
        if _is(network, "fcos.FCOS"):
            more = [_positions(maps)]
        elif _is(network, "ssd.SSD"):
            more = [_matched(network, anchors, targets)]
        found: dict[str, Tensor] = network.compute_loss(targets, given.heads, anchors, *more)
        return found

    def _detections(self, given: Undetected) -> Tensor:
        """Return the detections of a forward pass in evaluation, `(B, D, 6)`."""
        network, sizes = self.network, given.images.image_sizes
        if self.has_two_stages:
            features = OrderedDict(given.features)
            proposals, _ = network.rpn(given.images, features, None)
            found, _ = network.roi_heads(features, proposals, sizes, None)
            most = network.roi_heads.detections_per_img
        else:
            maps, heads = [*given.features.values()], dict[str, Any](given.heads)
            anchors: Any = network.anchor_generator(given.images, maps)
            if not _is(network, "ssd.SSD"):
                # By level of the pyramid, of which each keeps its own best.
                levels = _anchors_by_level(maps, anchors[0])
                heads = {name: [*values.split(levels, dim=1)] for name, values in heads.items()}
                anchors = [[*of_image.split(levels)] for of_image in anchors]
            found = network.postprocess_detections(heads, anchors, sizes)
            most = network.detections_per_img
        found = network.transform.postprocess(found, sizes, list(given.sizes))
        return torch.stack([_rows_of(one, most) for one in found])


def _is(network: nn.Module, kind: str) -> bool:
    """Tell whether a detector is of a class of torchvision, such as `ssd.SSD`."""
    module, _, name = kind.partition(".")
    found = require(f"torchvision.models.detection.{module}", extra="vision")
    return isinstance(network, getattr(found, name))


def _positions(maps: Sequence[Tensor]) -> list[int]:
    """Return the number of places in each feature map."""
    return [each.shape[-2] * each.shape[-1] for each in maps]


def _anchors_by_level(maps: Sequence[Tensor], anchors: Tensor) -> list[int]:
    """Return the number of anchors of each feature map: the same number at each place."""
    places = _positions(maps)
    return [count * (len(anchors) // sum(places)) for count in places]


def _matched(
    network: Any, anchors: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
) -> list[Tensor]:
    """Return the box that each anchor of each image stands for, -1 for none (`SSD.forward`)."""
    boxes = require("torchvision.ops.boxes", extra="vision")
    return [
        network.proposal_matcher(boxes.box_iou(target["boxes"], of_image))
        if len(target["boxes"])
        else torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
        for of_image, target in zip(anchors, targets, strict=True)
    ]


def _rows_of(found: Mapping[str, Tensor], most: int) -> Tensor:
    """Return the detections of an image, the most probable first, as `(most, 6)`."""
    there = found["labels"] > 0
    scores = found["scores"][there].float()
    order = scores.argsort(descending=True, stable=True)[:most]
    rows = torch.zeros(most, 6, device=scores.device)
    rows[:, 5] = NO_BOX
    rows[: len(order), :4] = found["boxes"][there][order].float()
    rows[: len(order), 4] = scores[order]
    rows[: len(order), 5] = found["labels"][there][order].float() - 1
    return rows


def with_heads_of(network: nn.Module, fresh: nn.Module) -> list[str]:
    """Give a pretrained detector the maps of a new one that depend on the number of classes.

    Args:
        network: The pretrained detector. Mutated.
        fresh: The same architecture for other classes; its maps are taken, not copied.

    Returns:
        The names of the maps that are new; empty if both have as many classes.
    """
    # Also what is no parameter: norms of a pretrained network are frozen, and keep buffers alone.
    old = network.state_dict()
    other = [name for name, new in fresh.named_parameters() if new.shape != old[name].shape]
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in other))
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, fresh.get_submodule(name))
    # Heads of one stage know their width by a plain number, too.
    if not hasattr(network, "roi_heads"):
        ours, theirs = (one.get_submodule("head.classification_head") for one in (network, fresh))
        for attribute in {"num_classes", "num_columns"} & vars(ours).keys():
            setattr(ours, attribute, getattr(theirs, attribute))
    return names
