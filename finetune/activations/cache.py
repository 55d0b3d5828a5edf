"""The activation cache of a run: opened when a phase begins, closed when it ends.

For each phase it probes the network, estimates the saving, opens a store for each split, and
installs the forward that answers from them; or it says why not. Stores of an earlier phase stay
open while they help: a phase that freezes deeper computes its rows from theirs.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.activations.batch_shapes import with_digests
from finetune.activations.estimate import (
    Coming,
    Estimate,
    Use,
    facts_at,
    facts_of_split,
    find_estimate,
)
from finetune.activations.exact import check_rows
from finetune.activations.forward import (
    CachedBoundary,
    CachedForward,
    Forward,
    UncachedForward,
)
from finetune.activations.key import Facts, network_key, prefix_key
from finetune.activations.replay import Replay
from finetune.activations.split_cache import Runner, SplitCache, Statistics
from finetune.activations.verdicts import Verdicts
from finetune.config.activation_cache import CacheConfig
from finetune.freezing.apply import in_mode, mask_given_back, take_on
from finetune.store.directory import cache_root, key_of
from finetune.store.store import Store, StoreError
from finetune.store.store_folder import folder_of, num_written

_MEMORY_GB = 2.0
"""Most that rows of a phase take in memory where the disk cannot be used."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A boundary whose outputs will be cached."""

    found: Estimate
    facts: Facts
    """What its rows depend on besides the data."""
    phase: str | None = None
    """The later phase that it is recorded for; None for the present phase."""


