"""Whether a store pays: exact, worth its reading time, within the budgets; and if not, why."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.config.prefix import PrefixConfig
from finetune.freezing.apply import in_mode
from finetune.prefix.exact import Trials
from finetune.prefix.key import Facts, network_key
from finetune.prefix.passes import Passes
from finetune.prefix.probe import Border
from finetune.prefix.prospect import (
    Coming,
    Prospect,
    Use,
    facts_at,
    facts_of_split,
    find_ahead,
    find_prospect,
)
from finetune.prefix.replay import Replay
from finetune.prefix.serving import StoredPrefix
from finetune.prefix.statistics import Statistics
from finetune.prefix.whole import NoPrefix, Prefix
from finetune.store.shelf import cache_root, key_of, num_sealed
from finetune.store.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class _Planned:
    """A prefix that is to be stored."""

    found: Prospect
    facts: Facts
    """What the values there depend on but for the data."""
    phase: str | None = None
    """Name of the phase to come that it is for, None for the present one."""


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
        self._looks_ahead = True
        """Whether the last look ahead found anything: if not, none is taken again."""
        self._fingerprints: dict[str, str] = {}

    def open(self, visits: float, thaws: Sequence[Coming] = ()) -> None:
        """Choose the prefix for the mask and the modes that the network has now.

        Args:
            visits: How often each training sample will be seen before the mask changes.
            thaws: Phases to come, each of which only thaws. What their prefixes give is stored
                on the way where that is worth it: so thawing runs nothing again.
        """
        if self._use.is_compiled:
            # Other modules are frozen now: what was compiled before counts as little as its limit.
            torch.compiler.reset()
        is_off = self._config.use == "off"
        if is_off and not self._use.is_compiled:
            return
        found = find_prospect(self._model, self._use, visits=visits)
        if not is_off:
            self._choose(found, thaws)
        if isinstance(found, Prospect) and isinstance(self.now, NoPrefix):
            self._stand_at(found.border)

    @property
    def is_border_needed(self) -> bool:
        """Whether bits depend on where the prefix ends, stored or not."""
        return self._use.is_border_needed

    def _stand_at(self, border: Border) -> None:
        """Stand before the frozen calls of a prefix that is not stored, where that matters."""
        if self._use.is_border_needed:
            replay = Replay(self._model, border, self._rounds_to)
            replay.install()
            self.now = NoPrefix(self._model, self._run, replay)

    def leave(self) -> None:
        """Let everything run again; what was stored may help a prefix that ends deeper."""
        if isinstance(self.now, StoredPrefix):
            self.now.remove()
            self._earlier = self.now
            for store in self.now.stores:
                store.leave_memory()  # the budget of memory is for what comes
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

    def _choose(self, found: Prospect | str, thaws: Sequence[Coming]) -> None:
        if isinstance(found, str):
            self._use.tell(f"prefix: {found}")
            return
        try:
            own = self._planned(found, facts_at(self._model, found.border, self._use))
            planned = [own] if self._pays(own.found) else []
            if thaws and self._may_look_ahead(own, is_stored=bool(planned)):
                ahead = self._ahead(own, thaws, known=[one.facts for one in planned])
                planned += ahead
                self._looks_ahead = bool(ahead)
            if planned:
                self._store(planned)
        except StoreError as error:
            self._use.tell(f"prefix: not stored: {error.in_one_line}")

    def _planned(self, found: Prospect, facts: Facts, phase: str | None = None) -> _Planned:
        there = num_sealed(cache_root(), key_of(self._about(facts, "train"))) / found.train_rows
        return _Planned(replace(found, stored=min(1.0, there)), facts, phase)

    def _may_look_ahead(self, own: _Planned, *, is_stored: bool) -> bool:
        """Tell whether passes of this phase can store rows for later ones, and change no bit."""
        # what is computed from rounded values is not what a later phase would compute
        changes_no_bit = self._rounds_to is None and (is_stored or not self._use.is_border_needed)
        return self._looks_ahead and changes_no_bit and own.found.stored < 1

    def _ahead(
        self, own: _Planned, thaws: Sequence[Coming], *, known: Sequence[Facts]
    ) -> list[_Planned]:
        """Return what is worth storing for phases to come, each ending before the last one.

        Args:
            own: What the present phase would store.
            thaws: The phases to come.
            known: What is stored already.
        """
        border, planned = own.found.border, list[_Planned]()
        hashed = own.facts["tensors"]
        for coming, found, facts in find_ahead(self._model, self._use, thaws, known=hashed):
            if not border.encloses(found.border):
                break
            border, one = found.border, self._planned(found, facts, coming.phase.name)
            is_known = facts in (*known, *(other.facts for other in planned))
            # batches are answered only when all of their samples are there
            comes_whole = one.found.stored + coming.seen / found.views >= 1
            if not is_known and comes_whole and one.found.pays_ahead:
                planned.append(one)
        return planned

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

    def _store(self, planned: Sequence[_Planned]) -> None:
        """Stand before the frozen calls of all that is planned; the first one ends deepest."""
        with ExitStack() as undo:
            if (inner := self._take_earlier(planned[0])) is not None:
                undo.callback(inner.close)
                earlier = inner.border
                planned = [one for one in planned if one.found.border.encloses(earlier)]
            for one, stores in reversed(list(self._opened(planned, undo))):
                inner = self._prefix(one, inner)
                undo.callback(inner.close)
                self._give_stores(inner, one, stores)
            undo.pop_all()
        if inner is not None:
            self.now = inner

    def _take_earlier(self, own: _Planned) -> StoredPrefix | None:
        """Return the prefix of the phase before, at work, if it helps here; else forget it."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return None
        if (
            # from rounded values others would come than from those of a run that begins here
            self._rounds_to is not None
            or not own.found.border.encloses(earlier.border)
            or earlier.facts != facts_at(self._model, earlier.border, self._use)
        ):
            earlier.close()
            return None
        earlier.as_it_stands().install()
        return earlier

    def _opened(
        self, planned: Sequence[_Planned], undo: ExitStack
    ) -> Iterator[tuple[_Planned, dict[str, Store]]]:
        """Yield what is planned with its stores, by split; but for those ahead without room."""
        for one in planned:
            with ExitStack() as close:
                try:
                    stores = {
                        split: close.enter_context(closing(self._opened_store(one, split)))
                        for split in self._use.splits
                    }
                except StoreError as error:
                    if one.phase is None:
                        raise
                    why = f"nothing is stored for phase {one.phase!r}: {error.in_one_line}"
                    self._use.tell(f"prefix: {why}")
                    continue
                undo.push(close.pop_all())
                yield one, stores

    def _opened_store(self, planned: _Planned, split: str) -> Store:
        samples, about = self._use.splits[split], self._about(planned.facts, split)
        num_rows = len(samples) * (samples.views or 1)
        share = num_rows / planned.found.layout.num_rows
        store = Store.open(
            cache_root(),
            key_of(about),
            planned.found.border.specs,
            num_rows,
            # what is stored ahead is hardly read before its phase
            memory_gb=self._config.memory_gb * share if planned.phase is None else 0,
            disk_gb=self._config.disk_gb,
            store_dtype=self._use.store_dtype,
            facts={"split": split, "up_to": planned.found.up_to, "data": about["data"]},
        )
        for note in store.take_notes():
            self._use.tell(f"prefix: {note}")
        return store

    def _about(self, facts: Facts, split: str) -> Facts:
        """Return all that the rows of a split depend on."""
        if split not in self._fingerprints:
            self._fingerprints[split] = self._use.splits[split].fingerprint()
        return facts_of_split(facts, split) | {
            "data": self._fingerprints[split],
            "batch_size": self._use.batch_sizes[split],
            "store_dtype": self._use.store_dtype,
        }

    def _prefix(self, planned: _Planned, inner: StoredPrefix | None) -> StoredPrefix:
        """Return a prefix at work, still without stores."""
        return StoredPrefix(
            self._model,
            Replay(self._model, planned.found.border, self._rounds_to),
            planned.facts,
            statistics=self.statistics,
            seconds=planned.found.pace.prefix,
            tell=self._use.tell,
            run=self._run,
            inner=inner,
        )

    def _give_stores(
        self, prefix: StoredPrefix, planned: _Planned, stores: Mapping[str, Store]
    ) -> None:
        """Give a prefix its stores."""
        use, network = self._use, network_key(self._model, self._use.facts)
        for split, store in stores.items():
            passes = Passes(
                self._model,
                prefix.replay,
                use.splits[split],
                size=use.batch_sizes[split],
                in_order=split != "train",
                autocast=use.autocast,
                verdicts=store.verdicts(network),
                run=self._run,
            )
            trials = Trials(passes, use.tell if planned.phase is None else _say_nothing)
            with in_mode(self._model, is_training=split == "train"):
                prefix.add(use.splits[split], store, trials, store.sealed())
        use.tell(f"prefix: {_told(planned, prefix)}")


def _say_nothing(_: str) -> None:
    """Keep to ourselves how batches are stored that nobody reads yet."""


def _told(planned: _Planned, prefix: StoredPrefix) -> str:
    """Return what a user should know of a prefix that is stored."""
    found, layout = planned.found, planned.found.layout
    there = sum(store.num_valid for store in prefix.stores)
    size = layout.num_rows * layout.row_bytes / 2**20
    of_size = f"{size:.0f} MiB, {there} of {layout.num_rows} stored already"
    if planned.phase is not None:
        return f"up to {found.up_to} is stored on the way for phase {planned.phase!r} ({of_size})"
    return (
        f"up to {found.up_to} runs once per sample ({of_size}); "
        f"expected to save {found.saving:.0f} s{found.not_further}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
