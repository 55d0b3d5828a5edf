"""`model:` a network as a list of named layers, and pretrained weights for any of it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from finetune.config.base import PLACE, PUBLIC, Node, OpenNode
from finetune.config.bounds import MAX_NAME_BYTES, Arguments, Bounds, beyond
from finetune.config.catalogue import LAYERS, Complaint, check_arguments
from finetune.config.messages import is_meant, shown


class WeightsConfig(Node):
    """Pretrained tensors to load into the model or into one layer."""

    path: Annotated[str, PLACE]
    """A `.safetensors` file, or a foreign `.pt`, `.pth` or `.bin` that holds tensors only. May begin with `package:NAME/`."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the file and what each becomes in the model: `{"old.": "new."}`. The first that fits is used; `""` fits every name."""
    strict: bool = True
    """Whether it is an error when a tensor of the file has no place, has another shape, or a parameter gets none."""


class _Placed(Node):
    """What everything in a list of layers has."""

    name: Annotated[str | None, PUBLIC] = Field(
        default=None, pattern=r"^[A-Za-z_0-9]+$", max_length=MAX_NAME_BYTES
    )
    """Begins the names of the layer's parameters. The layer's position if left out."""
    inputs: Annotated[tuple[str, ...] | None, PUBLIC] = None
    """Names of earlier layers, or of input columns, whose outputs this layer takes. The previous layer's output if left out."""


class _Layer(_Placed):
    """What every layer that has parameters has."""

    weights: WeightsConfig | None = None
    """Pretrained tensors for this layer alone."""


class TransformersLayer(_Layer):
    """A whole pretrained network from the `transformers` library."""

    type: Literal["transformers"]
    """Discriminator."""
    path: Annotated[str, PLACE]
    """A folder, a hub id, or a folder inside an installed package (`package:NAME/folder`)."""
    output: Literal["mean", "cls", "hidden", "logits"] = "mean"
    """What the layer gives: the mean of the last hidden states over real tokens `(B, D)`, the state of the first token `(B, D)`, all last hidden states `(B, T, D)`, or the logits of a classification head `(B, classes)`, new unless the weights hold one of that width."""
    pretrained: bool = True
    """Load the weights found at `path`, or start the same architecture from random ones."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the files at `path` and what each becomes in the network, as in `model.weights`."""
    strict: bool = True
    """Whether it is an error when a tensor of the network is missing at `path` or has another shape there. A new head for `logits` is none."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse keys on how weights are loaded where none are."""
        if value.get("pretrained") is not False:
            return []
        given = [("rename", value.get("rename")), ("strict", value.get("strict") is False)]
        return [
            ((key,), "has no effect with pretrained: false", None)
            for key, is_set in given
            if is_set
        ]


class TimmLayer(_Layer):
    """A network from the `timm` library."""

    type: Literal["timm"]
    """Discriminator."""
    architecture: str
    """Name of the model as `timm.create_model` takes it."""
    output: Literal["features", "logits"] = "features"
    """Pooled features `(B, D)`, or the logits of a new classification head `(B, classes)`."""
    pretrained: bool = True
    """Load the weights that timm knows for this name (from the hub), or start from random ones."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `img_size`."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse arguments that keys of the layer say already, and files of weights among them."""
        args = value.get("args")
        said_by = {
            "pretrained": "pretrained",
            "num_classes": "output",
            "checkpoint_path": "weights",
        }
        problems = [*_name_for_architecture(value), *_faulty_arguments(args, said_by)]
        for name in ("pretrained_cfg", "pretrained_cfg_overlay"):
            settings = args.get(name) if isinstance(args, Mapping) else None
            if isinstance(settings, Mapping) and "file" in settings:
                key = ("args", name, "file")
                problems.append((key, "a file of weights is named by the key 'weights'", None))
        return problems


