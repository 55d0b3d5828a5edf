"""What the user has said, what was decided, and usual names of what is learnt."""

import re
from dataclasses import dataclass

# The likeliest first: where two columns have such names, the earlier name is taken.
TARGET_NAMES = (
    *("label", "target", "y", "labels", "targets", "class", "category", "species", "outcome"),
    *("sentiment", "survived", "price", "churn", "diagnosis", "mask", "tags", "classes", "quality"),
    *("rating", "score", "result", "response", "tag", "intent", "topic", "genre", "income"),
    *("emotion", "default", "fraud", "spam", "stars", "grade", "cost", "sales", "value", "output"),
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user has said; None or empty leaves the choice to us.

    Args:
        target: Columns to learn.
        inputs: Columns to learn from.
        task: Type of the task.
        model: The network.
        train: What of a pretrained network is trained.
        epochs: Passes over the training samples.
        batch_size: Samples of a step.
    """

    target: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    task: str | None = None
    model: str | None = None
    train: str | None = None
    epochs: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that was decided: what about, what, and why."""

    about: str
    what: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {self.why}" if self.why else self.what


def plain(name: str) -> str:
    """Return a name in small letters, without blanks around it."""
    return name.strip().lower()


def last_word(name: str) -> str:
    """Return the last word of a name such as `SalePrice` or `house_price`."""
    return re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name.strip())[-1].lower()


def is_named_target(name: str) -> bool:
    """Tell whether a column is called as targets usually are."""
    return plain(name) in TARGET_NAMES or last_word(name) in TARGET_NAMES
