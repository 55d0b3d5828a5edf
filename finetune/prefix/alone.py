"""The stored prefix around a loop of one's own, without a config."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch, Extent
from finetune.errors import ModelError
from finetune.prefix.exact import Trials
from finetune.prefix.key import facts_of, network_key
from finetune.prefix.passes import Passes
from finetune.prefix.probe import Border, Pace, probe
from finetune.prefix.replay import Replay
from finetune.prefix.serving import StoredPrefix
from finetune.prefix.shapes import extent_of, is_right_padded, mask_of
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
    be stored exactly runs every time, and `reasons` says why. Training and evaluation have rows of
    their own, and so has each number format, as values may differ. While open, the `forward` of
    frozen modules is ours.

    Args:
        model: Its mask and its modes stay as they are.
        store: A folder that keeps rows for later runs; in memory alone if left out.
        num_samples: How many samples there are: `indices` are below it.
        data: Name of the data and its version. Part of the store's key, so needed with `store`.
        memory_gb: Rows up to this size, in GiB, are kept in memory, of all modes together.
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
        """What stores have done so far."""
        self.reasons: tuple[str, ...] = ()
        """Why frozen modules run all the same, a line each."""
        self._model, self._options, self._num_samples = model, options, num_samples
        self._opened: dict[_Mode, _AtWork | None] = {}
        self._now: _AtWork | None = None
        """What stands before the modules."""

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
        at_work = self._at_work(batch)
        if at_work is None:
            return self._model(**named)
        if (reason := at_work.samples.reason_against(batch)) is not None:
            self._note(reason)
            return self._model(**named)
        at_work.samples.batch = batch
        return at_work.prefix.forward(batch, at_work.samples)

    def close(self) -> None:
        """Give the model its own `forward` back, and close the stores."""
        self._stand_before(None)
        for at_work in self._opened.values():
            if at_work is not None:
                at_work.prefix.close()
        self._opened = {}

    def _at_work(self, batch: Batch) -> "_AtWork | None":
        """Return what answers in the mode that the network is in now; None if nothing does."""
        mode = _mode_of(self._model, batch.indices.device)
        if mode not in self._opened:
            self._stand_before(None)
            if len(batch) < _FEWEST:
                return None
            self._opened[mode] = self._open(batch)
        self._stand_before(self._opened[mode])
        return self._now

    def _stand_before(self, at_work: "_AtWork | None") -> None:
        """Let one prefix, or none, stand before its modules."""
        if at_work is self._now:
            return
        if self._now is not None:
            self._now.prefix.remove()
        if at_work is not None:
            at_work.prefix.install()
        self._now = at_work

    def _open(self, batch: Batch) -> "_AtWork | None":
        """Find the prefix in the present mode, and take up its store."""
        samples = _AtHand(self._num_samples, batch)
        border, pace = self._probed(batch, is_right_padded=samples.longest is not None)
        for reason in border.reasons:
            self._note(reason)
        if not border.stored:
            return None
        more = {"precision": _precision(batch.indices.device)}
        facts, network = facts_of(self._model, border, more), network_key(self._model, more)
        # no few samples bear witness here: the modes and the code of all modules count
        about = {
            "data": self._options.data,
            "batch_size": len(batch),
            "inputs": samples.kinds,
            "filled_up": samples.has_shorter,
            "network": network,
        }
        store = self._store(border, key_of(facts | about))
        if store is None:
            return None
        with ExitStack() as undo:
            undo.callback(store.close)
            prefix = StoredPrefix(
                self._model,
                Replay(self._model, border),
                facts,
                statistics=self.statistics,
                seconds=pace.prefix,
                tell=self._note,
                run=self._model,
            )
            undo.callback(prefix.remove)
            passes = Passes(
                self._model,
                prefix.replay,
                samples,
                size=len(batch),
                in_order=False,
                autocast=nullcontext,
                verdicts=store.verdicts(network),
                run=self._model,
            )
            trials = Trials(passes, self._note)
            sealed, here = store.sealed(), batch.indices.cpu()
            prefix.add(samples, store, trials, sealed[torch.isin(sealed, here)])
            prefix.remove()
            undo.pop_all()
        return _AtWork(prefix, samples)

    def _store(self, border: Border, key: str) -> Store | None:
        """Open the store of `key`, or say why there is none."""
        try:
            store = Store.open(
                self._options.folder,
                key,
                border.specs,
                self._num_samples,
                memory_gb=self._options.memory_gb - self._memory_gb,
                disk_gb=self._options.disk_gb,
                facts={"data": self._options.data},
            )
        except StoreError as error:
            self._note(f"not stored: {error.in_one_line}")
            return None
        for note in store.take_notes():
            self._note(note)
        return store

    @property
    def _memory_gb(self) -> float:
        """GiB that the stores of all modes take in memory."""
        works = [at_work for at_work in self._opened.values() if at_work is not None]
        return sum(s.memory_bytes for work in works for s in work.prefix.stores) / (1 << 30)

    def _probed(self, batch: Batch, *, is_right_padded: bool) -> tuple[Border, Pace]:
        count = min(len(batch), _TRIAL)
        first = {name: values[:count] for name, values in batch.inputs.items()}
        # The same samples in other places, and one of them twice in the place of another.
        order = torch.arange(count).flip(0)
        order[1] = order[0]
        mixed = {name: values[order] for name, values in first.items()}
        pairs = [(row, place) for place, row in enumerate(order.tolist()) if place != 1]
        # autograd tells what is frozen, also to a loop that evaluates first
        with torch.inference_mode(mode=False), torch.enable_grad():
            return probe(self._model, first, mixed, pairs, is_right_padded=is_right_padded)

    def _note(self, text: str) -> None:
        if text not in self.reasons:
            self.reasons = (*self.reasons, text)


class _AtHand:
    """The batch at hand, as a split of which nothing else can be fetched.

    Args:
        num_samples: How many samples there are.
        batch: The first batch.
    """

    def __init__(self, num_samples: int, batch: Batch) -> None:
        self.views: int | None = 1
        self.batch = batch
        self.kinds = _kinds_of(batch)
        mask = mask_of(batch.inputs)
        self.longest = mask.shape[1] if mask is not None and is_right_padded(mask) else None
        self.has_shorter = _has_shorter(batch)
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def reason_against(self, batch: Batch) -> str | None:
        """Return why a batch cannot be answered, being of another kind than the first."""
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
        """Return how long some samples of the batch at hand are."""
        mask = mask_of(self.batch.inputs)
        return None if mask is None else extent_of(mask[self._places(indices)])

    def fetch(
        self,
        indices: Tensor,
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Return a batch of some samples of the one at hand, as long as that."""
        places = self._places(indices)
        inputs = {name: values[places] for name, values in self.batch.inputs.items()}
        return Batch(inputs, None, indices)

    def _places(self, indices: Tensor) -> Tensor:
        places = {index: place for place, index in enumerate(self.batch.indices.tolist())}
        return torch.tensor([places[index] for index in indices.tolist()])


def _kinds_of(batch: Batch) -> dict[str, str]:
    """Return shape and dtype of what a batch holds of each sample, by name of the input."""
    return {
        name: f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape[1:])}"
        for name, values in batch.inputs.items()
    }


def _has_shorter(batch: Batch) -> bool:
    mask = mask_of(batch.inputs)
    return mask is not None and bool((mask == 0).any())


@dataclass(frozen=True, slots=True)
class _AtWork:
    """What answers in one mode of the network."""

    prefix: StoredPrefix
    samples: _AtHand


class _Mode(NamedTuple):
    """What decides, besides its weights, what a network computes."""

    training: tuple[bool, ...]
    """Of all modules."""
    precision: str


def _mode_of(model: nn.Module, device: torch.device) -> _Mode:
    return _Mode(tuple(module.training for module in model.modules()), _precision(device))


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
