"""A finished picture. How it is drawn is elsewhere: who hands it on loads no fonts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture as all who show it take it: drawn once, and compressed once."""

    pixels: np.ndarray
    """`(H, W, 3)`, uint8."""
    png: bytes
    """The same as a file, with at most 256 colours where it has no photo."""
