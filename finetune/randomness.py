"""Seed the random numbers of torch, numpy and Python together; save and restore their states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the CPU generators of torch, Python and numpy; leave those of accelerators alone."""
    # `torch.manual_seed` would seed all devices too, and set up CUDA to do so later.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    # numpy takes no seed beyond 32 bits.
    np.random.seed(seed % 2**32)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the states of the CPU generators of torch, Python and numpy after the block."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
