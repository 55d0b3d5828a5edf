"""Which architectures timm and torchvision know, and what those of torchvision are for."""

from finetune.config.model import TimmLayer, TorchvisionLayer
from finetune.errors import Key, ModelError, did_you_mean
from finetune.importing import require
from finetune.models.hub_cache import refuse_damaged_cache

ELSEWHERE = ("hf-hub:", "local-dir:")
"""Beginnings of the names of networks that timm loads from outside its own tables."""


def check_timm(node: TimmLayer, *, label: str, key: Key) -> None:
    """Raise unless timm knows an architecture.

    Raises:
        ModelError: there is none of that name, or it has no weights of that tag.
    """
    timm, name = require("timm", extra="vision"), node.architecture
    if name.startswith(ELSEWHERE):
        return
    key = (*key, "architecture")
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ModelError(f"{label}: timm has no architecture {name!r}", hint=hint, key=key)
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm knows the architecture, but not the tag behind its dot
        hint = did_you_mean(name, timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ModelError(f"{label}: timm has no weights {name!r}", hint=hint, key=key) from error


def refuse_damaged_timm(node: TimmLayer, *, label: str, key: Key, weights: bool = False) -> None:
    """Raise if the hub's cache holds a network of timm, and it is damaged.

    Args:
        node: The layer.
        label: Its name in messages.
        key: Its position in the config.
        weights: Whether files of weights are looked at, too.
    """
    name, folder = node.architecture, node.args.get("cache_dir")
    if name.startswith(ELSEWHERE):
        found = name.removeprefix(ELSEWHERE[0]) if name.startswith(ELSEWHERE[0]) else None
    else:
        known = require("timm", extra="vision").get_pretrained_cfg(name)
        found = None if known is None else known.hf_hub_id
    # The cache has other names for a revision that is asked for by `@`.
    if found and "@" not in found:
        at = (*key, "architecture")
        folder = folder if isinstance(folder, str) else None
        refuse_damaged_cache(found, label=label, key=at, weights=weights, folder=folder)


def check_torchvision(node: TorchvisionLayer, *, label: str, key: Key) -> None:
    """Raise unless torchvision knows an architecture.

    Raises:
        ModelError: there is no such network, or it has no such output.
    """
    models = require("torchvision.models", extra="vision")
    known = [*models.list_models(module=models), *_for_segmentation(), *_for_detection()]
    if node.architecture not in known:
        raise ModelError(
            f"{label}: torchvision has no network {node.architecture!r} for classification, "
            "segmentation or detection",
            hint=did_you_mean(node.architecture, known),
            key=(*key, "architecture"),
        )
    if part_of_torchvision(node) is not None and node.output != "logits":
        raise ModelError(
            f"{label}: {node.architecture} is for segmentation and has logits alone",
            hint="output: logits",
            key=(*key, "output"),
        )
    if is_detector(node) != (node.output == "boxes"):
        told = "is a detector and gives boxes alone" if is_detector(node) else "gives no boxes"
        raise ModelError(
            f"{label}: {node.architecture} {told}",
            hint="output: boxes"
            if is_detector(node)
            else f"detectors do, such as {_for_detection()[0]}",
            key=(*key, "output"),
        )


def is_detector(node: TorchvisionLayer) -> bool:
    """Tell whether a network gives boxes."""
    return node.architecture in _for_detection()


def part_of_torchvision(node: TorchvisionLayer) -> str | None:
    """Return the key of a network's output that is used; None if it returns a plain tensor."""
    return "out" if node.architecture in _for_segmentation() else None


def _for_segmentation() -> list[str]:
    """Return the names of torchvision's networks for segmentation."""
    models = require("torchvision.models", extra="vision")
    names: list[str] = models.list_models(module=models.segmentation)
    return names


def _for_detection() -> list[str]:
    """Return the names of torchvision's detectors.

    Those that also give masks or key points of what they find need targets that no task has.
    """
    models = require("torchvision.models", extra="vision")
    names: list[str] = models.list_models(module=models.detection)
    return [name for name in names if not name.startswith(("maskrcnn", "keypointrcnn"))]
