"""Prepared samples, kept for later epochs as long as there is room for all of them.

They lie in a file without a name that all processes of a run share. It is read and written by
offset and not mapped: its pages then belong to no process, and the system may take them back.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from finetune.data.samples import Sample
from finetune.errors import DataError

_MOST_BUFFERS = 1000
"""Columns of a sample that are written without joining them first."""


class KeptSamples:
    """Samples of one split, after the deterministic steps.

    Every sample takes the same number of bytes as the first one. A sample with other columns,
    shapes or dtypes is not kept, but made each time. A copy in a forked process shares the samples.

    Args:
        first: A sample; its values are tensors.
        count: How many samples the split has.

    Raises:
        DataError: there is no room for the file.
    """

    def __init__(self, first: Mapping[str, Tensor], count: int) -> None:
        self._layout = shapes_of(first)
        self._row_bytes = row_bytes(first)
        # A forked process must see what another has written: this memory is shared, and has no
        # name that a killed run would leave behind.
        self._is_there = mmap.mmap(-1, count)
        with tempfile.TemporaryFile(prefix="finetune-") as file:
            reserve(file.fileno(), self._row_bytes * count)
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def get(self, row: int) -> Sample | None:
        """Return a sample, each value a tensor of its own; None if it is not kept."""
        if not self._is_there[row]:
            return None
        raw = bytearray(os.pread(self._file, self._row_bytes, row * self._row_bytes))
        sample, start = {}, 0
        for name, shape, dtype in self._layout:
            size = prod(shape) * dtype.itemsize
            flat = torch.frombuffer(raw, dtype=torch.uint8, count=size, offset=start)
            # A copy, as the column may not begin at an address that its dtype needs.
            sample[name] = flat.clone().view(dtype).reshape(shape)
            start += size
        return sample

    def put(self, row: int, sample: Sample) -> None:
        """Keep a sample if it has columns, shapes and dtypes of the first one."""
        if not is_of_tensors(sample) or self._layout != shapes_of(sample):
            return
        raw = [
            value.contiguous().reshape(-1).view(torch.uint8).numpy() for value in sample.values()
        ]
        # The system takes so many buffers in one call (IOV_MAX is 1,024 on Linux).
        buffers = raw if len(raw) <= _MOST_BUFFERS else [b"".join(raw)]
        os.pwritev(self._file, buffers, row * self._row_bytes)
        # The mark comes last: whoever sees it finds the whole sample.
        self._is_there[row] = 1


def is_of_tensors(sample: Sample) -> bool:
    """Tell whether all values of a sample are tensors, so that it can be kept."""
    return bool(sample) and all(isinstance(value, Tensor) for value in sample.values())


def shapes_of(sample: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Return name, shape and dtype of each value of a sample."""
    return [(name, tuple(value.shape), value.dtype) for name, value in sample.items()]


def row_bytes(sample: Mapping[str, Tensor]) -> int:
    """Return the number of bytes of a sample."""
    return sum(value.numel() * value.element_size() for value in sample.values())


def reserve(file: int, size: int) -> None:
    """Allocate the space of a file now: on a full disk a mapped file would kill its process.

    Raises:
        DataError: there is no room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise DataError(
            f"no room for {size / 1024**3:.1f} GiB of prepared samples in "
            f"{tempfile.gettempdir()!r}: {error.strerror}",
            hint="set TMPDIR to a folder with more room",
        ) from error
