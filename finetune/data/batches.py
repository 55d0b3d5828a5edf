"""Batches: sample order as a pure function of seed and epoch, columns gathered by index.

Letters: N samples of the split, B samples of a batch, C classes.
"""

import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.pipeline import collate
from finetune.data.samples import Sample
from finetune.data.table import Numbers, Prepared, Ragged, Tokens
from finetune.data.transforms import Step
from finetune.errors import FinetuneError
from finetune.models.declared import TensorSpec
from finetune.process import STOP_SIGNALS
from finetune.randomness import random_state_kept, seed_all
from finetune.watchdog import Watchdog

MASK = "attention_mask"
"""The column that tells tokens from padding, as `transformers` calls it."""


class Extent(NamedTuple):
    """How long the samples of a batch are, in tokens."""

    width: int
    """What all of them are filled up to."""
    shortest: int
    """What the shortest of them has."""
    longest: int
    """What the longest of them has."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, as tensors.

    Args:
        inputs: The network's input columns by name, each `(B, ...)`.
        target: Class numbers `(B,)` int64, label sets `(B, C)` float32, or numbers `(B, ...)`
            float32, as the task has it; None for prediction.
        indices: Positions of the samples in their split `(B,)`.
        view: Which draw of the random transforms this is, where their number is limited.
        rows: Numbers of its rows in the activation cache, if its frozen calls will be answered with
            them; None if the network runs.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    indices: Tensor
    view: int = 0
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`."""
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        target = None if self.target is None else self.target.to(device)
        return Batch(inputs, target, self.indices.to(device), self.view, self.rows)


def seed_for(*parts: str | int) -> int:
    """Return a seed of 63 bits that depends on every one of `parts`, and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of samples in an epoch, a permutation `(N,)`.

    A pure function of its arguments: the global random state is neither read nor moved.
    """
    draw = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    return torch.randperm(num_samples, generator=draw)


def windows(order: Tensor, size: int, *, drop_last: bool) -> list[Tensor]:
    """Cut `order` into windows of `size` samples; leave out a shorter last one if asked to."""
    cut = list(order.split(size))
    return cut[:-1] if drop_last and cut and len(cut[-1]) < size else cut


