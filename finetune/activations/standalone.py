"""The activation cache around a hand-written loop, without a config."""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import extent_of, is_right_padded, mask_of
from finetune.activations.exact import check_rows
from finetune.activations.find.boundary import Boundary, Pace, probe
from finetune.activations.forward import CachedBoundary, CachedForward
from finetune.activations.key import facts_of, network_key
from finetune.activations.rank_agreement import Agreement
from finetune.activations.replay import Replay
from finetune.activations.split_cache import Runner, SplitCache, Statistics
from finetune.activations.verdicts import Verdicts
from finetune.data.batches import Batch, Extent
from finetune.errors import ModelError
from finetune.store.directory import key_of
from finetune.store.store import Store, StoreError

_TRIAL = 8
"""Upper bound on the samples of a trial batch."""
_FEWEST = 4
"""Fewest samples with which the frozen prefix can be found."""

_Mode = tuple[tuple[bool, ...], str]
"""`training` of all modules, and the precision: rows of one mode are not used in another."""


@contextmanager
def cached_prefix(
    model: nn.Module,
    store: str | Path | None = None,
    *,
    num_samples: int,
    data: str = "",
    memory_gb: float = 2.0,
    disk_gb: float = 20.0,
) -> "Iterator[CachedPrefix]":
    """Run the frozen prefix of `model` once per sample, in a loop of your own.

        with finetune.cached_prefix(model, num_samples=len(dataset)) as prefix:
            for indices, x, y in batches:
                loss = criterion(prefix(indices, x), y)

    Freeze before entering, and keep frozen batch norms and dropouts in evaluation mode, as
    `finetune.freeze` does. Outputs and gradients are bit-identical to those of a loop without it.
    What cannot be cached exactly runs every time, and `reasons` says why. Training mode,
    evaluation mode and each precision have their own rows. While open, `forward` of frozen modules
    is replaced.

    Args:
        model: The network. Its mask and modes are not changed.
        store: Folder that keeps rows for later runs; rows end with the block if left out.
        num_samples: Number of samples; `indices` are below it.
        data: Name and version of the data. Part of the key, so required with `store`.
        memory_gb: GiB that rows of all modes may take in memory: without `store`, or where its
            disk cannot be used.
        disk_gb: GiB that all stores in the folder may take.

    Raises:
        ModelError: `store` is given without `data`.
    """
    if store is not None and not data:
        raise ModelError("a store on disk needs data=: the name of the data and its version")
    disk_gb = disk_gb if store is not None else 0.0
    open_store = partial(Store.open, Path(store or "."), disk_gb=disk_gb, facts={"data": data})
    with closing(CachedPrefix(model, open_store, memory_gb, data, num_samples)) as prefix:
        yield prefix


