"""`model:` a network as a list of named layers, and pretrained weights for it or for a layer."""

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
    """A `.safetensors` file, or a `.pt`, `.pth` or `.bin` of others that holds only tensors. May begin with `package:NAME/`."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the file, each with its replacement in the model: `{"old.": "new."}`. The first that matches is used; `""` matches every name."""
    strict: bool = True
    """Whether it is an error if a tensor of the file has no place or another shape, or a parameter gets no tensor."""


class _Placed(Node):
    """Keys of everything in a list of layers."""

    name: Annotated[str | None, PUBLIC] = Field(
        # Names become parts of parameter names, in which a dot separates modules.
        default=None,
        pattern=r"^[A-Za-z_0-9]+$",
        max_length=MAX_NAME_BYTES,
    )
    """Prefix of the names of its parameters; the layer's position in the list if left out."""
    inputs: Annotated[tuple[str, ...] | None, PUBLIC] = None
    """Names of earlier layers or input columns whose outputs this layer takes; the previous layer if left out."""


class _Layer(_Placed):
    """Keys of every layer that has parameters."""

    weights: WeightsConfig | None = None
    """Pretrained tensors for this layer alone."""


class TransformersLayer(_Layer):
    """A whole pretrained network from the `transformers` library."""

    type: Literal["transformers"]
    """Discriminator."""
    path: Annotated[str, PLACE]
    """A folder, a hub id, or a folder inside an installed package (`package:NAME/folder`)."""
    output: Literal["mean", "cls", "hidden", "logits"] = "mean"
    """Output of the layer: the mean of the last hidden states over real tokens `(B, D)`, the state of the first token `(B, D)`, all last hidden states `(B, T, D)`, or the logits of a classification head `(B, classes)`, which is new unless the weights hold one of that width."""
    pretrained: bool = True
    """Whether the weights at `path` are loaded; else the same architecture starts from random ones."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the files at `path`, each with its replacement in the network, as in `model.weights`."""
    strict: bool = True
    """Whether it is an error if a tensor of the network is missing at `path` or has another shape there. A new head for `logits` is no error."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each key on loading weights, if no weights are loaded."""
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
        problems = [*_name_for_architecture(value), *_faulty_arguments(args, said_by)]
        # timm would open such a file by itself, without our checks of untrusted weights.
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
    """Whether the default weights are loaded (a download); else they are random."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's constructor."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each argument that has a key of its own."""
        said_by = {"weights": "pretrained", "num_classes": "output"}
        problems = _faulty_arguments(value.get("args"), said_by)
        # In torchvision itself `weights=None` means random ones. A saved config has both keys.
        if "weights" in value and value["weights"] is None and "pretrained" not in value:
            message = "null does not tell whether the weights are random"
            hint = "pretrained: false for random ones, pretrained: true for those of torchvision"
            problems.append((("weights",), message, hint))
        return [*_name_for_architecture(value), *problems]


class ImportLayer(_Layer):
    """The user's own `nn.Module`, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.nets:make_net`: a class or function that returns an `nn.Module`."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call. The text `classes` becomes the number of classes; text that begins with `package:` becomes a path."""


class SequentialLayer(_Layer):
    """Layers one after another under one name."""

    type: Literal["sequential"]
    """Discriminator."""
    layers: tuple["Layer", ...] = Field(min_length=1)
    """The layers; each takes the output of the one before."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for names used twice, and for layers that do not fit into a sequence."""
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
    """Keys of a layer that takes several inputs."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint if there are fewer than two inputs."""
        inputs = value.get("inputs") or ()
        if not isinstance(inputs, list | tuple) or len(inputs) >= 2:
            return []
        return [(("inputs",), "needs the names of two or more layers", None)]


class AddLayer(_Merge):
    """The sum of the inputs."""

    type: Literal["add"]
    """Discriminator."""


class ConcatLayer(_Merge):
    """The inputs joined along one axis."""

    type: Literal["concat"]
    """Discriminator."""
    dim: int = Field(default=1, ge=-64, le=63)
    """Axis along which they are joined; 0 is the samples."""