class Samples:
    """One split, ready to be fetched: everything deterministic has been done.

    Args:
        columns: The columns, finished where no step is left.
        target: Targets `(N, ...)`, or None.
        later: Steps done at every fetch, at least one of them random.
        identity: What the steps are, for the fingerprint.
        seed: Where the randomness of `later` begins.
        views: How many draws of `later` a sample has: epochs take turns. None for a new one in
            every epoch.
        workers: Processes that do `later`; 0 does it in this one.
        hang_timeout_s: Seconds after which one of these processes prints its stack and ends, if
            it has not finished a batch.
        place: Names a sample for a message: its row and file.
        name: `train`, `validation` or `test`; empty for samples that are no split of a run.
    """

    def __init__(
        self,
        columns: Mapping[str, Prepared],
        target: Tensor | None,
        *,
        later: Sequence[Step] = (),
        identity: str = "",
        seed: int = 0,
        views: int | None = None,
        workers: int = 0,
        hang_timeout_s: float | None = None,
        place: Callable[[int], str] | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        """Which split of the run it is; empty for other samples."""
        self.place = place
        """Names a sample for a message; None where nobody knows where it stands."""
        self.views = views if later else 1
        """How many views of a sample there are; None where every epoch has a new one."""
        self._columns = dict(columns)
        self._target = target
        self._later = tuple(later)
        self._identity = identity
        self._seed = seed
        self._workers = workers
        self._hang_timeout_s = hang_timeout_s
        first = self._transformed(torch.tensor([0]), 0) if later else []
        self.specs: dict[str, TensorSpec] = self._find_specs(first)
        ragged = self._ragged()
        self.longest = max((column.longest for column in ragged), default=None)
        """Tokens of the longest sample; None where no column is filled up."""
        self.is_even = self._find_evenness(ragged, first)
        """Whether it is known beforehand, and from one column, how many tokens a sample has."""
        self._widths, self._lengths = self._find_widths(ragged), self._find_lengths(ragged)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        return tuple(self.specs)

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        mask = self._columns.get(MASK)
        return not self._later and isinstance(mask, Ragged) and mask.is_mask

    @property
    def has_shorter(self) -> bool:
        """Whether some samples end before the end of a batch that is as long as they get."""
        if self._widths is None or self._lengths is None:
            return False
        return bool(self._lengths.min() < self._widths.max())

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how long a batch of the samples at `indices` is.

        None where there are no tokens, or where a transform that is still to come may change it.
        """
        if self._widths is None or self._lengths is None:
            return None
        shortest, longest = self._lengths[indices].aminmax()
        return Extent(int(self._widths[indices].max()), int(shortest), int(longest))

    def fetch(
        self,
        indices: Tensor | Sequence[int],
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Gather the samples at `indices` `(B,)`.

        Random transforms are seeded by run, epoch and sample alone: neither the rest of the batch
        nor the number of workers has a say, and the global random state is left as it was.

        Args:
            indices: Positions in the split.
            epoch: Which draw of the random transforms.
            blank: Columns whose values nobody will read: zeros of the usual shape are given.
            length: Tokens to fill ragged columns up to, in place of the longest sample's.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        view = epoch % self.views if self.views else epoch
        if not self._later:
            inputs = {
                name: self._gathered(name, column, rows, length, is_blank=name in blank)
                for name, column in self._finished()
            }
        elif set(blank) >= set(self.specs):
            inputs = {name: self._blank(name, len(rows)) for name in self.specs}
        else:
            inputs = collate(self._transformed(rows, view))
        target = None if self._target is None else self._target[rows]
        return Batch(inputs, target, rows, view if self.views else 0)

    def fetches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Fetch one batch after another, prepared by processes where transforms are random."""
        if not self._later or self._workers == 0:
            yield from (self.fetch(rows, epoch=epoch) for rows in batches)
            return
        loader = DataLoader(
            _Fetches(self, batches, epoch, Watchdog(self._hang_timeout_s)),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            # Without one of its own, the loader would draw from the global generator.
            generator=torch.Generator(),
        )
        with _signals_held():
            outcomes = iter(loader)
        for outcome in outcomes:
            if isinstance(outcome, FinetuneError):
                raise outcome
            yield outcome

    def fingerprint(self) -> str:
        """Hash the contents of all columns, targets too, and the steps done at every fetch.

        Image files that are decoded at every fetch count by name, size and time of change.
        """
        digest = blake2b(self._identity.encode(), digest_size=16)
        for name, column in self._columns.items():
            digest.update(name.encode() + b"\0" + column.fingerprint())
        if self._target is not None:
            digest.update(Numbers(self._target).fingerprint())
        return digest.hexdigest()

    def _gathered(
        self,
        name: str,
        column: Numbers | Ragged,
        rows: Tensor,
        length: int | None,
        *,
        is_blank: bool,
    ) -> Tensor:
        """Return the rows of a column, or zeros of the same shape where nobody reads the values."""
        if isinstance(column, Numbers):
            return self._blank(name, len(rows)) if is_blank else column.gather(rows)
        if is_blank:
            return torch.zeros(len(rows), length or column.width(rows), dtype=torch.int64)
        return column.gather(rows, length)

    def _blank(self, name: str, size: int) -> Tensor:
        spec = self.specs[name]
        return torch.zeros(size, *spec.shape, dtype=getattr(torch, spec.dtype))

    def _find_evenness(self, ragged: Sequence[Ragged], first: Sequence[Sample]) -> bool:
        """Judge by the columns, or by the first sample where steps are left to do."""
        if first:
            return MASK not in first[0] and not any(
                isinstance(value, Tokens) for value in first[0].values()
            )
        return len(ragged) + (self._plain_mask() is not None) <= 1

    def _find_widths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return what each sample alone is filled up to `(N,)`; None where there are no tokens."""
        if (mask := self._plain_mask()) is not None:
            return torch.full((len(self),), mask.shape[1])
        widths = [column.widths for column in ragged]
        return torch.stack(widths).amax(0) if widths else None

    def _find_lengths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return how many tokens each sample has `(N,)`; None where there are none."""
        if (mask := self._plain_mask()) is not None:
            return mask.ne(0).sum(1)
        lengths = [column.lengths for column in ragged]
        return torch.stack(lengths).amin(0) if lengths else None

    def _ragged(self) -> list[Ragged]:
        """Return the columns that batches fill up, one of all those of the same lengths."""
        columns = () if self._later else self._columns.values()
        ragged = [column for column in columns if isinstance(column, Ragged)]
        return [
            column
            for number, column in enumerate(ragged)
            if not any(torch.equal(column.offsets, other.offsets) for other in ragged[:number])
        ]

    def _plain_mask(self) -> Tensor | None:
        """Return a mask that came as numbers, all samples of one width, `(N, L)`."""
        mask = self._columns.get(MASK)
        if self._later or not isinstance(mask, Numbers) or mask.values.ndim != 2:
            return None
        return mask.values

    def _finished(self) -> Iterator[tuple[str, Numbers | Ragged]]:
        for name, column in self._columns.items():
            assert isinstance(column, Numbers | Ragged)
            yield name, column

    def _transformed(self, rows: Tensor, view: int) -> list[Sample]:
        samples = []
        with random_state_kept():
            for row in rows.tolist():
                seed_all(seed_for("sample", self._seed, view, row))
                sample: dict[str, Any] = {name: c[row] for name, c in self._columns.items()}
                for step in self._later:
                    sample = step(sample)
                samples.append(sample)
        return samples

    def _find_specs(self, first: Sequence[Sample]) -> dict[str, TensorSpec]:
        if first:
            return {name: _spec(values[0]) for name, values in collate(first).items()}
        return {
            name: TensorSpec((column.longest,), "int64")
            if isinstance(column, Ragged)
            else _spec(column.values[0])
            for name, column in self._finished()
        }


class _Fetches(Dataset[Batch | FinetuneError]):
    """Batches as a torch `Dataset`, for the processes of a `DataLoader`."""

    def __init__(
        self, samples: Samples, batches: Sequence[Tensor], epoch: int, watchdog: Watchdog
    ) -> None:
        self._samples = samples
        self._batches = batches
        self._epoch = epoch
        self._watchdog = watchdog

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | FinetuneError:
        try:
            with self._watchdog.watching():
                return self._samples.fetch(self._batches[index], epoch=self._epoch)
        except FinetuneError as error:
            return error  # Raised in the worker, it would lose its hint and gain a traceback.


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back signals while processes start, which begin with them held back as well."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(number: int) -> None:
    """Let signals to the whole group of processes pass by: the run itself answers them.

    It ends the step that is under way, for which it still needs its workers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    os.setpgid(0, 0)
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # also drops one that came in the meantime
        signal.signal(one, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _spec(sample: Tensor) -> TensorSpec:
    return TensorSpec(tuple(sample.shape), str(sample.dtype).removeprefix("torch."))
