"""`optimizer:` and `schedule:` how parameters are updated, and with which rate at each step."""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from finetune.config.base import PUBLIC, Node, OpenNode
from finetune.config.bounds import Count, Divisor, NotNegative, Rate, Ratio
from finetune.config.catalogue import OPTIMIZERS, Complaint, check_arguments
from finetune.config.messages import shown
from finetune.config.selectors import Selectors
from finetune.config.train import Every

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
    def known_types(cls) -> Collection[str]:
        """Return the optimizers of torch."""
        return OPTIMIZERS

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


class Warmup(Node):
    """How long the rate rises at the start, in one of three units."""

    steps: Count | None = None
    """Number of optimizer steps."""
    epochs: Count | None = None
    """Number of epochs."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the run; a plain number in place of the mapping means the same."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if [self.steps, self.epochs, self.fraction].count(None) != 2:
            raise ValueError("needs exactly one of 'steps', 'epochs' and 'fraction'")
        return self


def _form_of_warmup(value: Any) -> str:
    """Return the tag of the form that a warmup has: a share of the run, or a mapping."""
    return "with a unit" if isinstance(value, Mapping | Warmup) else "share"


def _share(value: Any) -> Any:
    """Refuse a number of steps or epochs that is given as a share."""
    # For Python a bool is a number.
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        raise ValueError(
            f"a plain number is a share of the run, below 1, got {shown(value)}; "
            "with a unit: {steps: 500}, {epochs: 1}"
        )
    return value


class _Warm(Node):
    warmup: Annotated[
        Annotated[float, Field(ge=0, lt=1), BeforeValidator(_share), Tag("share")]
        | Annotated[Warmup, Tag("with a unit")],
        Discriminator(_form_of_warmup),
    ] = 0.0
    """How long the rate rises linearly from near 0: `{steps: 500}`, `{epochs: 1}`, `{fraction: 0.1}`, or a plain number, which is a share of the run. Where the schedule starts anew in each phase, it is a share of the phase, and the rate rises in each."""


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
    """The rate falls along a half cosine, or along several of them."""

    type: Literal["cosine"]
    """Discriminator."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor on the rate at the end of the run, and before each restart."""
    restarts: int = Field(default=0, ge=0, le=100)
    """How often the rate returns to its peak and falls anew (SGDR): 2 make three periods."""
    growth: float = Field(default=1.0, ge=1, le=10)
    """Length of a period over that of the one before; all are equally long unless given."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for a growth of periods without a restart."""
        if value.get("growth") in (None, 1) or value.get("restarts"):
            return []
        return [(("growth",), "goes with 'restarts': there is one period only", None)]


class PolynomialSchedule(_Warm):
    """The rate falls as a power of the share of the run that is left."""

    type: Literal["polynomial"]
    """Discriminator."""
    power: float = Field(gt=0, le=100)
    """The exponent; 1 is a straight line, larger ones fall faster at first."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor on the rate at the end of the run."""


class ExponentialSchedule(_Warm):
    """The rate falls by an equal factor in equal times, smoothly from step to step."""

    type: Literal["exponential"]
    """Discriminator."""
    decay: float = Field(gt=0, lt=1)
    """Factor on the rate over each `every`."""
    every: Every = Every(epochs=1)
    """The time in which the rate falls by `decay`, counted from the end of the warmup."""


_Points = Annotated[tuple[Count, ...], Field(min_length=1, max_length=1000)]


class Milestones(Node):
    """Points of the run, in steps or in epochs."""

    steps: _Points | None = None
    """Numbers of optimizer steps, in rising order."""
    epochs: _Points | None = None
    """Numbers of epochs, in rising order."""

    @model_validator(mode="after")
    def _one_rising_list(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of 'steps' and 'epochs'")
        points = self.steps or self.epochs or ()
        if any(one >= other for one, other in pairwise(points)):
            raise ValueError(f"the points must rise, got {shown(points)}")
        return self


class StepSchedule(_Warm):
    """The rate falls by a factor at certain points of the run, and is constant in between."""

    type: Literal["step"]
    """Discriminator."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """Factor on the rate at each point."""
    every: Every | None = None
    """Distance of the points, such as `{epochs: 30}`, counted from the start of the run."""
    at: Milestones | None = None
    """The points themselves, in place of `every`, such as `{epochs: [30, 60]}` or `{steps: [1000]}`."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint unless one of `every` and `at` is given, and for a bare list."""
        every, points = value.get("every"), value.get("at")
        message = "needs exactly one of 'every' and 'at', got"
        if every is None and points is None:
            return [(("every",), f"{message} neither", "every: {epochs: 30}")]
        if every is not None and points is not None:
            return [(("at",), f"{message} both", None)]
        # Other tools count epochs there, or steps: a list alone would be a guess.
        if isinstance(points, list | tuple):
            hint = f"at: {{epochs: {shown(points)}}}, or at: {{steps: ...}}"
            return [(("at",), f"needs a unit, got {shown(points)}", hint)]
        return []


class PlateauSchedule(_Warm):
    """The rate falls by a factor whenever a metric of the evaluation no longer improves."""

    type: Literal["plateau"]
    """Discriminator."""
    metric: Annotated[str, PUBLIC] = "validation/loss"
    """Tag of the metric that is watched. Which way it improves is known from the metric."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """Factor on the rate, each time."""
    patience: Count = 2
    """Evaluations in a row without improvement after which the rate falls; then they are counted anew. A phase that begins changes nothing, unless the schedule begins anew with it."""
    min_delta: NotNegative = 0.0
    """Smallest change that counts as improvement, in the metric's own unit."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Smallest factor on the rate."""


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
    | PolynomialSchedule
    | ExponentialSchedule
    | StepSchedule
    | PlateauSchedule
    | OneCycleSchedule
    | SlantedTriangularSchedule,
    Field(discriminator="type"),
]
