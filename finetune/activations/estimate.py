"""Predict what caching the frozen prefix of a phase costs and saves, or why it cannot be cached."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import why_company_decides, with_digests
from finetune.activations.find.boundary import Boundary, Pace, probe
from finetune.activations.key import Facts, Snapshot, facts_of, take_snapshot
from finetune.activations.rank_agreement import Agreement
from finetune.data.batches import Samples
from finetune.freezing.plan import Phase
from finetune.preserved import preserved
from finetune.store.layout import Layout
from finetune.store.store import StoreError

TOO_FEW = "too few samples are seen in this phase to try it out"
"""Reason for not caching when too few samples are the only objection."""
_TRIAL = 3
"""Samples of a trial batch: two that both batches hold, and one that only one of them holds."""
_SNAPSHOT_SAMPLES = 2
"""Samples of each split whose frozen outputs become part of the key."""
_PASSES = 6
"""Approximate number of forward passes over the trial batch that probing takes."""
_WORTH_TRYING = 10
"""Probing is worth its time if at least this many times its samples are still to come."""
_TRYING_PASSES = 3
"""Approximate number of full batches that trials of batch shapes run besides recording."""
_LEAST_SHARE = 0.02
"""Smallest saving that is worth caching, as a share of the time of all forward passes."""
_READ_BYTES_PER_S = 1e9
_READ_S_PER_SAMPLE = 5e-6
"""Cost of reading a row from a warm store, measured by `benchmarks/store_read.py`."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a run uses its network; the same in all phases."""

    splits: Mapping[str, Samples]
    """Samples by split. Those of `train` are shuffled; all others are always cut in order."""
    batch_sizes: Mapping[str, int]
    """Samples per forward pass, by split."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Makes the autocast context of a forward pass."""
    facts: Mapping[str, str]
    """Further settings that the outputs depend on; part of the key."""
    tell: Callable[[str], None]
    """Receives lines for the user: what is cached or not, and why."""
    store_dtype: str | None
    """Dtype in which floating-point rows are stored; None to store them as computed."""
    is_compiled: bool = False
    """Whether what is not frozen is compiled."""
    not_cached: str | None = None
    """Why nothing is cached, whatever is frozen; None if it may be."""
    reads_inputs: bool = False
    """Whether the loss may read input columns: an imported loss gets the whole batch."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Samples of each split in the run, where `splits` holds only some of them."""
    num_drawn: int | None = None
    """Training samples that epochs draw from; None for all of them."""
    num_draws: int | None = None
    """Draws of an epoch; None for one of each sample that it draws from."""
    agreement: Agreement = field(default_factory=Agreement)
    """How the ranks of the run agree."""

    def size(self, split: str) -> int:
        """Return how many samples of a split the run has."""
        return self.sizes.get(split, len(self.splits[split]))

    @property
    def trained_on(self) -> int:
        """Number of training samples that epochs draw from."""
        return self.size("train") if self.num_drawn is None else self.num_drawn

    @property
    def draws_per_epoch(self) -> float:
        """Mean number of times that an epoch draws each training sample that it draws from."""
        return 1.0 if self.num_draws is None else self.num_draws / max(1, self.trained_on)

    @property
    def is_boundary_needed(self) -> bool:
        """Whether the boundary affects bits even if nothing is cached.

        Then it is probed always, so that a decision about speed changes no result.
        """
        return self.is_compiled or self.store_dtype is not None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Costs and savings of caching the frozen prefix of a phase."""

    boundary: Boundary
    pace: Pace
    trying: float
    """Seconds for trials of batch shapes, if no store has their results."""
    views: int
    """Random views of each sample that are cached; 1 without random transforms."""
    visits: int
    """Visits of each view of a training sample before the mask changes."""
    layout: Layout
    """Layout of a store with the rows of all splits."""
    train_rows: int
    """Rows of the training samples that epochs draw from."""
    draws_per_epoch: float = 1.0
    """Mean number of times that an epoch draws each training sample that it draws from."""
    stored: float = 0.0
    """Share of the training rows that are stored already."""

    @property
    def reading(self) -> float:
        """Seconds to read one row, or to write it."""
        return _READ_S_PER_SAMPLE + self.layout.row_bytes / _READ_BYTES_PER_S

    @property
    def saving(self) -> float:
        """Seconds that caching is expected to save; negative if it would cost time."""
        # The first visit of a new row runs the prefix and writes the row, which takes as long as to
        # read it; all later visits read it.
        new = 1 - self.stored
        again = self.pace.prefix * (self.visits - new)
        spared = self.train_rows * (again - self.reading * self.visits)
        return spared - self.trying * new

    @property
    def pays(self) -> bool:
        """Whether the saving is worth caching."""
        return self.saving > self._noticed

    @property
    def pays_ahead(self) -> bool:
        """Whether storing these rows in the present phase, before their own, saves time."""
        answered = self.visits * (self.pace.prefix - self.reading)
        # Writing takes as long as reading. Each of the two phases tries the shapes of its batches.
        ahead = self.train_rows * (answered - self.reading) - 2 * self.trying
        # If caching pays in the later phase alone, it would fill its store itself: only the
        # difference is gained.
        gain = ahead - max(0.0, replace(self, stored=0.0).saving)
        return gain * (1 - self.stored) > self._noticed

    @property
    def _noticed(self) -> float:
        """Smallest saving in seconds that is worth caching in this phase."""
        return _LEAST_SHARE * self.pace.whole * self.train_rows * self.visits

    def at(self, epochs: float) -> Self:
        """Return this estimate for another number of epochs."""
        return replace(self, visits=_of_each_view(epochs * self.draws_per_epoch, self.views))

    @property
    def why_not(self) -> str:
        """Words for what caching would cost and spare."""
        times = "once" if self.visits == 1 else f"{self.visits} times"
        return (
            f"up to {self.up_to} it runs in {self.pace.prefix * 1e6:.0f} us a sample, of "
            f"{self.pace.whole * 1e6:.0f} for all; reading would take {self.reading * 1e6:.0f} us, "
            f"each sample comes {times}{self.not_further}"
        )

    def of_rank_0(self, agreement: Agreement) -> Self:
        """Return this estimate with the figures of the first rank.

        Each rank has measured other times. If one cached and another one did not, one of them would
        wait for the other at every step.
        """
        own = (self.pace.prefix, self.pace.whole, self.trying, self.stored)
        prefix, whole, trying, stored = agreement.of_rank_0(own)
        return replace(self, pace=Pace(prefix, whole), trying=trying, stored=stored)

    @property
    def not_further(self) -> str:
        """Words for why frozen modules behind the boundary are not cached, if there are any."""
        reasons = self.boundary.reasons
        return f"; not further: {'; '.join(reasons)}" if reasons else ""

    @property
    def up_to(self) -> str:
        """Name of the last module of the frozen prefix."""
        return self.boundary.modules[-1]


def find_estimate(
    model: nn.Module, use: Use, *, epochs: float, anyhow: bool = False
) -> Estimate | str:
    """Probe `model` in its present mask and modes; return an estimate, or why nothing is cached.

    All ranks of the run return one, or none does.

    Args:
        model: The network; left as it was.
        use: What a run does with it.
        epochs: How many are still to come before the mask changes.
        anyhow: Probe also if too few samples are still to come.
    """
    found = _own_estimate(model, use, epochs=epochs, anyhow=anyhow)
    (have_all,) = use.agreement.all_say([isinstance(found, Estimate)])
    # A rank that opens stores would wait for the figures of the others.
    return found if have_all or isinstance(found, str) else "another process can cache nothing"


def _own_estimate(model: nn.Module, use: Use, *, epochs: float, anyhow: bool) -> Estimate | str:
    """Return the estimate of this rank, or why it can cache nothing."""
    train = use.splits["train"]
    if (why := _why_not_probed(model, use, epochs, anyhow=anyhow)) is not None:
        return why
    assert train.views is not None  # else that was the reason
    with use.agreement.gathered():
        boundary, pace = probed(model, train, use)
    if not boundary.stored:
        why = "; ".join(boundary.reasons)
        return f"nothing to store{f' ({why})' if why else ''}"
    # Of the whole run, also where `plan` has only some of its samples at hand.
    num_rows = {name: use.size(name) * (split.views or 1) for name, split in use.splits.items()}
    try:
        layout = Layout.of(with_digests(boundary.specs), sum(num_rows.values()), use.store_dtype)
    except StoreError as error:
        return error.in_one_line
    return Estimate(
        boundary,
        pace,
        trying=_TRYING_PASSES * use.batch_sizes["train"] * pace.whole,
        views=train.views,
        visits=_of_each_view(epochs * use.draws_per_epoch, train.views),
        layout=layout,
        train_rows=use.trained_on * train.views,
        draws_per_epoch=use.draws_per_epoch,
    )


def _why_not_probed(model: nn.Module, use: Use, epochs: float, *, anyhow: bool) -> str | None:
    """Return why nothing is cached, as far as that is known before probing."""
    train = use.splits["train"]
    if use.not_cached is not None:
        return use.not_cached
    if all(parameter.requires_grad for parameter in model.parameters()):
        return "nothing is frozen"
    # The shape of a batch, by which it is answered, must be known before the batch is made.
    if not all(samples.is_even for samples in use.splits.values()):
        return "not stored, how many tokens a sample has is not known beforehand from one column"
    if train.views is None:
        return "not stored, random transforms come before it (views: K would store K draws of each)"
    # The second trial batch needs a sample that is not in the first.
    if len(train) <= _TRIAL or (too_few_come(use, epochs) and not anyhow):
        return TOO_FEW
    return why_company_decides(model, use.splits.values())


def too_few_come(use: Use, epochs: float) -> bool:
    """Tell whether too few samples are drawn before the mask changes to pay for probing.

    False if the boundary affects bits: then it is probed always.
    """
    seen = epochs * use.draws_per_epoch * use.trained_on
    return seen < _WORTH_TRYING * _PASSES * _TRIAL and not use.is_boundary_needed


def _of_each_view(visits: float, views: int) -> int:
    # Each epoch uses the next view of every sample.
    return max(1, round(visits / views))


class Coming(NamedTuple):
    """A later phase."""

    phase: Phase
    seen: float
    """Epochs from now until it begins: the upper limit."""
    lasts: float | None
    """Epochs that it lasts; None if a metric decides, its own or one of an earlier phase."""


def facts_at(
    model: nn.Module, boundary: Boundary, use: Use, *, known: Mapping[str, str] | None = None
) -> Facts:
    """Return all that rows at a boundary depend on besides the data, in the present modes.

    Part of it is a snapshot: hashes of the frozen outputs of a few samples of each split, those of
    `train` in training mode. `known` are fingerprints of tensors that were taken already. The
    network is left as it was.
    """
    seen: dict[str, Snapshot] = {}
    with preserved(model, attributes=True), use.autocast():
        for split, samples in use.splits.items():
            few = _fetched(model, samples, torch.arange(min(_SNAPSHOT_SAMPLES, len(samples))))
            seen[split] = take_snapshot(model, boundary, few, is_training=split == "train")
        # Inside the block, after the pass: modules have filled the attributes that they keep only
        # to save time.
        return facts_of(model, boundary, use.facts, known=known) | {"snapshot": seen}


def facts_of_split(facts: Facts, split: str) -> Facts:
    """Return the part of `facts_at` that the rows of one split depend on."""
    return facts | {"snapshot": facts["snapshot"][split], "split": split}


def probed(model: nn.Module, samples: Samples, use: Use) -> tuple[Boundary, Pace]:
    """Probe the network on the first samples; return its boundary and speed."""
    batch = _fetched(model, samples, torch.arange(_TRIAL))
    # The second batch holds some of the same samples at other positions, and some other samples.
    other = _fetched(model, samples, torch.tensor([2, _TRIAL, 0]))
    with use.autocast():
        boundary, pace = probe(
            model,
            batch,
            other,
            ((2, 0), (0, 2)),
            is_right_padded=all(split.is_right_padded for split in use.splits.values()),
        )
    # A column that no module reads may still be read by the loss.
    if use.reads_inputs:
        boundary = replace(boundary, unread=frozenset())
    return boundary, pace


def _fetched(model: nn.Module, samples: Samples, indices: Tensor) -> Mapping[str, Tensor]:
    device = next(model.parameters()).device
    return samples.fetch(indices, length=samples.longest).to(device).inputs