class TorchvisionLayer(_Layer):
    """A classification network from `torchvision.models`."""

    type: Literal["torchvision"]
    """Discriminator."""
    architecture: str
    """Name of the model as `torchvision.models.get_model` takes it."""
    output: Literal["features", "logits"] = "features"
    """Pooled features `(B, D)`, or the logits of a new classification head `(B, classes)`."""
    pretrained: bool = True
    """Load the default weights (a download), or start from random ones."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's constructor."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse arguments that keys of the layer say already."""
        said_by = {"weights": "pretrained", "num_classes": "output"}
        problems = _faulty_arguments(value.get("args"), said_by)
        return [*_name_for_architecture(value), *problems]


class ImportLayer(_Layer):
    """The user's own `nn.Module`, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.nets:make_net`: a class or function that returns an `nn.Module`."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call. The value `classes` becomes the number of classes; text that begins with `package:` becomes a path."""


class SequentialLayer(_Layer):
    """Layers one after another under one name."""

    type: Literal["sequential"]
    """Discriminator."""
    layers: tuple["Layer", ...] = Field(min_length=1)
    """The layers, each taking the output of the one before."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse what is no plain row of layers, and a name used twice."""
        layers = _list(value.get("layers"))
        problems = _repeated_names(layers)
        for position, layer in enumerate(layers):
            key, type_ = ("layers", position), _said(layer, "type")
            if isinstance(type_, str) and type_ in _WITH_INPUTS:
                problems.append(((*key, "type"), f"no {type_} inside sequential", _MOVE_OUT))
            elif _said(layer, "inputs") is not None:
                problems.append(((*key, "inputs"), "no inputs inside sequential", _MOVE_OUT))
        return problems


class _Merge(_Placed):
    """What takes several inputs."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse to merge fewer than two."""
        inputs = value.get("inputs") or ()
        if not isinstance(inputs, list | tuple) or len(inputs) >= 2:
            return []
        return [(("inputs",), "needs the names of two or more layers", None)]


class AddLayer(_Merge):
    """The sum of its inputs."""

    type: Literal["add"]
    """Discriminator."""


class ConcatLayer(_Merge):
    """Its inputs side by side."""

    type: Literal["concat"]
    """Discriminator."""
    dim: int = Field(default=1, ge=-64, le=63)
    """Axis along which they are joined, 0 being the samples."""


class TorchLayer(_Layer, OpenNode):
    """A class of `torch.nn` by its own name, with its own arguments beside `type`.

    Input sizes (`in_features`, `in_channels`, `num_features`, ...) may be left out: they are
    read off what comes in. The value `classes` stands for the number of classes of the data.
    """

    type: str
    """Name of the class, such as `Linear` or `Conv2d`."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse a class that torch does not have, and arguments that it does not take."""
        type_, own = value.get("type"), sorted(_OWN_TYPES)
        if type_ is None:
            said = value.get("architecture") or value.get("path") or value.get("name")
            message = "missing, and it has no default"
            misspelt = [key for key in value if is_meant("type", [key])]
            hint = f"did you mean 'type' by {misspelt[0]!r}?" if misspelt else None
            hint = hint or (_whole_network(said, value) if said else None)
            return [(("type",), message, hint)]
        if not isinstance(type_, str):
            return []
        return check_arguments(
            LAYERS,
            "layer",
            type_,
            cls.arguments_in(value),
            also=own,
            otherwise=_whole_network(type_, value),
        )


_WITH_INPUTS = {"transformers", "add", "concat"}
_MOVE_OUT = "put it among the model's own layers"
_OWN_TYPES = {"transformers", "timm", "torchvision", "import", "sequential", "add", "concat"}


def _whole_network(said: Any, value: Mapping[str, Any]) -> str:
    """Show how a whole network is named, where `said` may be meant as one."""
    if value.get("path") is not None or "/" in str(said):
        return f"a network of transformers is {{type: transformers, path: {shown(said)}}}"
    return (
        "a class of torch.nn is named by its type; a whole network is "
        f"{{type: torchvision, architecture: {said}}}, {{type: timm, architecture: {said}}} "
        f"or {{type: transformers, path: {said}}}"
    )


