"""Keys of a source on how its recordings are read: sample rate, length."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune.config.base import Node, refuse

PLAIN_RATE = 16_000
MOST_NUMBERS = 2**28
"""Most numbers of a recording, over all channels: 1 GiB, or 70 minutes of stereo at 32 kHz."""


class AudioKeys(Node):
    """Keys of a source that say how its recordings are read."""

    sample_rate: Annotated[int, Field(ge=1000, le=384_000)] = PLAIN_RATE
    """Numbers a second that every recording is resampled to."""
    seconds: Annotated[float, Field(ge=0.001, le=36_000)] | None = None
    """Length of every recording: longer ones are cut, shorter ones end in silence. If left out, all must be of one length."""

    @model_validator(mode="after")
    def _a_waveform_can_be_held(self) -> Self:
        # Each has bounds of its own, but their product may still exceed all memory.
        if self.seconds is not None and self.seconds * self.sample_rate > MOST_NUMBERS:
            message = (
                f"{self.seconds:g} seconds at a sample_rate of {self.sample_rate:,} are "
                f"{self.seconds * self.sample_rate:,.0f} numbers, at most {MOST_NUMBERS:,} are read"
            )
            refuse("AudioKeys", (("seconds",), message, None))
        return self
