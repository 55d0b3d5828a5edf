"""Which of the processes of a run this is, and how errors name it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from finetune.errors import FinetuneError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torchrun tells a process which one it is."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of the processes of a run this is."""

    rank: int = 0
    """Its number over all machines, from 0."""
    world: int = 1
    """Number of processes of the run."""
    local_rank: int = 0
    """Its number on this machine, from 0; also the number of its GPU."""

    @classmethod
    def of_environment(cls) -> Self:
        """Return what torchrun says of this process; a process that it did not start is alone.

        Raises:
            FinetuneError: a variable of torchrun holds no number.
        """
        if not all(os.environ.get(name) for name in _NAMES):
            return cls()
        rank, world, local = (os.environ[name] for name in _NAMES[:3])
        try:
            return cls(int(rank), int(world), int(local))
        except ValueError as error:
            raise FinetuneError(
                f"RANK {rank!r}, WORLD_SIZE {world!r} and LOCAL_RANK {local!r} must be numbers",
                hint="torchrun sets them; without torchrun, unset them",
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and speaks to the user."""
        return self.rank == 0

    @property
    def is_several(self) -> bool:
        """Whether the run has other processes."""
        return self.world > 1


ALONE = Ranks()
"""The single process of a run."""


class RankFaultError(FinetuneError):
    """An error of a process that is not the first one: its text names the rank."""

    def __init__(self, rank: int, error: FinetuneError) -> None:
        super().__init__(error.message)
        self.exit_code = error.exit_code
        self._text = f"rank {rank}: {error}"

    def __str__(self) -> str:
        return self._text


@contextmanager
def rank_named() -> Iterator[None]:
    """Let errors of the block name the rank, in a process that is not the first one."""
    ranks = Ranks.of_environment()
    try:
        yield
    except FinetuneError as error:
        if ranks.is_first:
            raise
        raise RankFaultError(ranks.rank, error) from error
    except Exception as error:
        if not ranks.is_first:
            # A bug: its traceback ends with this line.
            error.add_note(f"rank {ranks.rank}")
        raise
