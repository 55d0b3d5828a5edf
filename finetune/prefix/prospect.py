"""What storing the prefix of a phase would mean: its costs and savings, or why there is none."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from finetune.data.loader import Samples
from finetune.freezing.apply import mask_given_back, take_on
from finetune.freezing.plan import Phase
from finetune.prefix.key import Facts, facts_of
from finetune.prefix.probe import Border, Pace, probe
from finetune.prefix.state import as_it_was
from finetune.prefix.witness import Witness, take_witness
from finetune.store.layout import Layout
from finetune.store.store import StoreError

TOO_FEW = "too few samples are seen in this phase to try it out"
"""Why there is no prospect, where few samples are all that speaks against one."""
_TRIAL = 4
"""Samples of a trial batch."""
_WITNESSES = 2
"""Samples of each split that bear witness."""
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
    reads_inputs: bool = False
    """Whether the loss may read input columns: one of the user's own is given the batch."""

    @property
    def is_border_needed(self) -> bool:
        """Whether bits depend on where the prefix ends, stored or not.

        Then it must not matter when that was found out, or whether a store pays.
        """
        return self.is_compiled or self.store_dtype is not None


@dataclass(frozen=True, slots=True)
class Prospect:
    """What storing the prefix of a phase would mean."""

    border: Border
    pace: Pace
    trying: float
    """Seconds to find out which batches are exact, where no store has it from before."""
    views: int
    """Views that each sample has."""
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
        return self.saving > self._noticed

    @property
    def pays_ahead(self) -> bool:
        """Whether much more is saved if passes before its phase fill the store, as they go."""
        answered = self.visits * (self.pace.prefix - self.reading)
        # writing takes as long as reading; each of the two phases tries its batches
        ahead = self.train_rows * (answered - self.reading) - 2 * self.trying
        gain = ahead - max(0.0, replace(self, stored=0.0).saving)
        return gain * (1 - self.stored) > self._noticed

    @property
    def _noticed(self) -> float:
        """Seconds that would be noticed in the phase."""
        return _LEAST_SHARE * self.pace.whole * self.train_rows * self.visits

    def at(self, visits: float) -> Self:
        """Return the same where each sample is seen that often."""
        return replace(self, visits=_of_each_view(visits, self.views))

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
    if not all(samples.is_even for samples in use.splits.values()):
        return "not stored, how many tokens a sample has is not known beforehand from one column"
    if train.views is None:
        return "not stored, random transforms come before it (views: K would store K draws of each)"
    if len(train) <= _TRIAL or (too_few_come(use, visits) and not anyhow):
        return TOO_FEW
    border, pace = _probed(model, train, use)
    if not border.stored:
        why = "; ".join(border.reasons)
        return f"nothing to store{f' ({why})' if why else ''}"
    num_rows = {name: len(samples) * (samples.views or 1) for name, samples in use.splits.items()}
    try:
        layout = Layout.of(border.specs, sum(num_rows.values()), use.store_dtype)
    except StoreError as error:
        return error.in_one_line
    return Prospect(
        border,
        pace,
        trying=_TRYING_PASSES * use.batch_sizes["train"] * pace.whole,
        views=train.views,
        visits=_of_each_view(visits, train.views),
        layout=layout,
        train_rows=num_rows["train"],
    )


def too_few_come(use: Use, visits: float) -> bool:
    """Tell whether samples come too seldom before the mask changes to gain what a trial takes.

    Where bits depend on the border, it is tried all the same.
    """
    seen = visits * len(use.splits["train"])
    return seen < _WORTH_TRYING * _PASSES * _TRIAL and not use.is_border_needed


def _of_each_view(visits: float, views: int) -> int:
    return max(1, round(visits / views))


class Coming(NamedTuple):
    """A phase to come."""

    phase: Phase
    seen: float
    """Passes over the training samples made before it begins, from now: the most that can be."""
    lasts: float | None
    """Those that it makes itself; None where only a metric can tell, its own or an earlier one."""


def facts_at(
    model: nn.Module, border: Border, use: Use, *, known: Mapping[str, str] | None = None
) -> Facts:
    """Return what the values at a border depend on but for the data, in the present modes.

    A few samples of each split bear witness, those of `train` in training mode.

    Args:
        model: The network; left as it was.
        border: Where its prefix ends.
        use: What a run does with it.
        known: Fingerprints taken before that are to stand for what parameters and buffers hold.
    """
    seen: dict[str, Witness] = {}
    with as_it_was(model), use.autocast():
        for split, samples in use.splits.items():
            few = _fetched(model, samples, torch.arange(min(_WITNESSES, len(samples))))
            seen[split] = take_witness(model, border, few, is_training=split == "train")
        # inside the block: modules have filled what they only keep to save time
        return facts_of(model, border, use.facts, known=known) | {"witness": seen}


def facts_of_split(facts: Facts, split: str) -> Facts:
    """Return what the values of one split depend on, of what `facts_at` has given."""
    return facts | {"witness": facts["witness"][split], "split": split}


def find_ahead(
    model: nn.Module, use: Use, thaws: Iterable[Coming], *, known: Mapping[str, str]
) -> Iterator[tuple[Coming, Prospect, Facts]]:
    """Yield what it would mean to store the prefixes of phases to come, in passes of this one.

    Whatever trains until such a phase, trains in it as well. So its prefix, which depends on
    nothing that trains in it, gives the same values now; that it does in the modes of both is
    tried.

    Args:
        model: The network; left as it was.
        use: What a run does with it.
        thaws: Phases to come, each of which only thaws.
        known: Fingerprints of parameters and buffers, as far as they were taken just now.

    Yields:
        The phase, the prospect, and what the values at its border depend on, now as then.
    """
    for coming in thaws:
        with mask_given_back(model):
            take_on(model, coming.phase.frozen, coming.phase.modules)
            found = find_prospect(model, use, visits=coming.lasts or 1.0, anyhow=True)
            if isinstance(found, str):
                return
            then = facts_at(model, found.border, use, known=known)
        known = {**known, **then["tensors"]}
        if then == facts_at(model, found.border, use, known=known):
            yield coming, found, then


def _probed(model: nn.Module, samples: Samples, use: Use) -> tuple[Border, Pace]:
    """Probe with the first samples; return the border and how fast the network runs."""
    batch = _fetched(model, samples, torch.arange(_TRIAL))
    # Some of them again, in other places and other company.
    other = _fetched(model, samples, torch.tensor([2, _TRIAL, 0, 1]))
    with use.autocast():
        border, pace = probe(
            model,
            batch,
            other,
            ((2, 0), (0, 2), (1, 3)),
            is_right_padded=all(split.is_right_padded for split in use.splits.values()),
        )
    if use.reads_inputs:
        border = replace(border, unread=frozenset())
    return border, pace


def _fetched(model: nn.Module, samples: Samples, indices: Tensor) -> Mapping[str, Tensor]:
    device = next(model.parameters()).device
    return samples.fetch(indices, length=samples.longest).to(device).inputs
