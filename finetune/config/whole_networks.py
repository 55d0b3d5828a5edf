"""Layers that are whole networks of a library: transformers, timm, torchvision."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.config.base import PLACE
from finetune.config.bounds import Bounds, beyond
from finetune.config.catalogue import Complaint
from finetune.config.layer_keys import WeightedLayer
from finetune.config.messages import is_meant, shown
from finetune.config.other_words import NEW_HEAD

Stage = Annotated[int, Field(ge=-64, le=63)]
"""Number of a stage of a network."""


class TransformersLayer(WeightedLayer):
    """A whole pretrained network from the `transformers` library."""

    type: Literal["transformers"]
    """Discriminator."""
    path: Annotated[str, PLACE]
    """A folder, a hub id, or a folder inside an installed package (`package:NAME/folder`)."""
    output: Literal["mean", "cls", "last", "hidden", "logits"] = "mean"
    """Output of the layer: the mean of the last hidden states over real tokens `(B, D)`, the state of the first or of the last real token `(B, D)`, all last hidden states `(B, T, D)`, or the logits of the head that the task needs, `(B, classes)` for a whole sample. A head is new unless the weights hold one of that kind and width."""
    pretrained: bool = True
    """Whether the weights at `path` are loaded; else the same architecture starts from random ones."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the files at `path`, each with its replacement in the network, as in `model.weights`."""
    strict: bool = True
    """Whether it is an error if a tensor of the network is missing at `path` or has another shape there. A new head for `logits` is no error."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each key on loading weights, if no weights are loaded."""
        unnamed = _other_key_for("path", "architecture", value)
        if value.get("pretrained") is not False:
            return unnamed
        given = [("rename", value.get("rename")), ("strict", value.get("strict") is False)]
        return unnamed + [
            ((key,), "has no effect with pretrained: false", None)
            for key, is_set in given
            if is_set
        ]


class TimmLayer(WeightedLayer):
    """A network from the `timm` library."""

    type: Literal["timm"]
    """Discriminator."""
    architecture: str
    """Name of the model as `timm.create_model` takes it."""
    output: Literal["features", "logits", "maps"] = "features"
    """Pooled features `(B, D)`, the logits of a new classification head `(B, classes)`, or feature maps of several stages, `(B, C, H, W)` each: a later layer takes one of them by `inputs: [NAME.0]`."""
    out_indices: Annotated[tuple[Stage, ...] | None, Field(min_length=1, max_length=64)] = None
    """Stages whose maps `output: maps` gives, counted from 0 at the input, or from -1 at the output; those that timm chooses if left out. `NAME.0` is the first in this list."""
    pretrained: bool = True
    """Whether the weights that timm has for this name are loaded (from the hub); else they are random."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `img_size`."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each of `args` that the layer has a key for, or that names a file."""
        args = value.get("args")
        said_by = {
            "pretrained": "pretrained",
            "num_classes": "output",
            "checkpoint_path": "weights",
        }
        if value.get("output") == "maps":
            said_by |= {"features_only": "output", "out_indices": "out_indices"}
        problems = [*_name_for_architecture(value), *_faulty_arguments(args, said_by)]
        if value.get("out_indices") is not None and value.get("output") != "maps":
            hint = "output: maps gives the feature maps of these stages"
            problems.append((("out_indices",), "has an effect with output: maps alone", hint))
        # timm would open such a file by itself, without our checks of untrusted weights.
        for name in ("pretrained_cfg", "pretrained_cfg_overlay"):
            settings = args.get(name) if isinstance(args, Mapping) else None
            if isinstance(settings, Mapping) and "file" in settings:
                key = ("args", name, "file")
                problems.append((key, "a file of weights is named by the key 'weights'", None))
        return problems


class TorchvisionLayer(WeightedLayer):
    """A network from `torchvision.models` that classifies images or their pixels, or finds boxes."""

    type: Literal["torchvision"]
    """Discriminator."""
    architecture: str
    """Name of the model as `torchvision.models.get_model` takes it."""
    output: Literal["features", "logits", "boxes"] = "features"
    """Pooled features `(B, D)`, or the logits of a new classification head `(B, classes)`. Detectors (Faster R-CNN, RetinaNet, FCOS, SSD) have `boxes` alone: heads of another number of classes are new, and images are resized and normalised inside. Networks for segmentation have logits alone, of each pixel: `(B, classes, H, W)`; their auxiliary heads are left out."""
    pretrained: bool = True
    """Whether the default weights are loaded (a download); else they are random."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's constructor."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each argument that has a key of its own."""
        args = value.get("args")
        problems = _faulty_arguments(args, {"weights": "pretrained", "num_classes": "output"})
        if isinstance(args, Mapping) and args.get("aux_loss"):
            message = "the auxiliary head is left out: no task takes its loss"
            problems.append((("args", "aux_loss"), message, "leave out aux_loss"))
        # In torchvision itself `weights=None` means random ones. A saved config has both keys.
        if "weights" in value and value["weights"] is None and "pretrained" not in value:
            message = "null does not tell whether the weights are random"
            hint = "pretrained: false for random ones, pretrained: true for those of torchvision"
            problems.append((("weights",), message, hint))
        return [*_name_for_architecture(value), *problems]


def _name_for_architecture(value: Mapping[str, Any]) -> list[Complaint]:
    """Return a complaint if the architecture is missing and probably given as `path` or `name`."""
    if by_path := _other_key_for("architecture", "path", value):
        return by_path
    name, others = value.get("name"), value.keys() - {"name", "type"}
    if name is None or "architecture" in value or is_meant("architecture", others):
        return []
    hint = f"architecture: {name}; 'name' is only what the layer is called"
    return [(("architecture",), _MISSING, hint)]


def _other_key_for(wanted: str, other: str, value: Mapping[str, Any]) -> list[Complaint]:
    """Return complaints if a network is named by the key that networks of another library have."""
    said = value.get(other)
    if wanted in value or not isinstance(said, str):
        return []
    hint = f"{wanted}: {said}; '{other}' is a key of networks of other libraries"
    return [((wanted,), _MISSING, hint)]


_MISSING = "missing, and it has no default"
_OF_ARGUMENTS = Bounds(-1e6, 1e6)
"""Bounds for numbers that are passed to `timm` and `torchvision`."""


def _faulty_arguments(args: Any, said_by: Mapping[str, str]) -> list[Complaint]:
    """Return a complaint for arguments that have a key of their own, and for numbers out of bounds."""
    given = args if isinstance(args, Mapping) else {}
    repeated: list[Complaint] = [
        (
            ("args", name),
            f"{name!r} is said by the key {key!r}",
            NEW_HEAD if name == "num_classes" else None,
        )
        for name, key in said_by.items()
        if name in given
    ]
    faults = ((name, beyond(value, _OF_ARGUMENTS)) for name, value in given.items())
    return repeated + [
        (("args", name), f"{fault}, got {shown(given[name])}", None)
        for name, fault in faults
        if fault
    ]
