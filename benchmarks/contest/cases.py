"""What is measured: the cases, and who takes part."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CONFIGS = Path(__file__).parents[1] / "configs"

Boundary = int | Literal["pooled"] | None
"""Where the frozen beginning of a network ends: before a block of that number, before the head,
or nowhere."""


@dataclass(frozen=True, slots=True)
class Case:
    """One config, and what a hand-written loop must be told about it."""

    name: str
    network: Literal["text", "image", "digits"]
    boundaries: tuple[Boundary, ...]
    """Where the frozen beginning ends, one for each phase."""
    other_rate: float
    """Learning rate of the run that begins with a warm store."""
    trust: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    """Overrides that make the case small, for a trial of the machinery."""

    @property
    def config(self) -> Path:
        """The case's config."""
        return CONFIGS / f"{self.name}.yaml"


_LITE = ("efficientnet_lite_pytorch",)
_FEW = ("data.split.validation=0.02", "data.split.test=0.9")
_SHORT = (*_FEW, "data.transforms.0.max_length=8")
_SMALL = (*_FEW, "data.transforms.0.size=[32, 32]")
CASES = {
    case.name: case
    for case in (
        Case("minilm_head", "text", ("pooled",), 3e-3, tiny=(*_SHORT, "train.epochs=4")),
        Case("minilm_top", "text", (4,), 1e-4, tiny=(*_SHORT, "train.epochs=4")),
        Case("efficientnet_head", "image", ("pooled",), 5e-3, _LITE, (*_SMALL, "train.epochs=4")),
        Case("efficientnet_top", "image", (12,), 5e-4, _LITE, (*_SMALL, "train.epochs=4")),
        Case("gradual_thaw", "image", ("pooled", 12, 8), 5e-4, _LITE, _SMALL),
        Case("nothing_frozen", "digits", (None,), 1e-3, tiny=("train.epochs=2",)),
    )
}

CONTESTANTS = ("limit", "ours", "ours_warm", "plain", "lightning", "trainer")
"""In the order of a round. `ours_warm` follows `ours`, whose store it finds."""
UNCACHED = ("plain", "lightning", "trainer")
"""Those that run the whole network in every epoch: an epoch costs them the same every time."""
