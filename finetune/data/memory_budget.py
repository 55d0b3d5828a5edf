"""How much memory prepared samples may take: `data.memory_gb`."""

from dataclasses import dataclass
from typing import Literal

from finetune.process import available_memory_bytes

_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that prepared samples may take with `data.memory_gb: auto`."""


@dataclass(slots=True)
class MemoryBudget:
    """How many bytes the prepared samples of all splits may still take."""

    left_bytes: float

    @classmethod
    def of(cls, memory_gb: float | Literal["auto"]) -> "MemoryBudget":
        """Return the room of `data.memory_gb`; `auto` for a quarter of the free memory."""
        if memory_gb == "auto":
            return cls(_SHARE_OF_MEMORY * available_memory_bytes())
        return cls(memory_gb * 2**30)