class TorchLayer(_Layer, OpenNode):
    """A class of `torch.nn` by its own name, with its own arguments beside `type`.

    Input sizes (`in_features`, `in_channels`, `num_features`, ...) may be left out: they are taken
    from the input. The text `classes` stands for the number of classes of the data.
    """

    type: str
    """Name of the class, such as `Linear` or `Conv2d`."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for an unknown class, and for each argument that does not fit."""
        type_, own = value.get("type"), sorted(_OWN_TYPES)
        # The most common mistake: a whole network is named by `architecture` or `path`, with no
        # `type`.
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


# A sequential layer passes one value on; these take several, or are two children of the network.
_WITH_INPUTS = {"transformers", "add", "concat"}
_MOVE_OUT = "put it among the model's own layers"
_OWN_TYPES = {"transformers", "timm", "torchvision", "import", "sequential", "add", "concat"}


def _whole_network(said: Any, value: Mapping[str, Any]) -> str:
    """Return a hint on how to write a whole network that `said` may be the name of."""
    if value.get("path") is not None or "/" in str(said):
        return f"a network of transformers is {{type: transformers, path: {shown(said)}}}"
    return (
        "a class of torch.nn is named by its type; a whole network is "
        f"{{type: torchvision, architecture: {said}}}, {{type: timm, architecture: {said}}} "
        f"or {{type: transformers, path: {said}}}"
    )


def _kind_of_layer(value: Any) -> str:
    """Return the tag of the node that a layer, written or built, is validated by."""
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
    """A network of named layers; each takes the output of the one before it."""

    layers: tuple[Layer, ...] = Field(min_length=1)
    """The layers in order. The output of the last one is the network's."""
    weights: WeightsConfig | None = None
    """Pretrained tensors for the whole model, loaded after it is built."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for a name used twice, and for an input that comes later."""
        if "layers" not in value:
            # Written without `layers:`, as if the model were a single layer.
            said = {
                key: value[key] for key in ("name", "type", "architecture", "path") if key in value
            }
            hint = f"layers: [{shown(said)}]"
            return [(("layers",), "missing, and it has no default", hint)] if said else []
        layers = _list(value.get("layers"))
        return [*_repeated_names(layers), *_late_inputs(layers)]


def _late_inputs(layers: Sequence[Any]) -> list[Complaint]:
    """Return a complaint for each input that is a later layer. Unknown names may be data columns."""
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
    """Return a complaint if the architecture is missing and probably given as `name`."""
    name, others = value.get("name"), value.keys() - {"name", "type"}
    if name is None or "architecture" in value or is_meant("architecture", others):
        return []
    hint = f"architecture: {name}; 'name' is only what the layer is called"
    return [(("architecture",), "missing, and it has no default", hint)]


def _repeated_names(layers: Sequence[Any]) -> list[Complaint]:
    """Return a complaint for each name that an earlier layer has; a position counts as a name."""
    problems: list[Complaint] = []
    seen: set[str] = set()
    for position, layer in enumerate(layers):
        name = str(_said(layer, "name") or position)
        if name in seen:
            problems.append((("layers", position, "name"), f"a second layer named {name!r}", None))
        seen.add(name)
    return problems


_OF_ARGUMENTS = Bounds(-1e6, 1e6)
"""Bounds for numbers that are passed to `timm` and `torchvision`."""


def _faulty_arguments(args: Any, said_by: Mapping[str, str]) -> list[Complaint]:
    """Return a complaint for arguments that have a key of their own, and for numbers out of bounds."""
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
    """Return the value of a key of a layer, given as a mapping from YAML or as a config node."""
    return layer.get(key) if isinstance(layer, Mapping) else getattr(layer, key, None)


def _list(value: Any) -> Sequence[Any]:
    """Return a value that is a list, and an empty one for anything else."""
    return value if isinstance(value, list | tuple) else ()