def _kind_of_layer(value: Any) -> str:
    type_ = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return type_ if isinstance(type_, str) and type_ in _OWN_TYPES else "torch"


Layer = Annotated[
    Annotated[TransformersLayer, Tag("transformers")]
    | Annotated[TimmLayer, Tag("timm")]
    | Annotated[TorchvisionLayer, Tag("torchvision")]
    | Annotated[ImportLayer, Tag("import")]
    | Annotated[SequentialLayer, Tag("sequential")]
    | Annotated[AddLayer, Tag("add")]
    | Annotated[ConcatLayer, Tag("concat")]
    | Annotated[TorchLayer, Tag("torch")],
    Discriminator(_kind_of_layer),
]


class ModelConfig(Node):
    """A network: named layers, each taking what the one before it gives."""

    layers: tuple[Layer, ...] = Field(min_length=1)
    """The layers in order. The last one's output is the network's."""
    weights: WeightsConfig | None = None
    """Pretrained tensors for the whole model, loaded after it is built."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse a name used twice, and a layer that takes what comes after it."""
        if "layers" not in value:
            said = {
                key: value[key] for key in ("name", "type", "architecture", "path") if key in value
            }
            hint = f"layers: [{shown(said)}]"
            return [(("layers",), "missing, and it has no default", hint)] if said else []
        layers = _list(value.get("layers"))
        return [*_repeated_names(layers), *_late_inputs(layers)]


def _late_inputs(layers: Sequence[Any]) -> list[Complaint]:
    """Complain of inputs that are no earlier layer. Names of no layer may be columns of the data."""
    names = [str(_said(layer, "name") or position) for position, layer in enumerate(layers)]
    known, before = set(names), set[str]()
    problems: list[Complaint] = []
    for position, layer in enumerate(layers):
        for number, name in enumerate(_list(_said(layer, "inputs"))):
            if isinstance(name, str) and name in known and name not in before:
                itself = "itself" if name == names[position] else "a later layer"
                key = ("layers", position, "inputs", number)
                problems.append((key, f"takes {itself}, {name!r}; inputs must come before", None))
        before.add(names[position])
    return problems


def _name_for_architecture(value: Mapping[str, Any]) -> list[Complaint]:
    """Complain of a network that is only named as a layer, where its name is its architecture."""
    name, others = value.get("name"), value.keys() - {"name", "type"}
    if name is None or "architecture" in value or is_meant("architecture", others):
        return []
    hint = f"architecture: {name}; 'name' is only what the layer is called"
    return [(("architecture",), "missing, and it has no default", hint)]


def _repeated_names(layers: Sequence[Any]) -> list[Complaint]:
    """Complain of every name that a layer before has already, positions counting as names."""
    problems: list[Complaint] = []
    seen: set[str] = set()
    for position, layer in enumerate(layers):
        name = str(_said(layer, "name") or position)
        if name in seen:
            problems.append((("layers", position, "name"), f"a second layer named {name!r}", None))
        seen.add(name)
    return problems


_OF_ARGUMENTS = Bounds(-1e6, 1e6)
"""Bounds of the numbers that are handed on to `timm` and `torchvision`."""


def _faulty_arguments(args: Any, said_by: Mapping[str, str]) -> list[Complaint]:
    """Complain of arguments that a key of the layer says already, and of odd numbers."""
    given = args if isinstance(args, Mapping) else {}
    repeated: list[Complaint] = [
        (("args", name), f"{name!r} is said by the key {key!r}", None)
        for name, key in said_by.items()
        if name in given
    ]
    faults = ((name, beyond(value, _OF_ARGUMENTS)) for name, value in given.items())
    return repeated + [
        (("args", name), f"{fault}, got {shown(given[name])}", None)
        for name, fault in faults
        if fault
    ]


def _said(layer: Any, key: str) -> Any:
    """Return what a layer says under `key`, be it as written or a node already."""
    return layer.get(key) if isinstance(layer, Mapping) else getattr(layer, key, None)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
