"""Lines for the user that only one of several ranks has, such as that a sample was skipped."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.distributed import Link
from finetune.redaction import redacted
from finetune.streams import unfailing
from finetune.terminal import console_for
from finetune.tracking.tracker import Tracker


class RankLines(Tracker):
    """Collects the lines of each rank; the first one gets those that it does not have itself.

    Most lines are the same on all ranks. In one process nothing is collected.

    Args:
        link: To the other ranks.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._new: list[str] = []
        """Lines of this rank since the last exchange."""
        self._of_first: set[str] = set()

    def message(self, text: str) -> None:
        """Keep a line for the next exchange."""
        if self._link.ranks.is_several:
            self._new.append(text)

    def exchange(self) -> list[str]:
        """Return, to the first rank, new lines that only others have; every rank must call it."""
        ranks = self._link.ranks
        if not ranks.is_several:
            return []
        own = bytearray(json.dumps(self._new).encode())
        self._new.clear()
        told = self._link.gathered([torch.frombuffer(own, dtype=torch.uint8)])
        if not ranks.is_first:
            return []
        first, *others = (json.loads(sent.numpy().tobytes()) for (sent,) in told)
        self._of_first.update(first)
        return [
            f"rank {rank}: {line}"
            for rank, lines in enumerate(others, start=1)
            for line in lines
            if line not in self._of_first
        ]

    @contextmanager
    def told_on_failure(self, *, quiet: bool) -> Iterator[None]:
        """Print what no exchange has handed on, if the block fails in a rank after the first."""
        ranks = self._link.ranks
        try:
            yield
        except BaseException:
            if not (quiet or ranks.is_first):
                console = console_for(unfailing(sys.stderr))
                for line in self._new:
                    console.tell(redacted(f"rank {ranks.rank}: {line}"))
            raise
