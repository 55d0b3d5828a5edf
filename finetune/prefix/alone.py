"""The stored prefix around a loop of one's own, without a config."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch
from finetune.errors import ModelError
from finetune.prefix.exact import Trials, length_of
from finetune.prefix.key import facts_of, network_key
from finetune.prefix.probe import Border, Pace, probe
from finetune.prefix.replay import Replay
from finetune.prefix.serving import StoredPrefix
from finetune.prefix.statistics import Statistics
from finetune.store.shelf import key_of
from finetune.store.store import Store, StoreError

_TRIAL = 8
"""Most samples of a trial batch."""
_FEWEST = 4
"""With fewer samples nothing can be tried."""


@contextmanager
def frozen_prefix(
    model: nn.Module,
    store: str | Path | None = None,
    *,
    num_samples: int,
    data: str = "",
    memory_gb: float = 2.0,
    disk_gb: float = 20.0,
) -> "Iterator[FrozenPrefix]":
    """Run the frozen beginning of `model` once per sample, in a loop of your own.

        with finetune.frozen_prefix(model, num_samples=len(dataset)) as prefix:
            for indices, x, y in batches:
                loss = criterion(prefix(indices, x), y)

    Freeze before you enter, and hold frozen batch norms and dropouts in evaluation mode, as
    `finetune.freeze` does. Outputs and gradients have the bits of a loop without it; what cannot
    be stored exactly runs every time, and `reasons` says why. While open, the `forward` of frozen
    modules is ours.

    Args:
        model: Its mask and its modes stay as they are.
        store: A folder that keeps rows for later runs; in memory alone if left out.
        num_samples: How many samples there are: `indices` are below it.
        data: Name of the data and its version. Part of the store's key, so needed with `store`.
        memory_gb: Rows up to this size, in GiB, are kept in memory.
        disk_gb: GiB that all stores in the folder may take.

    Raises:
        ModelError: `store` is given without `data`.
    """
    if store is not None and not data:
        raise ModelError("a store on disk needs data=: the name of the data and its version")
    options = StoreOptions(
        Path(store or "."), data, memory_gb, disk_gb if store is not None else 0.0
    )
    prefix = FrozenPrefix(model, options, num_samples)
    try:
        yield prefix
    finally:
        prefix.close()


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where rows are kept, and how many."""

    folder: Path
    data: str
    """Name of the data and its version."""
    memory_gb: float
    disk_gb: float


class FrozenPrefix:
    """Stands in the place of the model; made by `frozen_prefix`."""

    def __init__(self, model: nn.Module, options: StoreOptions, num_samples: int) -> None:
        self.statistics = Statistics()
        """What the store has done so far."""
        self.reasons: tuple[str, ...] = ()
        """Why frozen modules run all the same, a line each."""
        self._model, self._options = model, options
        self._samples = _AtHand(num_samples)
        self._stored: StoredPrefix | None = None
        self._is_tried = False

    def __call__(self, indices: Tensor, *args: Tensor, **inputs: Tensor) -> Any:
        """Return what the model returns for the inputs of the samples `indices`, `(B,)`.

        Raises:
            ModelError: an input is no tensor of as many samples.
        """
        named = _by_name(self._model, args, inputs)
        for name, value in named.items():
            if not isinstance(value, Tensor) or len(value) != len(indices):
                raise ModelError(f"input {name!r} is no tensor of {len(indices)} samples")
        batch = Batch(named, None, indices.to(next(iter(named.values())).device))
        if not self._is_tried and len(batch) >= _FEWEST:
            self._open(batch)
        self._samples.batch = batch
        if self._stored is None:
            return self._model(**named)
        if length_of(named) != (length := self._samples.longest):
            self._note(f"only batches of {length} tokens, as the first had, are answered: pad all")
            return self._model(**named)
        return self._stored.forward(batch, self._samples)

    def close(self) -> None:
        """Give the model its own `forward` back, and close the store."""
        if self._stored is not None:
            self._stored.close()
        self._stored = None

    def _open(self, batch: Batch) -> None:
        self._is_tried = True
        self._samples.batch, self._samples.longest = batch, length_of(batch.inputs)
        border, pace = self._probed(batch)
        self.reasons = border.reasons
        if not border.stored:
            return
        more = {"precision": _precision(batch.indices.device)}
        facts = facts_of(self._model, border, more)
        key = key_of(facts | {"data": self._options.data, "batch_size": len(batch)})
        store = self._opened(border, key)
        if store is None:
            return
        self._stored = StoredPrefix(
            self._model,
            Replay(self._model, border),
            facts,
            statistics=self.statistics,
            seconds=pace.prefix,
            tell=self._note,
            run=self._model,
        )
        trials = Trials(
            self._model,
            self._stored.replay,
            self._samples,
            size=len(batch),
            in_order=False,
            autocast=nullcontext,
            verdicts=store.verdicts(network_key(self._model, more)),
            run=self._model,
            tell=self._note,
        )
        sealed, here = store.sealed(), batch.indices.cpu()
        self._stored.add(self._samples, store, trials, sealed[torch.isin(sealed, here)])

    def _opened(self, border: Border, key: str) -> Store | None:
        """Open the store of `key`, or say why there is none."""
        try:
            return Store.open(
                self._options.folder,
                key,
                border.specs,
                len(self._samples),
                memory_gb=self._options.memory_gb,
                disk_gb=self._options.disk_gb,
                facts={"data": self._options.data},
            )
        except StoreError as error:
            self._note(f"not stored: {error.message}")
            return None

    def _probed(self, batch: Batch) -> tuple[Border, Pace]:
        count = min(len(batch), _TRIAL)
        first = {name: values[:count] for name, values in batch.inputs.items()}
        # The same samples in other places, and one of them twice in the place of another.
        order = torch.arange(count).flip(0)
        order[1] = order[0]
        mixed = {name: values[order] for name, values in first.items()}
        pairs = [(row, place) for place, row in enumerate(order.tolist()) if place != 1]
        return probe(self._model, first, mixed, pairs)

    def _note(self, text: str) -> None:
        if text not in self.reasons:
            self.reasons = (*self.reasons, text)


def _by_name(
    model: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Tensor]
) -> dict[str, Any]:
    """Return the arguments of a call by their names, those of `**kwargs` among them."""
    signature = inspect.signature(model.forward)
    named = dict(signature.bind(*args, **inputs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _precision(device: torch.device) -> str:
    """Return the number format that the block around us runs in."""
    is_on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if is_on else "as given"


class _AtHand:
    """The batch at hand, as a split of which nothing else can be fetched."""

    def __init__(self, num_samples: int) -> None:
        self.views: int | None = 1
        self.longest: int | None = None
        self.batch: Batch | None = None
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def length(self, indices: Tensor) -> int | None:
        return self.longest

    def fetch(
        self,
        indices: Tensor,
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        assert self.batch is not None
        places = {index: place for place, index in enumerate(self.batch.indices.tolist())}
        rows = torch.tensor([places[index] for index in indices.tolist()])
        inputs = {name: values[rows] for name, values in self.batch.inputs.items()}
        return Batch(inputs, None, indices)
