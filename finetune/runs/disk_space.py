"""Whether the disk will hold what a run is going to save, asked before its first step."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Room:
    """What the checkpoints of a run will take of the disk."""

    checkpoint_bytes: int
    """Expected size of one."""
    num_kept: int
    """How many there are at most, one being written not counted."""

    def lack_in(self, folder: Path, num_there: int) -> str | None:
        """Return a line where the disk cannot hold all that will be kept, None where it can.

        Args:
            folder: Where they will be.
            num_there: How many are there already.

        Raises:
            CheckpointError: it cannot hold a single one more.
        """
        size, free = self.checkpoint_bytes, _free_bytes(folder)
        if size > free:
            raise CheckpointError(
                f"a checkpoint takes about {_mib(size)}, the disk has {_mib(free)} left",
                where=str(folder),
                hint="make room, or choose another --run",
            )
        # While the last one is written, the one that it replaces is still there.
        to_come = max(1, self.num_kept + 1 - num_there)
        if size * to_come <= free:
            return None
        return (
            f"{folder}: {to_come} more checkpoints take about {_mib(size * to_come)}, "
            f"the disk has {_mib(free)} left; the run stops where it is full"
        )


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(there).free


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.1f} MiB"
