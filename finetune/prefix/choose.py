"""Whether a store pays: exact, worth its reading time, within the budgets; and if not, why."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.config.prefix import PrefixConfig
from finetune.data.loader import Samples
from finetune.prefix.exact import Trials
from finetune.prefix.key import Facts, facts_of, network_key
from finetune.prefix.probe import Border, Pace, probe
from finetune.prefix.replay import Replay
from finetune.prefix.serving import NoPrefix, Prefix, Statistics, StoredPrefix
from finetune.store.layout import Layout
from finetune.store.shelf import cache_root, key_of, num_sealed
from finetune.store.store import Store, StoreError

_TRIAL = 4
"""Samples of a trial batch."""
_PASSES = 6
"""Forward passes over the trial batch that finding the prefix takes, about."""
_WORTH_TRYING = 10
"""How many times the samples of the trial are to come before it is made."""
_TRYING_PASSES = 3
"""Full batches that finding out which shapes are exact takes beyond what is stored, about."""
_LEAST_SHARE = 0.02
"""Of the time of forward passes: who saves less gains nothing that would be noticed."""
_READ_BYTES_PER_S = 1e9
_READ_S_PER_SAMPLE = 5e-6
"""What reading a row from a warm store costs, measured by `benchmarks/store_read.py`."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a run uses its network, whatever the phase."""

    splits: Mapping[str, Samples]
    """Samples by split; `train` is one of them, the others are cut in order every time."""
    batch_sizes: Mapping[str, int]
    """Samples of one forward pass of each split."""
    autocast: Callable[[], AbstractContextManager[object]]
    """The number format of the forward pass."""
    facts: Mapping[str, str]
    """What else the values of a forward pass depend on."""
    tell: Callable[[str], None]
    """Receives lines that say what was decided and why, or given up."""
    store_dtype: str | None
    """Floating point is stored as this; None for as it is."""
    is_compiled: bool = False
    """Whether what is not frozen is compiled."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What storing the prefix of a phase would mean."""

    border: Border
    pace: Pace
    trying: float
    """Seconds to find out which batches are exact, where no store has it from before."""
    visits: int
    """How often each view of a training sample will be seen before the mask changes."""
    layout: Layout
    """What a store of all splits together would hold."""
    train_rows: int
    stored: float = 0.0
    """Share of the rows that a store has already."""

    @property
    def reading(self) -> float:
        """Seconds to read one row, or to write it."""
        return _READ_S_PER_SAMPLE + self.layout.row_bytes / _READ_BYTES_PER_S

    @property
    def saving(self) -> float:
        """Seconds that a store is expected to save; below 0 it would cost some."""
        new = 1 - self.stored
        again = self.pace.prefix * (self.visits - new)
        spared = self.train_rows * (again - self.reading * (self.visits + new))
        return spared - self.trying * new

    @property
    def pays(self) -> bool:
        """Whether it saves enough to be noticed."""
        forward = self.pace.whole * self.train_rows * self.visits
        return self.saving > _LEAST_SHARE * forward

    @property
    def not_further(self) -> str:
        """Why frozen modules behind the border run every time."""
        reasons = self.border.reasons
        return f"; not further: {'; '.join(reasons)}" if reasons else ""

    @property
    def up_to(self) -> str:
        """The last module of the prefix."""
        return self.border.modules[-1]


def find_prospect(
    model: nn.Module, use: Use, *, visits: float, anyhow: bool = False
) -> Prospect | str:
    """Find the frozen prefix of `model` in its present mask and modes; or why there is none.

    Args:
        model: The network; left as it was.
        use: What a run does with it.
        visits: How often each training sample will be seen before the mask changes.
        anyhow: Also where too few samples come to gain anything.
    """
    train = use.splits["train"]
    if all(parameter.requires_grad for parameter in model.parameters()):
        return "nothing is frozen"
    if train.views is None:
        return "not stored, random transforms come before it (views: K would store K draws of each)"
    is_short = visits * len(train) < _WORTH_TRYING * _PASSES * _TRIAL
    if len(train) <= _TRIAL or (is_short and not anyhow):
        return "too few samples come before the mask changes to try it out"
    border, pace = _probed(model, train, use)
    if not border.stored:
        why = "; ".join(border.reasons)
        return f"nothing to store{f' ({why})' if why else ''}"
    num_rows = {name: len(samples) * (samples.views or 1) for name, samples in use.splits.items()}
    try:
        layout = Layout.of(border.specs, sum(num_rows.values()), use.store_dtype)
    except StoreError as error:
        return error.message
    return Prospect(
        border,
        pace,
        trying=_TRYING_PASSES * use.batch_sizes["train"] * pace.whole,
        visits=max(1, round(visits / train.views)),
        layout=layout,
        train_rows=num_rows["train"],
    )


def _probed(model: nn.Module, samples: Samples, use: Use) -> tuple[Border, Pace]:
    """Probe with the first samples; return the border and how fast the network runs."""
    first = torch.arange(_TRIAL)
    # Some of them again, in other places and other company.
    mixed = torch.tensor([2, _TRIAL, 0, 1])
    device = next(model.parameters()).device
    batch, other = (
        samples.fetch(rows, length=samples.longest).to(device).inputs for rows in (first, mixed)
    )
    with use.autocast():
        return probe(model, batch, other, ((2, 0), (0, 2), (1, 3)))


