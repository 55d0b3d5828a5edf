"""Whether a store pays: exact, worth its reading time, within the budgets; and if not, why."""

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any

import torch
from torch import nn

from finetune.config.prefix import PrefixConfig
from finetune.data.loader import Samples
from finetune.freezing.proof import fingerprints
from finetune.prefix.probe import Border, Leaf, probe
from finetune.prefix.replay import Replay
from finetune.prefix.serving import NoPrefix, Prefix, Statistics, StoredPrefix
from finetune.prefix.store import RowSpec, Store, StoreError, cache_root

_TRIAL = 6
"""Samples of a trial batch."""
_READ_BYTES_PER_S = 1e9
_READ_S_PER_SAMPLE = 5e-6
"""What reading a row from a warm store costs, measured by `benchmarks/store_read.py`."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a prefix would be used in a phase."""

    splits: Mapping[str, Samples]
    """Samples by split; `train` is one of them."""
    visits: int
    """How often each training sample will be seen before the mask changes."""
    batch_sizes: Mapping[str, int]
    """Samples of one forward pass of each split."""
    precision: str
    """Number format of the forward pass."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided, and why, in one line."""

    prefix: Prefix
    reason: str


def choose_prefix(
    config: PrefixConfig, model: nn.Module, use: Use, statistics: Statistics
) -> Choice:
    """Find the frozen prefix of `model` in its present mask and modes, and decide how to use it.

    Args:
        config: Budgets, and whether to do it at all.
        model: Its forward is replaced where a store is used, until the prefix is closed.
        use: What the phase will do.
        statistics: Counted up by the prefix.
    """
    plain = NoPrefix(model)
    if config.use == "off":
        return Choice(plain, "prefix: off, as the config says")
    train = use.splits["train"]
    if train.is_random:
        return Choice(plain, "prefix: not stored, random transforms come before it")
    if all(parameter.requires_grad for parameter in model.parameters()):
        return Choice(plain, "prefix: nothing is frozen")
    if len(train) < _TRIAL + 2:
        return Choice(plain, "prefix: too few samples to try it out")
    border, seconds = _tried(model, train)
    why = "; ".join(border.reasons)
    leaves = Replay(model, border).needed
    if not leaves:
        return Choice(plain, f"prefix: nothing to store{f' ({why})' if why else ''}")
    return _decided(config, model, use, statistics, border, seconds, leaves)


def _decided(
    config: PrefixConfig,
    model: nn.Module,
    use: Use,
    statistics: Statistics,
    border: Border,
    seconds: float,
    leaves: Mapping[str, Leaf],
) -> Choice:
    plain = NoPrefix(model)
    row_bytes = sum(prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves.values())
    read = _READ_S_PER_SAMPLE + row_bytes / _READ_BYTES_PER_S
    visits = use.visits
    last = border.modules[-1]
    if read * visits + read > seconds * (visits - 1):
        return Choice(
            plain,
            f"prefix: up to {last} runs in {seconds * 1e6:.0f} us a sample, reading would take "
            f"{read * 1e6:.0f} us: not stored",
        )
    stores: dict[int, Store] = {}
    try:
        for split, samples in use.splits.items():
            stores[id(samples)] = _open(config, model, use, split, border, leaves)
    except StoreError as error:
        for store in stores.values():
            store.close()
        return Choice(plain, f"prefix: not stored: {error}")
    size = sum(len(samples) for samples in use.splits.values()) * row_bytes
    saved = seconds * (visits - 1) * len(use.splits["train"])
    stored = sum(store.num_valid for store in stores.values())
    prefix = StoredPrefix(
        model,
        border,
        stores,
        train=use.splits["train"],
        batch_size=use.batch_sizes["train"],
        statistics=statistics,
    )
    return Choice(
        prefix,
        f"prefix: up to {last} runs once per sample ({size / 2**20:.0f} MiB, {stored} samples "
        f"stored already); expected to save {saved:.0f} s",
    )


