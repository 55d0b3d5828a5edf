"""`until:` what ends a phase of `freeze:`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import Count, NotNegative


class AfterEpochs(Node):
    """The phase ends after a number of epochs."""

    epochs: Count
    """Epochs since the start of the phase."""


class AfterSteps(Node):
    """The phase ends after a number of steps."""

    steps: Count
    """Optimizer steps since the start of the phase."""


class AtFraction(Node):
    """The phase ends when a share of the run is done."""

    fraction: float = Field(gt=0, lt=1)
    """Share of all optimizer steps of the run, counted from the start of the run."""


# Which trigger is meant shows in the key alone, as people write it; there is no `type`.
_TRIGGERS = ("epochs", "steps", "fraction", "plateau")


def _kind_of_trigger(value: Any) -> str | None:
    """Return the one key that names a trigger; None if there are none or several."""
    # A dict as written, or a node built in Python; both are validated.
    if isinstance(value, Mapping):
        given = [key for key in _TRIGGERS if key in value]
    else:
        given = [key for key in _TRIGGERS if hasattr(value, key)]
    return given[0] if len(given) == 1 else None


Length = Annotated[
    Annotated[AfterEpochs, Tag("epochs")]
    | Annotated[AfterSteps, Tag("steps")]
    | Annotated[AtFraction, Tag("fraction")],
    Discriminator(
        _kind_of_trigger,
        custom_error_type="trigger",
        custom_error_message="needs exactly one of epochs, steps, fraction",
    ),
]


class OnPlateau(Node):
    """The phase ends when a metric of the evaluation no longer improves."""

    plateau: Annotated[str, PUBLIC]
    """Tag of the metric, such as `validation/loss`."""
    patience: Count = 2
    """Evaluations in a row without improvement."""
    min_delta: NotNegative = 0.0
    """Smallest change that counts as improvement, in the metric's own unit."""
    at_most: Length | None = None
    """Latest end of the phase."""


Trigger = Annotated[
    Annotated[AfterEpochs, Tag("epochs")]
    | Annotated[AfterSteps, Tag("steps")]
    | Annotated[AtFraction, Tag("fraction")]
    | Annotated[OnPlateau, Tag("plateau")],
    Discriminator(
        _kind_of_trigger,
        custom_error_type="trigger",
        custom_error_message="needs exactly one of epochs, steps, fraction, plateau",
    ),
]
