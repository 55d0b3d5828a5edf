"""Overrides of a trained run that would have changed its training, and change nothing any more."""

from collections.abc import Sequence

_OF_TRAINING = ("optimizer", "schedule", "tracking", "sweep", "train")
"""Sections that say how a run is trained, and what it writes meanwhile."""
_STILL_USED = (
    *("train.device", "train.precision", "train.deterministic", "train.batch_size"),
    *("train.micro_batch", "train.checkpoint", "train.checkpoint.path"),
    *("train.hang_timeout_s", "train.compile"),
)
"""Keys of these by which a trained network is found and called."""


def idle_overrides(overrides: Sequence[str]) -> list[str]:
    """Return a line for each override that a trained run takes no notice of."""
    # A whole section that is replaced may hold one of the keys that are still used.
    keys = [override.partition("=")[0].strip() for override in overrides]
    return [
        f"-o {key} changes nothing: the run is trained"
        for key in keys
        if key.partition(".")[0] in _OF_TRAINING and key not in _STILL_USED and "." in key
    ]
