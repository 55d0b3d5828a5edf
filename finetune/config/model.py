"""`model:` a network as a list of named layers, and pretrained weights for any of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from finetune.config.base import Node, OpenNode, refuse
from finetune.config.catalogue import LAYERS, check_arguments


class WeightsConfig(Node):
    """Pretrained tensors to load into the model or into one layer."""

    path: str
    """A `.safetensors` file, or a foreign `.pt`, `.pth` or `.bin` that holds tensors only. May begin with `package:NAME/`."""
    rename: dict[str, str] = {}
    """Beginnings of names in the file and what each becomes in the model: `{"old.": "new."}`. The first that fits is used; `""` fits every name."""
    strict: bool = True
    """Whether it is an error when a tensor of the file has no place, has another shape, or a parameter gets none."""


class _Layer(Node):
    """What every layer has."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z_0-9]+$")
    """Begins the names of the layer's parameters. The layer's position if left out."""
    inputs: tuple[str, ...] | None = None
    """Names of earlier layers, or of input columns, whose outputs this layer takes. The previous layer's output if left out."""
    weights: WeightsConfig | None = None
    """Pretrained tensors for this layer alone."""


class TransformersLayer(_Layer):
    """A whole pretrained network from the `transformers` library."""

    type: Literal["transformers"]
    """Discriminator."""
    path: str
    """A folder, a hub id, or a folder inside an installed package (`package:NAME/folder`)."""
    output: Literal["mean", "cls", "hidden", "logits"] = "mean"
    """What the layer gives: the mean of the last hidden states over real tokens `(B, D)`, the state of the first token `(B, D)`, all last hidden states `(B, T, D)`, or the logits of a new classification head `(B, classes)`."""
    pretrained: bool = True
    """Load the weights found at `path`, or start the same architecture from random ones."""


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
    args: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, such as `img_size`."""


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
    args: dict[str, Any] = {}
    """Further arguments of the model's constructor."""


class ImportLayer(_Layer):
    """The user's own `nn.Module`, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: str
    """`my_pkg.nets:make_net`: a class or function that returns an `nn.Module`."""
    args: dict[str, Any] = {}
    """Keyword arguments of the call. The value `classes` becomes the number of classes; text that begins with `package:` becomes a path."""


class SequentialLayer(_Layer):
    """Layers one after another under one name."""

    type: Literal["sequential"]
    """Discriminator."""
    layers: tuple["Layer", ...] = Field(min_length=1)
    """The layers, each taking the output of the one before."""


class AddLayer(_Layer):
    """The sum of its inputs."""

    type: Literal["add"]
    """Discriminator."""


class ConcatLayer(_Layer):
    """Its inputs side by side."""

    type: Literal["concat"]
    """Discriminator."""
    dim: int = 1
    """Axis along which they are joined, 0 being the samples."""


class TorchLayer(OpenNode, _Layer):
    """A class of `torch.nn` by its own name, with its own arguments beside `type`.

    Input sizes (`in_features`, `in_channels`, `num_features`, ...) may be left out: they are
    read off what comes in. The value `classes` stands for the number of classes of the data.
    """

    type: str
    """Name of the class, such as `Linear` or `Conv2d`."""

    @model_validator(mode="after")
    def _class_and_arguments_exist(self) -> Self:
        if problem := check_arguments(LAYERS, "layer", self.type, self.arguments):
            refuse("TorchLayer", *problem)
        return self


_OWN_TYPES = {"transformers", "timm", "torchvision", "import", "sequential", "add", "concat"}


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

    @model_validator(mode="after")
    def _names_are_unique_and_inputs_known(self) -> Self:
        problems: list[tuple[tuple[str | int, ...], str, str | None]] = []
        seen: set[str] = set()
        for position, layer in enumerate(self.layers):
            name = layer.name or str(position)
            if name in seen:
                problems.append(
                    (("layers", position, "name"), f"a second layer named {name!r}", None)
                )
            seen.add(name)
        if problems:
            refuse("ModelConfig", *problems)
        return self
