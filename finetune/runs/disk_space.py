"""Estimate, before the first step, whether the disk can hold the checkpoints of a run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Room:
    """What a run's checkpoints will take on the disk."""

    checkpoint_bytes: int
    """Expected size of one checkpoint."""
    num_kept: int
    """Most checkpoints at the same time, without the one being written."""

    def lack_in(self, folder: Path, num_there: int) -> str | None:
        """Return a warning if the disk cannot hold all checkpoints to be kept, else None.

        Args:
            folder: Folder of the checkpoints.
            num_there: How many it holds already.

        Raises:
            CheckpointError: the disk cannot hold even one more.
        """
        size, free = self.checkpoint_bytes, _free_bytes(folder)
        if size > free:
            raise CheckpointError(
                f"a checkpoint takes about {_mib(size)}, the disk has {_mib(free)} left",
                where=str(folder),
                hint="make room, or choose another --run",
            )
        # While the last one is written, the one it will replace is still there.
        to_come = max(1, self.num_kept + 1 - num_there)
        if size * to_come <= free:
            return None
        return (
            f"{folder}: {to_come} more checkpoints take about {_mib(size * to_come)}, "
            f"the disk has {_mib(free)} left; the run stops where it is full"
        )


def _free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    # The folder may not be made yet; the disk is that of the nearest one above.
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(there).free


def _mib(num_bytes: int) -> str:
    """Return a size as text in MiB."""
    return f"{num_bytes / (1 << 20):,.1f} MiB"
