"""Keys that layers have in common: name, inputs and pretrained tensors."""

from typing import Annotated

from pydantic import Field

from finetune.config.base import PLACE, PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES
from finetune.config.names import Names


class WeightsConfig(Node):
    """Pretrained tensors to load into the model or into one layer."""

    path: Annotated[str, PLACE]
    """A `.safetensors` file, or a `.pt`, `.pth` or `.bin` of others that holds only tensors. May begin with `package:NAME/`."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Beginnings of names in the file, each with its replacement in the model: `{"old.": "new."}`. The first that matches is used; `""` matches every name. An entry that begins with `*` replaces a part wherever it is in a name: `{"*.gamma": ".weight"}`."""
    strict: bool = True
    """Whether it is an error if a tensor of the file has no place or another shape, or a parameter gets no tensor."""


class Placed(Node):
    """Keys of everything in a list of layers."""

    name: Annotated[str | None, PUBLIC] = Field(
        # Names become parts of parameter names, in which a dot separates modules.
        default=None,
        pattern=r"^[A-Za-z_0-9]+$",
        max_length=MAX_NAME_BYTES,
    )
    """Prefix of the names of its parameters; the layer's position in the list if left out."""
    inputs: Annotated[Names | None, PUBLIC] = None
    """Names of earlier layers or input columns whose outputs this layer takes; the previous layer if left out."""


class WeightedLayer(Placed):
    """Keys of every layer that has parameters."""

    weights: WeightsConfig | None = None
    """Pretrained tensors for this layer alone."""
