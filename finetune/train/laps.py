"""Where the time of a step goes: forward pass, backward pass, update."""

import time

import torch


class Laps:
    """Adds up the seconds between its marks, by name.

    Args:
        device: The device that computes. A GPU is waited for at each mark, so that its work counts
            where it was asked for.
        is_on: Whether anything is measured: a step that is not logged never waits.
    """

    __slots__ = ("_device", "_is_on", "_last", "seconds")

    def __init__(self, device: torch.device, *, is_on: bool) -> None:
        self._device, self._is_on = device, is_on
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def mark(self, name: str) -> None:
        """Count the time since the last mark under a name."""
        if not self._is_on:
            return
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._is_on and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
