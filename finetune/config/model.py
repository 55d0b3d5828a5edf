"""`model:` a network as a list of named layers, and pretrained weights for it or for a layer."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from finetune.config.base import PUBLIC, Node, OpenNode, tags_of
from finetune.config.bounds import Arguments
from finetune.config.catalogue import LAYERS, Complaint, check_arguments
from finetune.config.layer_keys import Placed, WeightedLayer, WeightsConfig as WeightsConfig
from finetune.config.messages import is_meant, shown
from finetune.config.names import one_or_more
from finetune.config.whole_networks import (
    TimmLayer as TimmLayer,
    TorchvisionLayer as TorchvisionLayer,
    TransformersLayer as TransformersLayer,
)
from finetune.errors import did_you_mean


class ImportLayer(WeightedLayer):
    """The user's own `nn.Module`, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.nets:make_net`: a class or function that returns an `nn.Module`."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call. The text `classes` becomes the number of classes; text that begins with `package:` becomes a path."""


class SequentialLayer(WeightedLayer):
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


class _Merge(Placed):
    """Keys of a layer that takes several inputs."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint if there are fewer than two inputs."""
        inputs = one_or_more(value.get("inputs")) or ()
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


class StackLayer(_Merge):
    """The inputs, which have one shape, side by side along a new axis behind the samples: `(B, 2, D)` from two embeddings."""

    type: Literal["stack"]
    """Discriminator."""


_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_Numbers = Annotated[tuple[_Number, ...], Field(min_length=1, max_length=10_000)]


class AffineLayer(Placed):
    """Its input times `scale` plus `shift`; nothing of it is trained. At the end of a network for `regression` it gives numbers in the unit of the target: `scale` is then about the target's standard deviation, `shift` its mean."""

    type: Literal["affine"]
    """Discriminator."""
    scale: _Number | _Numbers = 1.0
    """Factor; or one for each of the last axis."""
    shift: _Number | _Numbers = 0.0
    """What is added after that; or a number for each of the last axis."""


class SharedLayer(Placed):
    """An earlier layer again: the same parameters, on other inputs."""

    type: Literal["shared"]
    """Discriminator."""
    layer: Annotated[str, PUBLIC]
    """Name of that layer. Its parameters exist once, under its own name."""


class TorchLayer(WeightedLayer, OpenNode):
    """A class of `torch.nn` by its own name, with its own arguments beside `type`.

    Input sizes (`in_features`, `in_channels`, `num_features`, ...) may be left out: they are taken
    from the input. The text `classes` stands for the number of classes of the data.
    """

    type: str
    """Name of the class, such as `Linear` or `Conv2d`."""

    @classmethod
    def known_types(cls) -> Collection[str]:
        """Return the classes of torch.nn and the kinds of layers of our own."""
        return (*LAYERS, *_OWN_TYPES)

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
_WITH_INPUTS = {"transformers", "add", "concat", "stack", "shared"}
_MOVE_OUT = "put it among the model's own layers"


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
    # An unknown type goes to the open node, which knows what it may be meant for.
    return type_ if isinstance(type_, str) and type_ in _OWN_TYPES else "torch"


Layer = Annotated[
    Annotated[TransformersLayer, Tag("transformers")]
    | Annotated[TimmLayer, Tag("timm")]
    | Annotated[TorchvisionLayer, Tag("torchvision")]
    | Annotated[ImportLayer, Tag("import")]
    | Annotated[SequentialLayer, Tag("sequential")]
    | Annotated[AddLayer, Tag("add")]
    | Annotated[ConcatLayer, Tag("concat")]
    | Annotated[StackLayer, Tag("stack")]
    | Annotated[AffineLayer, Tag("affine")]
    | Annotated[SharedLayer, Tag("shared")]
    | Annotated[TorchLayer, Tag("torch")],
    Discriminator(_kind_of_layer),
]
_OWN_TYPES = tags_of(Layer) - {"torch"}
"""Types of the union; all other types are names of classes of `torch.nn`."""


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
            if said.get("type") in ("timm", "torchvision") and said.keys() == {"name", "type"}:
                said["architecture"] = said.pop("name")
            hint = f"layers: [{shown(said)}]"
            return [(("layers",), "missing, and it has no default", hint)] if said else []
        layers = _list(value.get("layers"))
        return [*_repeated_names(layers), *_late_inputs(layers), *_unfit_to_share(layers)]


def _late_inputs(layers: Sequence[Any]) -> list[Complaint]:
    """Return a complaint for each input that is a later layer. Unknown names may be data columns."""
    names = [str(_said(layer, "name") or position) for position, layer in enumerate(layers)]
    known, before = set(names), set[str]()
    problems: list[Complaint] = []
    for position, layer in enumerate(layers):
        inputs = _said(layer, "inputs")
        for number, name in enumerate(_list(one_or_more(inputs))):
            # `backbone.2` is one of the outputs of `backbone`. `0.5` may be a column, and is no
            # more likely to be an output of a layer without a name.
            first = name.partition(".")[0] if isinstance(name, str) else None
            taken = name if first is not None and first.isdecimal() else first
            if taken in known and taken not in before:
                itself = "itself" if taken == names[position] else "a later layer"
                # A single text has no positions.
                place = () if isinstance(inputs, str) else (number,)
                key = ("layers", position, "inputs", *place)
                problems.append((key, f"takes {itself}, {name!r}; inputs must come before", None))
        before.add(names[position])
    return problems


def _unfit_to_share(layers: Sequence[Any]) -> list[Complaint]:
    """Return a complaint for each shared layer that names none before it, or one of no use."""
    before: dict[str, Any] = {}
    problems: list[Complaint] = []
    for position, layer in enumerate(layers):
        if _said(layer, "type") == "shared" and isinstance(name := _said(layer, "layer"), str):
            fault = _fault_of_shared(name, before)
            if fault is not None:
                problems.append((("layers", position, "layer"), *fault))
        before[str(_said(layer, "name") or position)] = layer
    return problems


def _fault_of_shared(name: str, before: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return why a layer of that name cannot be shared, with a hint; None if it can."""
    if name not in before:
        known = ", ".join(map(repr, before)) or "none"
        return f"no earlier layer {name!r}; known: {known}", did_you_mean(name, list(before))
    type_ = _said(before[name], "type")
    if type_ == "shared":
        first = _said(before[name], "layer")
        return f"{name!r} is itself a shared layer", f"layer: {first}"
    if type_ in ("add", "concat", "stack", "affine"):
        return f"{name!r} has no parameters to share", f"a second layer of type {type_} does it"
    return None


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


def _said(layer: Any, key: str) -> Any:
    """Return the value of a key of a layer, given as a mapping from YAML or as a config node."""
    return layer.get(key) if isinstance(layer, Mapping) else getattr(layer, key, None)


def _list(value: Any) -> Sequence[Any]:
    """Return a value that is a list, and an empty one for anything else."""
    return value if isinstance(value, list | tuple) else ()