class Prefixes:
    """The prefix of the present phase: chosen as the phase begins, let go as it ends.

    Args:
        config: Budgets, and whether to do it at all.
        model: The network. Its forward is replaced where a store is used, until the prefix is
            closed.
        use: What the run does with it.
    """

    def __init__(self, config: PrefixConfig, model: nn.Module, use: Use) -> None:
        # Whatever the sizes of batches and the order in which they come, one code runs for all.
        self._run = torch.compile(model, dynamic=True) if use.is_compiled else model
        self.now: Prefix = NoPrefix(model, self._run)
        """What fetches batches and runs the network."""
        self.statistics = Statistics()
        """What stores have done for the run so far."""
        self._config, self._model, self._use = config, model, use
        dtype = use.store_dtype if config.use == "auto" else None
        self._rounds_to: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self._earlier: StoredPrefix | None = None
        self._fingerprints: dict[str, str] = {}

    def open(self, visits: float) -> None:
        """Choose the prefix for the mask and the modes that the network has now.

        Args:
            visits: How often each training sample will be seen before the mask changes.
        """
        if self._use.is_compiled:
            # Other modules are frozen now: what was compiled before counts as little as its limit.
            torch.compiler.reset()
        is_off = self._config.use == "off"
        if is_off and not self._use.is_compiled:
            return
        found = find_prospect(self._model, self._use, visits=visits, anyhow=self.is_border_needed)
        if not is_off:
            self._choose(found)
        if isinstance(found, Prospect) and isinstance(self.now, NoPrefix):
            self._stand_at(found.border)

    @property
    def is_border_needed(self) -> bool:
        """Whether bits depend on where the prefix ends, stored or not.

        Then it must not matter when that was found out, or whether a store pays.
        """
        return self._use.is_compiled or self._rounds_to is not None

    def _stand_at(self, border: Border) -> None:
        """Stand before the frozen calls of a prefix that is not stored, where that matters."""
        if self.is_border_needed:
            replay = Replay(self._model, border, self._rounds_to)
            replay.install()
            self.now = NoPrefix(self._model, self._run, replay)

    def leave(self) -> None:
        """Let everything run again; what was stored may help a prefix that ends deeper."""
        if isinstance(self.now, StoredPrefix):
            self.now.remove()
            self._earlier = self.now
        else:
            self.now.close()
        self.now = NoPrefix(self._model, self._run)

    def close(self) -> None:
        """Let go of all stores."""
        self.leave()
        self._forget()

    def _forget(self) -> None:
        if self._earlier is not None:
            self._earlier.close()
        self._earlier = None

    def _choose(self, found: Prospect | str) -> None:
        if isinstance(found, str):
            self._use.tell(f"prefix: {found}")
            return
        facts = facts_of(self._model, found.border, self._use.facts)
        key = key_of(self._about(facts, "train"))
        try:
            there = num_sealed(cache_root(), key) / found.train_rows
            found = replace(found, stored=min(1.0, there))
            if self._pays(found):
                self._store(found, facts)
        except StoreError as error:
            self._use.tell(f"prefix: not stored: {error.message}")

    def _pays(self, found: Prospect) -> bool:
        if found.pays:
            return True
        self._use.tell(
            f"prefix: not stored, it would not pay: up to {found.up_to} it runs in "
            f"{found.pace.prefix * 1e6:.0f} us a sample, of {found.pace.whole * 1e6:.0f} for all; "
            f"reading would take {found.reading * 1e6:.0f} us, each sample comes "
            f"{_times(found.visits)}{found.not_further}"
        )
        return False

    def _store(self, found: Prospect, facts: Facts) -> None:
        earlier = self._earlier
        if (
            earlier is None
            # from rounded values others would come than from those of a run that begins here
            or self._rounds_to is not None
            or not found.border.encloses(earlier.border)
            or earlier.facts != facts_of(self._model, earlier.border, self._use.facts)
        ):
            self._forget()
            earlier = None
        else:
            earlier.let_earlier_go()
        self._earlier = None
        prefix = StoredPrefix(
            self._model,
            Replay(self._model, found.border, self._rounds_to),
            facts,
            statistics=self.statistics,
            seconds=found.pace.prefix,
            tell=self._use.tell,
            run=self._run,
            earlier=earlier,
        )
        try:
            network = network_key(self._model, self._use.facts)
            for split in self._use.splits:
                self._add(prefix, split, found, network)
        except BaseException:
            prefix.close()
            raise
        self.now = prefix
        stored = sum(store.num_valid for store in prefix.stores)
        layout = found.layout
        size = layout.num_rows * layout.row_bytes / 2**20
        self._use.tell(
            f"prefix: up to {found.up_to} runs once per sample ({size:.0f} MiB, "
            f"{stored} of {layout.num_rows} stored already); "
            f"expected to save {found.saving:.0f} s{found.not_further}"
        )

    def _about(self, facts: Facts, split: str) -> Facts:
        """Return all that the rows of a split depend on."""
        if split not in self._fingerprints:
            self._fingerprints[split] = self._use.splits[split].fingerprint()
        return facts | {
            "data": self._fingerprints[split],
            "split": split,
            "batch_size": self._use.batch_sizes[split],
            "store_dtype": self._use.store_dtype,
        }

    def _add(self, prefix: StoredPrefix, split: str, found: Prospect, network: str) -> None:
        use, samples = self._use, self._use.splits[split]
        about = self._about(prefix.facts, split)
        store = Store.open(
            cache_root(),
            key_of(about),
            found.border.specs,
            len(samples) * (samples.views or 1),
            memory_gb=self._config.memory_gb,
            disk_gb=self._config.disk_gb,
            store_dtype=self._use.store_dtype,
            facts={"split": split, "up_to": found.up_to, "data": about["data"]},
        )
        for note in store.notes:
            use.tell(f"prefix: {note}")
        trials = Trials(
            self._model,
            prefix.replay,
            samples,
            size=use.batch_sizes[split],
            in_order=split != "train",
            autocast=use.autocast,
            verdicts=store.verdicts(network),
            run=self._run,
            tell=use.tell,
        )
        prefix.add(samples, store, trials, store.sealed())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