class ActivationCache:
    """Opens and closes what a phase caches; `now` is the forward that the loop calls.

    Args:
        config: The section `cache` of the config.
        model: The network. While a store is open, `forward` of frozen modules is replaced.
        use: How the run uses it.
    """

    def __init__(self, config: CacheConfig, model: nn.Module, use: Use) -> None:
        # Dynamic shapes: the same compiled code for all batch sizes, whatever the order in which
        # they occur.
        self._run = torch.compile(model, dynamic=True) if use.is_compiled else model
        self.now: Forward = UncachedForward(model, self._run)
        """Fetches batches and runs the network in the present phase."""
        self.statistics = Statistics()
        """What the cache did in the run so far."""
        self._config, self._model, self._use = config, model, use
        self._runner = Runner(model, self._run, use.autocast, self.statistics, use.tell)
        dtype = use.store_dtype if config.use == "auto" else None
        self._rounds_to: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self._earlier: CachedForward | None = None
        self._looks_ahead = True
        """Whether looking for rows of later phases is worth it: False after it found none."""
        self._has_said_why = False
        self._fingerprints: dict[str, str] = {}

    def open(self, epochs: float, thaws: Sequence[Coming] = ()) -> None:
        """Open the cache for the mask and the modes that the network has now.

        Args:
            epochs: How many are still to come before the mask changes.
            thaws: Later phases, each of which only thaws. Their rows are recorded now if that
                saves time, so that no frozen layer runs again after thawing.
        """
        if self._use.is_compiled:
            # Other modules are frozen now, so the code is compiled again. torch limits the number
            # of compiled versions, and old ones would count.
            torch.compiler.reset()
        is_off = self._config.use == "off"
        if (why := self._use.not_cached) is not None:
            # Only once: a policy opens the cache with another mask every few steps.
            if not (is_off or self._has_said_why):
                self._use.tell(f"activation cache: {why}")
            is_off = self._has_said_why = True
        if is_off and not self._use.is_compiled:
            return
        found = find_estimate(self._model, self._use, epochs=epochs)
        if not is_off:
            self._choose(found, thaws)
            if self._use.agreement.has_parts:
                self._leave_unless_equal()
        is_cached = isinstance(self.now, CachedForward)
        # Also where caching does not pay: a decision about speed must not change bits.
        if isinstance(found, Estimate) and self.is_boundary_needed and not is_cached:
            replay = Replay(self._model, found.boundary, self._rounds_to)
            replay.install()
            self.now = UncachedForward(self._model, self._run, replay)

    @property
    def is_boundary_needed(self) -> bool:
        """Whether the boundary affects bits even if nothing is cached."""
        return self._use.is_boundary_needed

    def leave(self) -> None:
        """Run the whole network from now on; keep the stores for a phase that freezes more."""
        if isinstance(self.now, CachedForward):
            # Not closed: if the next phase freezes more, its rows are computed from these.
            self.now.remove()
            self._earlier = self.now
        else:
            self.now.close()
        self.now = UncachedForward(self._model, self._run)

    def close(self) -> None:
        """Close all stores."""
        self.leave()
        if self._earlier is not None:
            self._earlier.close()
        self._earlier = None

    def _choose(self, found: Estimate | str, thaws: Sequence[Coming]) -> None:
        if isinstance(found, str):
            self._use.tell(f"activation cache: {found}")
            return
        with self._use.agreement.gathered():
            self._store_what_pays(found, thaws)

    def _store_what_pays(self, found: Estimate, thaws: Sequence[Coming]) -> None:
        """Open stores for the prefix that was found and for those of later phases, if it pays."""
        try:
            # Looked at first: whether it pays depends on what a run before has stored.
            own = self._planned(found, facts_at(self._model, found.boundary, self._use))
            planned = [own] if own.found.pays else []
            if not planned:
                why = own.found.why_not
                self._use.tell(f"activation cache: not stored, it would not pay: {why}")
            if thaws and self._may_look_ahead(own, is_stored=bool(planned)):
                ahead = self._ahead(own, thaws, known=[one.facts for one in planned])
                planned += ahead
                self._looks_ahead = bool(ahead)
            if planned:
                self._store(planned)
        except StoreError as error:
            self._use.tell(f"activation cache: not stored: {error.in_one_line}")

    def _leave_unless_equal(self) -> None:
        """Cache nothing if another rank, which has a part of the weights, has other stores."""
        cached = self.now if isinstance(self.now, CachedForward) else None
        # The first 48 bits of the key: as many as a double holds for sure.
        own = 0.0 if cached is None else float(int(key_of(cached.boundaries[0].facts)[:12], 16))
        if not self._use.agreement.is_equal(own) and cached is not None:
            self.leave()
            self._use.tell("activation cache: not stored, another process cannot store the same")

    def _planned(self, found: Estimate, facts: Facts, phase: str | None = None) -> _Planned:
        agreement = self._use.agreement
        if not (self._use.splits["train"].is_identified or found.pays):
            # To know whether rows are stored, all files would be read.
            return _Planned(found.of_rank_0(agreement), facts, phase)
        folder = folder_of(cache_root(), key_of(self._about(facts, "train")))
        stored = min(1.0, num_written(folder) / found.train_rows)
        found = replace(found, stored=stored)
        return _Planned(found.of_rank_0(agreement), facts, phase)

    def _may_look_ahead(self, own: _Planned, *, is_stored: bool) -> bool:
        """Tell whether to look for activations of later phases that this phase can store.

        False if the last search found none, if all training activations of this phase are stored
        already, or if storing might change results: with stored values of lower precision, or where
        the boundary affects bits and this phase stores nothing for itself (`is_stored`).
        """
        # If rows are rounded, a later phase would compute other values from these rows than from
        # its own.
        changes_no_bit = self._rounds_to is None and (is_stored or not self._use.is_boundary_needed)
        return self._looks_ahead and changes_no_bit and own.found.stored < 1

    def _ahead(
        self, own: _Planned, thaws: Sequence[Coming], *, known: Sequence[Facts]
    ) -> list[_Planned]:
        """Return what is worth recording for later phases, each boundary within the one before.

        Later phases here only thaw: whatever trains before such a phase trains in it as well. So
        its frozen prefix is frozen now too and gives the same values; whether it does in the modes
        of both phases is checked. `known` are the facts of what is cached already.
        """
        boundary, planned = own.found.boundary, list[_Planned]()
        # Hashing all weights takes long. A tensor that is frozen in both phases has the same hash.
        hashed = dict(own.facts["tensors"])
        for coming in thaws:
            with mask_given_back(self._model):
                take_on(self._model, coming.phase.frozen, coming.phase.modules)
                # Nobody knows how long a phase lasts that a metric ends: one epoch promises little.
                epochs = coming.lasts or 1.0
                found = find_estimate(self._model, self._use, epochs=epochs, anyhow=True)
                # In order: behind a phase that cannot be cached none is looked at.
                if isinstance(found, str):
                    break
                then = facts_at(self._model, found.boundary, self._use, known=hashed)
            hashed |= then["tensors"]
            is_same = then == facts_at(self._model, found.boundary, self._use, known=hashed)
            is_inside = boundary.encloses(found.boundary)
            # All ranks pass over the same phases: each waits for the figures of rank 0.
            is_same, is_inside = self._use.agreement.all_say([is_same, is_inside])
            if not is_same:
                continue
            if not is_inside:
                break
            boundary, one = found.boundary, self._planned(found, then, coming.phase.name)
            is_known = then in (*known, *(other.facts for other in planned))
            # A batch is answered only if all its rows are stored, so all of them must be recorded
            # before.
            comes_whole = one.found.stored + coming.seen / found.views >= 1
            if not is_known and comes_whole and one.found.pays_ahead:
                planned.append(one)
        return planned

    def _store(self, planned: Sequence[_Planned]) -> None:
        """Open the stores of all plans and install them; the first boundary is the deepest."""
        boundaries: list[CachedBoundary] = []
        # If anything fails, modules get their own `forward` back and locks are released.
        with ExitStack() as undo:
            if (earlier := self._take_earlier(planned[0])) is not None:
                undo.callback(earlier.close)
                undo.callback(earlier.replay.remove)
                earlier.replay.install()
                boundaries = [earlier]
                inner = earlier.replay.boundary
                planned = [one for one in planned if one.found.boundary.encloses(inner)]
            # The deepest first: the present phase gets its room before later ones.
            opened = [(one, found) for one in planned if (found := self._opened(one, undo))]
            # In order from the input: each is installed around those that lie inside it.
            for one, boundary in reversed(opened):
                undo.callback(boundary.replay.remove)
                boundary.replay.install()
                for name, split in boundary.splits.items():
                    # In the mode in which its rows will be used.
                    with in_mode(self._model, is_training=name == "train"):
                        check_rows(split, split.store.written())
                self._use.tell(f"activation cache: {_told(one, boundary)}")
                boundaries.insert(0, boundary)
            undo.pop_all()
        if boundaries:
            self.now = CachedForward(self._runner, boundaries, self._use.agreement)

    def _take_earlier(self, own: _Planned) -> CachedBoundary | None:
        """Return the cache of the phase before if it helps here; else close it."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return None
        # Its phase is over. What it kept for later phases is opened anew where it is needed.
        deepest, *others = earlier.boundaries
        for other in others:
            other.close()
        # Its rows must be equal to those that this phase would compute; modes may have changed.
        if (
            # If it answered a batch on one rank alone, that one and the others would wait.
            self._use.agreement.has_parts
            # From rounded rows other values follow than in a run that begins in this phase.
            or self._rounds_to is not None
            or not own.found.boundary.encloses(deepest.replay.boundary)
            or deepest.facts != facts_at(self._model, deepest.replay.boundary, self._use)
        ):
            deepest.close()
            return None
        # Rows that it lacks are recorded by the cache of this phase.
        for split in deepest.splits.values():
            split.is_full = True
        return deepest

    def _opened(self, planned: _Planned, undo: ExitStack) -> CachedBoundary | None:
        """Open the stores of all splits until `undo` is closed.

        Returns None for a later phase whose stores do not fit.
        """
        replay = Replay(self._model, planned.found.boundary, self._rounds_to)
        boundary = CachedBoundary(replay, planned.facts, {})
        undo.callback(boundary.close)
        network = network_key(self._model, self._use.facts)
        try:
            prefix = prefix_key(self._model, planned.facts)
            for split in self._use.splits:
                store = self._opened_store(planned, split, prefix)
                boundary.splits[split] = SplitCache(
                    samples=self._use.splits[split],
                    store=store,
                    verdicts=Verdicts(store.verdicts, network),
                    replay=replay,
                    runner=self._runner,
                    size=self._use.batch_sizes[split],
                    in_order=split != "train",
                    prefix_seconds=planned.found.pace.prefix,
                    is_ahead=planned.phase is not None,
                )
        except StoreError as error:
            # Rows of a later phase are optional; those of the present phase are not.
            if planned.phase is None:
                raise
            boundary.close()
            why = f"nothing is stored for phase {planned.phase!r}: {error.in_one_line}"
            self._use.tell(f"activation cache: {why}")
            return None
        return boundary

    def _opened_store(self, planned: _Planned, split: str, prefix: str) -> Store:
        samples, about = self._use.splits[split], self._about(planned.facts, split)
        # Rounded rows answer for no sample in another run, which may use them unrounded.
        label = {} if self._rounds_to is not None else {"prefix": prefix}
        num_rows = len(samples) * (samples.views or 1)
        share = num_rows / planned.found.layout.num_rows
        # Rows of a later phase are hardly read before it begins, so they get no memory.
        memory_gb = min(_MEMORY_GB, self._config.disk_gb) if planned.phase is None else 0.0
        return Store.open(
            cache_root(),
            key_of(about),
            with_digests(planned.found.boundary.specs),
            num_rows,
            memory_gb=memory_gb * share,
            disk_gb=self._config.disk_gb,
            store_dtype=self._use.store_dtype,
            facts={"split": split, "up_to": planned.found.up_to, "data": about["data"], **label},
        )

    def _about(self, facts: Facts, split: str) -> Facts:
        """Return all that the rows of a split depend on: the store's key is its hash."""
        # Kept, since hashing the data takes long and it does not change within a run.
        if split not in self._fingerprints:
            samples = self._use.splits[split]
            # Contents decide which rows are used: every file is hashed, if none was before.
            samples.identify(lambda line: self._use.tell(f"activation cache: {line}"))
            self._fingerprints[split] = samples.fingerprint()
        return facts_of_split(facts, split) | {
            "data": self._fingerprints[split],
            "batch_size": self._use.batch_sizes[split],
            "store_dtype": self._use.store_dtype,
        }


def _told(planned: _Planned, boundary: CachedBoundary) -> str:
    """Return the line for the user about an opened cache."""
    found, layout = planned.found, planned.found.layout
    there = sum(split.store.num_valid for split in boundary.splits.values())
    size = layout.num_rows * layout.row_bytes / 2**20
    of_size = f"{size:.0f} MiB, {there} of {layout.num_rows} stored already"
    if planned.phase is not None:
        return f"up to {found.up_to} is stored on the way for phase {planned.phase!r} ({of_size})"
    return (
        f"up to {found.up_to} runs once per sample ({of_size}); "
        f"expected to save {found.saving:.0f} s{found.not_further}"
    )
