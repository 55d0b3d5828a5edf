"""The prefix at work in a run: rows recorded on first visit, answered from the store afterwards."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch, Samples
from finetune.prefix.probe import Border
from finetune.prefix.replay import Replay
from finetune.prefix.store import Store, StoreError
from finetune.prefix.trace import same_bits, undisturbed


class Prefix(Protocol):
    """Fetches batches and runs the network on them; what is frozen may come from a store."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches at the indices of each cut."""

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on a batch of `samples`."""

    def close(self) -> None:
        """Let go of stores, and leave the network as it was."""


@dataclass(frozen=True, slots=True)
class NoPrefix:
    """Everything runs, every time."""

    model: nn.Module

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches as `samples` gives them."""
        return samples.fetches(cuts, epoch=epoch)

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network on the whole batch."""
        return self.model(**batch.inputs)

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Statistics:
    """What the store has done so far."""

    answered: int = 0
    """Samples whose prefix did not run."""
    recorded: int = 0
    """Samples whose prefix ran and was written down."""
    seconds_reading: float = 0.0
    seconds_writing: float = 0.0


class StoredPrefix:
    """Answers frozen calls from a store, one for each split, and fills it as samples are met.

    Args:
        model: The network, its mask and modes set.
        border: Where its prefix ends.
        stores: A store for each split, by the identity of its samples.
        train: The samples that come in another order in every epoch.
        batch_size: Samples of a full batch of `train`. Kernels may round differently for another
            number; whether they do is tried once for each, and if so such batches run whole.
        statistics: Counted up.
    """

    def __init__(
        self,
        model: nn.Module,
        border: Border,
        stores: Mapping[int, Store],
        *,
        train: Samples,
        batch_size: int,
        statistics: Statistics,
    ) -> None:
        self.model = model
        self._train = train
        self._exact_sizes = {batch_size: True}
        self._border = border
        self._stores = dict(stores)
        self._statistics = statistics
        self._replay = Replay(model, border)
        self._is_ragged = any(leaf.ragged for leaf in self._replay.needed.values())
        self._replay.install()

    def fetches(self, samples: Samples, cuts: Sequence[Tensor], *, epoch: int) -> Iterator[Batch]:
        """Yield the batches, without the columns that nobody reads where all rows are stored."""
        store = self._stores.get(id(samples))
        for cut in cuts:
            is_stored = store is not None and self._is_answered(store, cut, samples)
            yield samples.fetch(cut, epoch=epoch, blank=self._border.unread if is_stored else ())

    def forward(self, batch: Batch, samples: Samples) -> Any:
        """Run the network, its frozen calls answered if all rows are stored, else recorded."""
        store = self._stores.get(id(samples))
        if store is None:
            return self.model(**batch.inputs)
        indices = batch.indices.cpu()
        if self._is_answered(store, indices, samples):
            return self._answered(batch, store, indices)
        if not self._is_exact(samples, len(indices), store):
            return self.model(**batch.inputs)
        return self._recorded(batch, store, indices, samples)

    def close(self) -> None:
        """Close the stores, and give every module its own `forward` back."""
        self._replay.remove()
        for store in self._stores.values():
            store.close()

    def _is_answered(self, store: Store, indices: Tensor, samples: Samples) -> bool:
        return bool(store.has(indices).all()) and self._is_exact(samples, len(indices), store)

    def _is_exact(self, samples: Samples, size: int, store: Store) -> bool:
        """Tell whether a batch of `size` samples gives each the bits that a full batch gives it.

        Splits other than the training samples are always cut in one and the same way.
        """
        if samples is not self._train:
            return True
        if size not in self._exact_sizes:
            stored = store.sealed()[:size]
            if len(stored) < size or not bool(store.has(stored).all()):
                return False
            self._exact_sizes[size] = self._gives_stored_bits(samples, stored, store)
        return self._exact_sizes[size]

    def _gives_stored_bits(self, samples: Samples, indices: Tensor, store: Store) -> bool:
        """Run stored samples in a batch of their own, and compare with what is stored."""
        device = next(self.model.parameters()).device
        batch = samples.fetch(indices).to(device)
        recording = self._replay.recording(len(indices), _length(batch))
        with torch.no_grad(), undisturbed(self.model, seed=0), recording as rows:
            self.model(**batch.inputs)
        stored = store.read(indices, _length(batch) if self._is_ragged else None)
        return all(same_bits(row.cpu(), stored[name]) for name, row in rows.items())

    def _answered(self, batch: Batch, store: Store, indices: Tensor) -> Any:
        began = time.perf_counter()
        stored = store.read(indices, _length(batch) if self._is_ragged else None)
        rows = {name: row.to(batch.indices.device) for name, row in stored.items()}
        self._statistics.seconds_reading += time.perf_counter() - began
        self._statistics.answered += len(indices)
        with self._replay.answering(rows, len(indices), _length(batch)):
            return self.model(**batch.inputs)

    def _recorded(self, batch: Batch, store: Store, indices: Tensor, samples: Samples) -> Any:
        with self._replay.recording(len(indices), _length(batch)) as rows:
            outputs = self.model(**batch.inputs)
        began = time.perf_counter()
        try:
            kept = {name: row.cpu() for name, row in rows.items()}
            store.write(indices, kept, _lengths(batch) if self._is_ragged else None)
        except StoreError:
            # Nothing is lost but speed: what is stored still counts, the rest runs.
            self._stores.pop(id(samples))
        self._statistics.seconds_writing += time.perf_counter() - began
        self._statistics.recorded += len(indices)
        return outputs


def _lengths(batch: Batch) -> Tensor:
    """Return how many tokens each sample has."""
    return batch.inputs["attention_mask"].sum(1).cpu()


def _length(batch: Batch) -> int | None:
    mask = batch.inputs.get("attention_mask")
    return None if mask is None else int(mask.shape[1])
