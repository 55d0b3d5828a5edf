"""Whether a store pays: exact, worth its reading time, within the budgets; and if not, why."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.config.prefix import PrefixConfig
from finetune.freezing.plan import Phase
from finetune.prefix.exact import Trials
from finetune.prefix.key import Facts, facts_of, network_key
from finetune.prefix.probe import Border
from finetune.prefix.prospect import Prospect, Use, find_ahead, find_prospect
from finetune.prefix.replay import Replay
from finetune.prefix.serving import StoredPrefix
from finetune.prefix.statistics import Statistics
from finetune.prefix.whole import NoPrefix, Prefix
from finetune.store.shelf import cache_root, key_of, num_sealed
from finetune.store.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class _Level:
    """A border at which rows are to be stored."""

    found: Prospect
    facts: Facts
    """What the values there depend on but for the data."""
    phase: str | None = None
    """The phase to come that it is for, None for the present one."""


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

    def open(self, visits: float, ahead: Sequence[tuple[Phase, float]] = ()) -> None:
        """Choose the prefix for the mask and the modes that the network has now.

        Args:
            visits: How often each training sample will be seen before the mask changes.
            ahead: The phases to come, and the same of each. What their prefixes give is stored
                on the way where that is worth it: so thawing runs nothing again.
        """
        if self._use.is_compiled:
            # Other modules are frozen now: what was compiled before counts as little as its limit.
            torch.compiler.reset()
        is_off = self._config.use == "off"
        if is_off and not self._use.is_compiled:
            return
        found = find_prospect(self._model, self._use, visits=visits, anyhow=self.is_border_needed)
        if not is_off:
            self._choose(found, ahead)
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

    def _choose(self, found: Prospect | str, ahead: Sequence[tuple[Phase, float]]) -> None:
        if isinstance(found, str):
            self._use.tell(f"prefix: {found}")
            return
        try:
            own = self._level(found, facts_of(self._model, found.border, self._use.facts))
            levels = [own] if self._pays(own.found) else []
            if self._looks_ahead(own, levels):
                levels += self._levels_ahead(own, ahead, known=[level.facts for level in levels])
            if levels:
                self._store(levels)
        except StoreError as error:
            self._use.tell(f"prefix: not stored: {error.message}")

    def _level(self, found: Prospect, facts: Facts, phase: str | None = None) -> _Level:
        there = num_sealed(cache_root(), key_of(self._about(facts, "train"))) / found.train_rows
        return _Level(replace(found, stored=min(1.0, there)), facts, phase)

    def _looks_ahead(self, own: _Level, levels: Sequence[_Level]) -> bool:
        """Tell whether passes of this phase can store rows for others, and no bit depends on it."""
        is_free = self._rounds_to is None and (bool(levels) or not self.is_border_needed)
        return is_free and own.found.stored < 1

    def _levels_ahead(
        self, own: _Level, ahead: Sequence[tuple[Phase, float]], *, known: list[Facts]
    ) -> Iterator[_Level]:
        """Yield what is worth storing for phases to come, each ending before the last one.

        Args:
            own: What the present phase would store.
            ahead: The phases to come, and how often each sees a training sample.
            known: What is stored already. Added to.
        """
        border = own.found.border
        for phase, found, facts in find_ahead(self._model, self._use, ahead):
            if not border.encloses(found.border):
                return
            border, level = found.border, self._level(found, facts, phase.name)
            if facts not in known and level.found.pays_ahead:
                known.append(facts)
                yield level

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

    def _store(self, levels: Sequence[_Level]) -> None:
        """Stand before the frozen calls of all levels, of which the first one ends deepest."""
        with ExitStack() as undo:
            if (inner := self._take_earlier(levels[0])) is not None:
                undo.callback(inner.close)
                levels = levels[:1]
            for level, stores in reversed(list(self._opened(levels, undo))):
                inner = self._prefix(level, inner)
                undo.callback(inner.close)
                self._give_stores(inner, level, stores)
            undo.pop_all()
        if inner is not None:
            self.now = inner

    def _take_earlier(self, level: _Level) -> StoredPrefix | None:
        """Return the prefix of the phase before, at work, if it helps here; else forget it."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return None
        if (
            # from rounded values others would come than from those of a run that begins here
            self._rounds_to is not None
            or not level.found.border.encloses(earlier.border)
            or earlier.facts != facts_of(self._model, earlier.border, self._use.facts)
        ):
            earlier.close()
            return None
        earlier.as_it_stands().install()
        return earlier

    def _opened(
        self, levels: Sequence[_Level], undo: ExitStack
    ) -> Iterator[tuple[_Level, dict[str, Store]]]:
        """Yield the levels with their stores, by split; but for those ahead without room."""
        for level in levels:
            with ExitStack() as close:
                try:
                    stores = {
                        split: close.enter_context(closing(self._opened_store(level, split)))
                        for split in self._use.splits
                    }
                except StoreError as error:
                    if level.phase is None:
                        raise
                    why = f"nothing is stored for phase {level.phase!r}: {error.message}"
                    self._use.tell(f"prefix: {why}")
                    continue
                undo.push(close.pop_all())
                yield level, stores

    def _opened_store(self, level: _Level, split: str) -> Store:
        samples, about = self._use.splits[split], self._about(level.facts, split)
        store = Store.open(
            cache_root(),
            key_of(about),
            level.found.border.specs,
            len(samples) * (samples.views or 1),
            # what is stored ahead is not read before its phase
            memory_gb=self._config.memory_gb if level.phase is None else 0,
            disk_gb=self._config.disk_gb,
            store_dtype=self._use.store_dtype,
            facts={"split": split, "up_to": level.found.up_to, "data": about["data"]},
        )
        for note in store.notes:
            self._use.tell(f"prefix: {note}")
        return store

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

    def _prefix(self, level: _Level, inner: StoredPrefix | None) -> StoredPrefix:
        """Return the prefix of a level, at work, still without stores."""
        return StoredPrefix(
            self._model,
            Replay(self._model, level.found.border, self._rounds_to),
            level.facts,
            statistics=self.statistics,
            seconds=level.found.pace.prefix,
            tell=self._use.tell,
            run=self._run,
            inner=inner,
        )

    def _give_stores(
        self, prefix: StoredPrefix, level: _Level, stores: Mapping[str, Store]
    ) -> None:
        """Give a prefix its stores."""
        use, network = self._use, network_key(self._model, self._use.facts)
        for split, store in stores.items():
            trials = Trials(
                self._model,
                prefix.replay,
                use.splits[split],
                size=use.batch_sizes[split],
                in_order=split != "train",
                autocast=use.autocast,
                verdicts=store.verdicts(network),
                run=self._run,
                tell=use.tell if level.phase is None else _say_nothing,
            )
            prefix.add(use.splits[split], store, trials, store.sealed())
        use.tell(f"prefix: {_told(level, prefix)}")


def _say_nothing(_: str) -> None:
    """Keep to ourselves how batches are stored that nobody reads yet."""


def _told(level: _Level, prefix: StoredPrefix) -> str:
    """Return what a user should know of a prefix that is stored."""
    found, layout = level.found, level.found.layout
    there = sum(store.num_valid for store in prefix.stores)
    size = layout.num_rows * layout.row_bytes / 2**20
    of_size = f"{size:.0f} MiB, {there} of {layout.num_rows} stored already"
    if level.phase is not None:
        return f"up to {found.up_to} is stored on the way for phase {level.phase!r} ({of_size})"
    return (
        f"up to {found.up_to} runs once per sample ({of_size}); "
        f"expected to save {found.saving:.0f} s{found.not_further}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
