"""Worker processes that make batches, by torch's `DataLoader`.

They are forked: a new process would import torch once more, which takes seconds and some 200 MiB.
A forked one shares the memory. Batches depend on seed, epoch and row alone, so the number of
processes changes no bit.
"""

import atexit
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.process import begin_worker, signals_held
from finetune.watchdog import Watchdog

Fetch = Callable[..., Batch]
"""`fetch(rows, epoch=...)` of a split."""


class _Wanted(NamedTuple):
    """A batch to make."""

    rows: Tensor
    epoch: int


class Workers:
    """The worker processes of one split, started at its first fetch.

    Args:
        count: Number of processes.
        hang_timeout_s: Seconds for a batch, after which a process prints its stacks and ends; None
            for no limit.
        stays: Whether they stay between two calls of `fetches`. For a split that is read rarely
            they end after each, and take no memory meanwhile.
    """

    def __init__(self, count: int, hang_timeout_s: float | None, *, stays: bool) -> None:
        self._count = count
        self._watchdog = Watchdog(hang_timeout_s)
        self._stays = stays
        self._order = _Order()
        self._loader: DataLoader[Batch | FinetuneError] | None = None

    def fetches(
        self, fetch: Fetch, batches: Sequence[Tensor], epoch: int
    ) -> Generator[Batch, None, None]:
        """Yield the batches in order.

        Raises:
            FinetuneError: `fetch` raised it in a process.
        """
        self._order.wanted = [_Wanted(rows, epoch) for rows in batches]
        with signals_held(), warnings.catch_warnings():
            # torch warns of more processes than cores; `plan` and `train` have a line for that.
            warnings.simplefilter("ignore")
            if self._loader is None:
                self._loader = self._loader_of(fetch)
                # Before Python's own end of processes, which was registered earlier: that would
                # meet them half way, and torch prints a traceback of a process that has ended.
                atexit.register(_close, weakref.ref(self))
            outcomes = iter(self._loader)
        try:
            for outcome in outcomes:
                if isinstance(outcome, FinetuneError):
                    raise outcome
                yield outcome
        finally:
            if not self._stays:
                # also where the pass is broken off: a traceback may keep this frame for long
                _end(outcomes)
                self._loader = None

    def close(self) -> None:
        """End the processes; the next fetch starts them again."""
        loader, self._loader = self._loader, None
        if loader is not None and loader._iterator is not None:
            _end(loader._iterator)

    def _loader_of(self, fetch: Fetch) -> "DataLoader[Batch | FinetuneError]":
        return DataLoader(
            _Fetches(fetch, self._watchdog),
            batch_size=None,
            sampler=self._order,
            num_workers=self._count,
            persistent_workers=self._stays,
            multiprocessing_context="fork",
            collate_fn=_as_it_is,
            worker_init_fn=begin_worker,
            # Without one of its own, the loader would draw from the global generator.
            generator=torch.Generator(),
        )


class _Order(Sampler[_Wanted]):
    """The batches of the next pass, in order. The loader asks for them anew at every pass."""

    def __init__(self) -> None:
        self.wanted: Sequence[_Wanted] = ()

    def __iter__(self) -> Iterator[_Wanted]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


class _Fetches(Dataset[Batch | FinetuneError]):
    """Dataset whose items are batches, made in a worker process."""

    def __init__(self, fetch: Fetch, watchdog: Watchdog) -> None:
        self._fetch, self._watchdog = fetch, watchdog

    def __getitem__(self, wanted: _Wanted) -> Batch | FinetuneError:
        try:
            with self._watchdog.watching():
                return self._fetch(wanted.rows, epoch=wanted.epoch)
        except FinetuneError as error:
            return error  # Raised in the process, it would lose its hint and gain a traceback.


def _close(workers: "weakref.ref[Workers]") -> None:
    """End processes that are still there as Python ends."""
    if (found := workers()) is not None:
        found.close()


def _end(outcomes: Any) -> None:
    """End the processes behind an iterator of a loader.

    The loader has no public way: it ends them when garbage is collected, and whoever still holds
    one of its batches would keep them.
    """
    outcomes._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    """Return a batch as it is: `fetch` has collated it."""
    return batch