def _tried(model: nn.Module, samples: Samples) -> tuple[Border, float]:
    """Probe with the first samples; return the border and the seconds of one sample's prefix."""
    first = torch.arange(_TRIAL)
    # Some of them again, in other places and other company.
    mixed = torch.tensor([2, _TRIAL, 0, _TRIAL + 1, 1, 4])
    device = next(model.parameters()).device
    batch, other = (samples.fetch(rows).to(device).inputs for rows in (first, mixed))
    return probe(model, batch, other, ((2, 0), (0, 2), (1, 4), (4, 5)))


def _open(
    config: PrefixConfig,
    model: nn.Module,
    use: Use,
    split: str,
    border: Border,
    leaves: Mapping[str, Leaf],
) -> Store:
    samples = use.splits[split]
    facts = _facts(model, use, split, border)
    key = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    specs = {
        name: RowSpec(leaf.shape[1:], str(leaf.dtype).removeprefix("torch."), leaf.ragged)
        for name, leaf in leaves.items()
    }
    return Store.open(
        cache_root(),
        key,
        specs,
        len(samples),
        memory_gb=config.memory_gb,
        disk_gb=config.disk_gb,
        store_dtype=config.store_dtype,
        facts={"split": split, "up_to": border.modules[-1], "data": facts["data"]},
    )


def _facts(model: nn.Module, use: Use, split: str, border: Border) -> dict[str, Any]:
    """Return all that the stored values depend on, as plain data."""
    tensors = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers())
        if any(name == module or name.startswith(f"{module}.") for module in border.modules)
    ]
    return {
        "tensors": fingerprints(model, tensors),
        "modules": {name: repr(model.get_submodule(name)) for name in border.modules},
        "source": _source(model, border),
        "calls": [f"{call.module}#{call.visit}" for call in border.calls],
        "data": use.splits[split].fingerprint(),
        "split": split,
        "batch_size": use.batch_sizes[split],
        "precision": use.precision,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(next(model.parameters()).device),
    }


def _source(model: nn.Module, border: Border) -> str:
    """Return a hash of the code of all classes in the prefix, as far as there is source."""
    classes = {
        type(module) for name in border.modules for module in model.get_submodule(name).modules()
    }
    digest = blake2b(digest_size=16)
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        with suppress(OSError, TypeError):
            digest.update(inspect.getsource(kind).encode())
    return digest.hexdigest()


class Prefixes:
    """The prefix of the present phase: chosen as the phase begins, let go as it ends.

    Args:
        config: Budgets, and whether to do it at all.
        model: The network.
        splits: Samples by split; `train` is one of them.
        batch_sizes: Samples of one forward pass of each split.
        precision: Number format of the forward pass.
        tell: Receives the line that says what was decided and why.
    """

    def __init__(
        self,
        config: PrefixConfig,
        model: nn.Module,
        *,
        splits: Mapping[str, Samples],
        batch_sizes: Mapping[str, int],
        precision: str,
        tell: Callable[[str], None],
    ) -> None:
        self.now: Prefix = NoPrefix(model)
        """What fetches batches and runs the network."""
        self.statistics = Statistics()
        """What stores have done for the run so far."""
        self._config, self._model, self._tell = config, model, tell
        self._splits, self._batch_sizes, self._precision = splits, batch_sizes, precision

    def open(self, visits: int) -> None:
        """Choose the prefix for the mask and the modes that the network has now.

        Args:
            visits: How often each training sample will be seen before the mask changes.
        """
        if self._config.use == "off":
            return
        use = Use(self._splits, visits, self._batch_sizes, self._precision)
        choice = choose_prefix(self._config, self._model, use, self.statistics)
        self.now = choice.prefix
        self._tell(choice.reason)

    def close(self) -> None:
        """Let go of stores; everything runs again, every time."""
        self.now.close()
        self.now = NoPrefix(self._model)
