"""Batches: the order of samples depends only on seed and epoch; columns are gathered by index.

Letters: N samples of a split, B samples of a batch, C classes, L tokens of the longest sample.
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
"""Name of the column that is 1 for tokens and 0 for padding, as in `transformers`."""


class Extent(NamedTuple):
    """How many tokens the samples of a batch have."""

    width: int
    """Number of tokens that all of them are padded to."""
    shortest: int
    """Number of tokens of the shortest one."""
    longest: int
    """Number of tokens of the longest one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples of a split, as tensors.

    Args:
        inputs: The network's input columns by name, each `(B, ...)`.
        target: Class numbers `(B,)` int64, label sets `(B, C)` float32, or numbers `(B, ...)`
            float32, depending on the task; None for prediction.
        indices: Positions of the samples in the split, `(B,)`.
        view: Number of the draw of the random transforms, if their number is limited.
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
    """Return a seed of 63 bits that depends on all of `parts` and nothing else."""
    # Not `hash`, which differs from process to process.
    text = "\0".join(str(part) for part in parts)
    # 63 bits, so that the number is positive where seeds are signed.
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of samples in an epoch, a permutation `(N,)`.

    It depends only on the arguments; the global random state is neither used nor changed.
    """
    draw = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    return torch.randperm(num_samples, generator=draw)


def windows(order: Tensor, size: int, *, drop_last: bool) -> list[Tensor]:
    """Return `order` in windows of `size` samples; a shorter last one is dropped if asked."""
    cut = list(order.split(size))
    return cut[:-1] if drop_last and cut and len(cut[-1]) < size else cut


class Samples:
    """One split of which batches can be fetched; deterministic steps are done already.

    Args:
        columns: The columns; final ones if no step is left.
        target: Targets `(N, ...)`, or None.
        later: Steps done at each fetch; at least one of them is random.
        identity: Text on what the steps are, for the fingerprint.
        seed: Seed of the random steps in `later`.
        views: Number of draws of `later` per sample, which epochs take in turn; None draws a new
            one in every epoch.
        workers: Number of processes that run `later`; 0 runs it in this process.
        hang_timeout_s: Seconds after which such a process prints its stack and ends, if it has not
            finished a batch.
        place: Returns row and file of a sample, for messages.
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
        """Name of the split of a run; empty for other samples."""
        self.place = place
        """Returns the place of a sample for messages; None if it is not known."""
        # Without a random step all epochs see the same sample, so one view is all there is.
        self.views = views if later else 1
        """Number of views per sample; None if every epoch has a new one."""
        self._columns = dict(columns)
        self._target = target
        self._later = tuple(later)
        self._identity = identity
        self._seed = seed
        self._workers = workers
        self._hang_timeout_s = hang_timeout_s
        # Random steps decide shapes and types: only a sample that went through them tells.
        first = self._transformed(torch.tensor([0]), 0) if later else []
        self.specs: dict[str, TensorSpec] = self._find_specs(first)
        ragged = self._ragged()
        self.longest = max((column.longest for column in ragged), default=None)
        """Number of tokens of the longest sample; None if no column is padded."""
        self.is_even = self._find_evenness(ragged, first)
        """Whether the number of tokens of each sample is known beforehand, from one column."""
        self._widths, self._lengths = self._find_widths(ragged), self._find_lengths(ragged)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's input columns, in order."""
        return tuple(self.specs)

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of each batch is ones up to the end of a sample and then zeros."""
        mask = self._columns.get(MASK)
        return not self._later and isinstance(mask, Ragged) and mask.is_mask

    @property
    def has_shorter(self) -> bool:
        """Whether some samples are shorter than a batch that is padded to the longest of all."""
        if self._widths is None or self._lengths is None:
            return False
        return bool(self._lengths.min() < self._widths.max())

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how many tokens a batch of the samples at `indices` has.

        None if there are no tokens, or if steps still to come may change their number.
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
        """Return the batch of the samples at `indices`, `(B,)`.

        Random transforms are seeded by run, view and sample only: neither the rest of the batch nor
        the number of workers matters, and the global random state is unchanged.

        Args:
            indices: Positions in the split.
            epoch: Selects the draw of the random transforms.
            blank: Columns whose values are not needed: they are zeros of the usual shape.
            length: Number of tokens to pad to, instead of the longest sample's.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        view = epoch % self.views if self.views else epoch
        if not self._later:
            inputs = {
                name: self._gathered(name, column, rows, length, is_blank=name in blank)
                for name, column in self._finished()
            }
        # Every column is blank: the batch comes from the activation cache, and no image need be
        # decoded.
        elif set(blank) >= set(self.specs):
            inputs = {name: self._blank(name, len(rows)) for name in self.specs}
        else:
            inputs = collate(self._transformed(rows, view))
        target = None if self._target is None else self._target[rows]
        return Batch(inputs, target, rows, view if self.views else 0)

    def fetches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Yield one batch after another; worker processes prepare them if transforms are random."""
        if not self._later or self._workers == 0:
            yield from (self.fetch(rows, epoch=epoch) for rows in batches)
            return
        # `batch_size=None`: batches are chosen here, and the loader only carries out their numbers.
        loader = DataLoader(
            _Fetches(self, batches, epoch, Watchdog(self._hang_timeout_s)),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            # Without a generator of its own, the loader would draw from the global one.
            generator=torch.Generator(),
        )
        with _signals_held():
            outcomes = iter(loader)
        for outcome in outcomes:
            if isinstance(outcome, FinetuneError):
                raise outcome
            yield outcome

    def fingerprint(self) -> str:
        """Return a hash of all columns, the targets, and the steps done at each fetch.

        Images count by the hashes of their files, not by their decoded pixels.
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
        """Return the rows of a column, or zeros of the same shape if its values are not needed."""
        if isinstance(column, Numbers):
            return self._blank(name, len(rows)) if is_blank else column.gather(rows)
        if is_blank:
            return torch.zeros(len(rows), length or column.width(rows), dtype=torch.int64)
        return column.gather(rows, length)

    def _blank(self, name: str, size: int) -> Tensor:
        """Return zeros in the shape of a column's batch."""
        spec = self.specs[name]
        return torch.zeros(size, *spec.shape, dtype=getattr(torch, spec.dtype))

    def _find_evenness(self, ragged: Sequence[Ragged], first: Sequence[Sample]) -> bool:
        """Return `is_even`, by the columns, or by the first sample if steps are left."""
        if first:
            return MASK not in first[0] and not any(
                isinstance(value, Tokens) for value in first[0].values()
            )
        return len(ragged) + (self._plain_mask() is not None) <= 1

    def _find_widths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return the padded length of each sample alone, `(N,)`; None without tokens."""
        if (mask := self._plain_mask()) is not None:
            return torch.full((len(self),), mask.shape[1])
        widths = [column.widths for column in ragged]
        return torch.stack(widths).amax(0) if widths else None

    def _find_lengths(self, ragged: Sequence[Ragged]) -> Tensor | None:
        """Return the number of tokens of each sample, `(N,)`; None without tokens."""
        if (mask := self._plain_mask()) is not None:
            return mask.ne(0).sum(1)
        lengths = [column.lengths for column in ragged]
        return torch.stack(lengths).amin(0) if lengths else None

    def _ragged(self) -> list[Ragged]:
        """Return the columns of tokens; of several with the same lengths only one."""
        columns = () if self._later else self._columns.values()
        ragged = [column for column in columns if isinstance(column, Ragged)]
        return [
            column
            for number, column in enumerate(ragged)
            if not any(torch.equal(column.offsets, other.offsets) for other in ragged[:number])
        ]

    def _plain_mask(self) -> Tensor | None:
        """Return a mask that is a plain column of numbers `(N, L)`, or None."""
        mask = self._columns.get(MASK)
        if self._later or not isinstance(mask, Numbers) or mask.values.ndim != 2:
            return None
        return mask.values

    def _finished(self) -> Iterator[tuple[str, Numbers | Ragged]]:
        """Yield the columns by name; only valid if no step is left."""
        for name, column in self._columns.items():
            assert isinstance(column, Numbers | Ragged)
            yield name, column

    def _transformed(self, rows: Tensor, view: int) -> list[Sample]:
        """Return samples after all remaining steps, each with random numbers of its own seed."""
        samples = []
        # The user's own transform may use any of the global generators; all are seeded, and
        # restored.
        with random_state_kept():
            for row in rows.tolist():
                seed_all(seed_for("sample", self._seed, view, row))
                sample: dict[str, Any] = {name: c[row] for name, c in self._columns.items()}
                for step in self._later:
                    sample = step(sample)
                samples.append(sample)
        return samples

    def _find_specs(self, first: Sequence[Sample]) -> dict[str, TensorSpec]:
        """Return shape and type of each column of a batch, without the batch axis."""
        if first:
            return {name: _spec(values[0]) for name, values in collate(first).items()}
        return {
            name: TensorSpec((column.longest,), "int64")
            if isinstance(column, Ragged)
            else _spec(column.values[0])
            for name, column in self._finished()
        }


class _Fetches(Dataset[Batch | FinetuneError]):
    """Batches as a torch `Dataset`, for the worker processes of a `DataLoader`."""

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
            return error  # Raised in a worker, it would lose its hint and gain a traceback.


def _as_it_is(batch: Any) -> Any:
    """Return the batch: it is complete, and the loader must not collate it again."""
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals while worker processes start; they start with the signals blocked too."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # A signal that reaches a worker before `_begin_worker` is done would end it with a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(number: int) -> None:
    """Make a worker process ignore signals that are sent to the whole group of processes.

    The run itself answers them: it finishes the present step, for which it needs its workers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    # Ctrl-C is sent to a terminal's whole group of processes: in a group of its own a worker gets
    # none.
    os.setpgid(0, 0)
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # also drops one that came while it was blocked
        signal.signal(one, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _spec(sample: Tensor) -> TensorSpec:
    """Return shape and type of one sample's tensor."""
    return TensorSpec(tuple(sample.shape), str(sample.dtype).removeprefix("torch."))
