"""`optimizer:` and `schedule:` how parameters are updated, and with which rate at each step."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.config.base import Node, OpenNode
from finetune.config.bounds import Divisor, Rate, Ratio
from finetune.config.catalogue import OPTIMIZERS, Complaint, check_arguments
from finetune.config.selectors import Selectors

_REFUSED = {
    "LBFGS": "moves all parameters as one vector, also those without a gradient, and evaluates "
    "the loss several times in a step: nothing frozen would be safe from it",
    "SparseAdam": "takes only sparse gradients",
}


class OptimizerConfig(OpenNode):
    """A dense optimizer of `torch.optim` by its own name, with its own arguments beside `type`."""

    type: str
    """Name of the class, such as `AdamW`."""
    lr: Rate
    """Peak learning rate, which the schedule multiplies by its factor."""
    no_decay: Selectors = ()
    """Parameters without weight decay, such as `[{kind: norm}, {kind: bias}]`."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on `lr` from each block to the one below it (ELECTRA, BEiT); none if left out. Rates given in a phase are not changed by it."""
    freeze_below: float | None = Field(default=None, gt=0, lt=1)
    """Parameters whose factor from `layer_decay` is smaller than this are frozen."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for an unknown class, and for each argument that does not fit."""
        type_ = value.get("type")
        found: list[Complaint] = []
        if value.get("freeze_below") is not None and value.get("layer_decay") is None:
            found.append((("freeze_below",), "goes with 'layer_decay'", None))
        if not isinstance(type_, str):
            return found
        # They exist in torch, so "no such optimizer" would send people looking for a misspelling.
        if type_ in _REFUSED:
            return [*found, (("type",), f"{type_} {_REFUSED[type_]}", "AdamW is a safe choice")]
        given, own = cls.arguments_in(value), list(cls.model_fields)
        return found + check_arguments(OPTIMIZERS, "optimizer", type_, given, own=own)


class _Warm(Node):
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the run during which the rate rises linearly from near 0."""


class ConstantSchedule(_Warm):
    """The rate stays constant."""

    type: Literal["constant"] = "constant"
    """Discriminator."""


class LinearSchedule(_Warm):
    """The rate falls linearly."""

    type: Literal["linear"]
    """Discriminator."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor on the rate at the end of the run."""


class CosineSchedule(_Warm):
    """The rate falls along a half cosine."""

    type: Literal["cosine"]
    """Discriminator."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor on the rate at the end of the run."""


class OneCycleSchedule(Node):
    """The rate rises and falls along two half cosines."""

    type: Literal["one_cycle"]
    """Discriminator."""
    rise: float = Field(default=0.3, gt=0, lt=1)
    """Share of the run during which the rate rises."""
    start_divisor: Divisor = 25.0
    """The rate begins at the peak divided by this."""
    end_divisor: Divisor = 1e4
    """The rate ends at its starting value divided by this."""


class SlantedTriangularSchedule(Node):
    """The rate rises steeply and falls slowly, both linearly (ULMFiT)."""

    type: Literal["slanted_triangular"]
    """Discriminator."""
    cut_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the run during which the rate rises."""
    ratio: Ratio = 32.0
    """Factor between the peak rate and the lowest one."""


Schedule = Annotated[
    ConstantSchedule
    | LinearSchedule
    | CosineSchedule
    | OneCycleSchedule
    | SlantedTriangularSchedule,
    Field(discriminator="type"),
]