class CachedPrefix:
    """Called in place of the model; made by `cached_prefix`."""

    def __init__(
        self,
        model: nn.Module,
        open_store: Callable[..., Store],
        memory_gb: float,
        data: str,
        num_samples: int,
    ) -> None:
        self.statistics = Statistics()
        """Counts of what was answered and recorded so far."""
        self.reasons: tuple[str, ...] = ()
        """Why frozen modules run nevertheless, one line each."""
        self._model, self._data, self._num_samples = model, data, num_samples
        self._open_store, self._memory_gb = open_store, memory_gb
        self._runner = Runner(model, model, nullcontext, self.statistics, self._note)
        self._opened: dict[_Mode, _ModeCache | None] = {}
        self._now: _ModeCache | None = None
        """What is installed now."""

    def __call__(self, indices: Tensor, *args: Tensor, **inputs: Tensor) -> Any:
        """Return the model's output for the inputs of the samples `indices`, `(B,)`.

        Raises:
            ModelError: an input is not a tensor with one row per index.
        """
        named = _by_name(self._model, args, inputs)
        for name, value in named.items():
            if not isinstance(value, Tensor) or len(value) != len(indices):
                raise ModelError(f"input {name!r} is no tensor of {len(indices)} samples")
        batch = Batch(named, None, indices.to(next(iter(named.values())).device))
        cache = self._cache_of_mode(batch)
        if cache is None:
            return self._model(**named)
        if (reason := cache.samples.reason_against(batch)) is not None:
            self._note(reason)
            return self._model(**named)
        cache.samples.batch = batch
        decided = cache.network.decided(batch, cache.samples)
        return cache.network.forward(decided, cache.samples)

    def close(self) -> None:
        """Restore the model's own `forward` methods, and close the stores."""
        self._install(None)
        for cache in self._opened.values():
            if cache is not None:
                cache.network.close()
        self._opened = {}

    def _cache_of_mode(self, batch: Batch) -> "_ModeCache | None":
        """Return the cache for the present mode of the network; None if nothing is cached in it."""
        # Read at every call: a loop may evaluate in between, or change the precision.
        training = tuple(module.training for module in self._model.modules())
        mode = (training, _precision(batch.indices.device))
        if mode not in self._opened:
            self._install(None)
            # No reason is noted: the next batch may be large enough.
            if len(batch) < _FEWEST:
                return None
            self._opened[mode] = self._open(batch)
        self._install(self._opened[mode])
        return self._now

    def _install(self, cache: "_ModeCache | None") -> None:
        """Install one cache, or none, in place of the present one."""
        if cache is self._now:
            return
        if self._now is not None:
            self._now.network.remove()
        if cache is not None:
            cache.network.install()
        self._now = cache

    def _open(self, batch: Batch) -> "_ModeCache | None":
        """Find the frozen prefix in the present mode, and open its store."""
        samples = _PresentBatch(self._num_samples, batch)
        boundary, pace = self._probed(batch, is_right_padded=samples.longest is not None)
        for reason in boundary.reasons:
            self._note(reason)
        if not boundary.stored:
            return None
        more = {"precision": _precision(batch.indices.device)}
        facts, network = facts_of(self._model, boundary, more), network_key(self._model, more)
        # No snapshot is taken here. The code and the modes of all modules are part of the key
        # instead.
        about = {
            "data": self._data,
            "batch_size": len(batch),
            "inputs": samples.kinds,
            "filled_up": samples.has_shorter,
            "network": network,
        }
        store = self._store(boundary, key_of(facts | about))
        if store is None:
            return None
        cache = SplitCache(
            samples=samples,
            store=store,
            verdicts=Verdicts(store.verdicts, network),
            replay=Replay(self._model, boundary),
            runner=self._runner,
            size=len(batch),
            in_order=False,
            prefix_seconds=pace.prefix,
        )
        with ExitStack() as undo:
            undo.callback(store.close)
            undo.callback(cache.replay.remove)
            cache.replay.install()
            # Only samples of the present batch can be recomputed: there is no data set to fetch
            # others from.
            written, here = store.written(), batch.indices.cpu()
            check_rows(cache, written[torch.isin(written, here)])
            # Installed by the next call, since the cache of another mode may be installed now.
            cache.replay.remove()
            undo.pop_all()
        cached = CachedBoundary(cache.replay, facts, {samples.name: cache})
        return _ModeCache(CachedForward(self._runner, [cached], Agreement()), samples, store)

    def _store(self, boundary: Boundary, key: str) -> Store | None:
        """Open the store of `key`, or note why it cannot be opened."""
        works = [cache for cache in self._opened.values() if cache is not None]
        left_gb = self._memory_gb - sum(work.store.memory_bytes for work in works) / (1 << 30)
        try:
            return self._open_store(key, boundary.specs, self._num_samples, memory_gb=left_gb)
        except StoreError as error:
            self._note(f"not stored: {error.in_one_line}")
            return None

    def _probed(self, batch: Batch, *, is_right_padded: bool) -> tuple[Boundary, Pace]:
        count = min(len(batch), _TRIAL)
        first = {name: values[:count] for name, values in batch.inputs.items()}
        # The same samples in reverse order, with one of them repeated in place of another.
        order = torch.arange(count).flip(0)
        order[1] = order[0]
        mixed = {name: values[order] for name, values in first.items()}
        pairs = [(row, place) for place, row in enumerate(order.tolist()) if place != 1]
        # Gradients are on, since they show what is frozen, also if the loop evaluates first.
        with torch.inference_mode(mode=False), torch.enable_grad():
            return probe(self._model, first, mixed, pairs, is_right_padded=is_right_padded)

    def _note(self, text: str) -> None:
        if text not in self.reasons:
            self.reasons = (*self.reasons, text)


