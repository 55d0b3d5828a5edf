"""Whether a store pays: exact, worth its reading time, within the budgets; and if not, why."""

from dataclasses import replace

import torch
from torch import nn

from finetune.config.prefix import PrefixConfig
from finetune.prefix.exact import Trials
from finetune.prefix.key import Facts, facts_of, network_key
from finetune.prefix.probe import Border
from finetune.prefix.prospect import Prospect, Use, find_prospect
from finetune.prefix.replay import Replay
from finetune.prefix.serving import NoPrefix, Prefix, Statistics, StoredPrefix
from finetune.store.shelf import cache_root, key_of, num_sealed
from finetune.store.store import Store, StoreError


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
