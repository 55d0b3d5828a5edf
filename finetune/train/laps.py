"""Where the time of a step goes: forward pass, backward pass, update."""

import time

import torch


class Laps:
    """Adds up the seconds between its marks, by name.

    Args:
        device: The device that computes. A GPU is waited for at each mark, so that its work counts
            where it was asked for.
    """

    __slots__ = ("_device", "_last", "seconds")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def mark(self, name: str) -> None:
        """Count the time since the last mark under a name."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