class _PresentBatch:
    """The present batch, at first the first one, as a `Split`: it has no other samples."""

    def __init__(self, num_samples: int, batch: Batch) -> None:
        self.name = "samples"
        self.views: int | None = 1
        self.batch = batch
        self.kinds = _kinds_of(batch)
        mask = mask_of(batch.inputs)
        self.longest = mask.shape[1] if mask is not None and is_right_padded(mask) else None
        self.has_shorter = _has_shorter(batch)
        # Its rows are found by their numbers alone, so no digest is taken that padding may change.
        self.padded = frozenset[str]()
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def reason_against(self, batch: Batch) -> str | None:
        """Return why a batch of another kind than the first cannot be answered, or None."""
        mask = mask_of(batch.inputs)
        first = mask_of(self.batch.inputs)
        if mask is not None and first is not None and mask.shape[1] != first.shape[1]:
            width = first.shape[1]
            return f"only batches of {width} tokens, as the first had, are answered: pad all"
        if (kinds := _kinds_of(batch)) != self.kinds:
            return f"only inputs like the first, {self.kinds}, are answered, not {kinds}"
        if self.longest is not None and mask is not None and not is_right_padded(mask):
            return "only batches that are filled up behind the end, as the first, are answered"
        if _has_shorter(batch) != self.has_shorter:
            some = "some samples" if self.has_shorter else "no sample"
            return f"only batches with {some} filled up, as the first had, are answered"
        return None

    def extent(self, indices: Tensor) -> Extent | None:
        """Return the lengths of some samples of the present batch; None without a mask."""
        mask = mask_of(self.batch.inputs)
        return None if mask is None else extent_of(mask[self._places(indices)])

    def fetch(
        self,
        indices: Tensor | Sequence[int],
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return some samples of the present batch, without target; only `indices` is read.

        They stay padded as they are in it.
        """
        indices = torch.as_tensor(indices)
        places = self._places(indices)
        inputs = {name: values[places] for name, values in self.batch.inputs.items()}
        return Batch(inputs, None, indices)

    def _places(self, indices: Tensor) -> Tensor:
        places = {index: place for place, index in enumerate(self.batch.indices.tolist())}
        return torch.tensor([places[index] for index in indices.tolist()])


def _kinds_of(batch: Batch) -> dict[str, str]:
    """Return dtype and shape per sample of each input, by name."""
    return {
        name: f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape[1:])}"
        for name, values in batch.inputs.items()
    }


def _has_shorter(batch: Batch) -> bool:
    mask = mask_of(batch.inputs)
    return mask is not None and bool((mask == 0).any())


@dataclass(frozen=True, slots=True)
class _ModeCache:
    """The cache of one mode of the network."""

    network: CachedForward
    samples: _PresentBatch
    store: Store


def _by_name(
    model: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Tensor]
) -> dict[str, Any]:
    """Return the arguments of a call by name, including those of `**kwargs`."""
    signature = inspect.signature(model.forward)
    named = dict(signature.bind(*args, **inputs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _precision(device: torch.device) -> str:
    """Return the autocast dtype that is active now, or 'as given'."""
    is_on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if is_on else "as given"
