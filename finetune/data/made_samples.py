"""Samples that are made as they are fetched: raw values, then the steps of `data.transforms`.

Results of deterministic steps may be kept, see `kept_samples.py`.
Letters: N samples, B in a batch.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import (
    MASK,
    Batch,
    Extent,
    blank_column,
    fingerprint_of,
    seed_for,
    spec_of,
)
from finetune.data.gathered_samples import GatheredSamples
from finetune.data.images import Images
from finetune.data.kept_samples import KeptSamples
from finetune.data.pipeline import as_value, collate
from finetune.data.ragged import Tokens
from finetune.data.samples import Prepared, Sample
from finetune.data.table import DECODED
from finetune.data.transforms import Step
from finetune.data.vision import Vision
from finetune.data.workers import Workers
from finetune.errors import DataError
from finetune.models.declared import TensorSpec
from finetune.randomness import random_state_kept, seed_all

_SIZES_READ = 200
"""Number of image headers to read for their sizes: opening a file takes some 0.1 ms."""


@dataclass(frozen=True, slots=True)
class Making:
    """The steps that make samples, in this order.

    Args:
        once: Deterministic steps before the first random one.
        drawn: Steps from the first random one on.
        batched: Last steps, which run on whole batches and give each image the same bits as alone.
        identity: Text that identifies the steps, for the fingerprint of the data.
        seed: Seed of the random steps.
    """

    once: Sequence[Step] = ()
    drawn: Sequence[Step] = ()
    batched: Sequence[Vision] = ()
    identity: str = ""
    seed: int = 0


class MadeSamples:
    """One split whose samples are made at every fetch, all columns or some of them.

    Args:
        columns: The raw columns of what is made.
        plain: The other columns, which are finished, with the targets.
        making: The steps.
        names: Names of all columns, in the order in which the network takes them; empty where
            only the steps tell what they make.
        views: How many draws of the random steps a sample has: epochs take turns. None for a new
            one in every epoch.
        target: Name of the target; it matters only where the target is made.
        for_loss: Columns among those that are made which the loss takes, and not the network.

    Raises:
        DataError: the first sample cannot be made.
        UnequalShapesError: two samples end in different shapes.
    """

    def __init__(
        self,
        columns: Mapping[str, Prepared],
        plain: GatheredSamples,
        making: Making,
        *,
        names: Sequence[str] = (),
        views: int | None = None,
        target: str | None = None,
        for_loss: Collection[str] = (),
    ) -> None:
        self.name, self.place = plain.name, plain.place
        self.views = views if making.drawn else 1
        self._columns = dict(columns)
        self._plain = plain
        self._making, self._target, self._for_loss = making, target, for_loss
        self._workers: Workers | None = None
        self._kept: KeptSamples | None = None
        self.first_rows = (0, *self._of_other_sizes())
        """The first sample, and for each column of images one of another size, if there is one."""
        # Steps that leave images of different sizes so are told now.
        first = self._samples(torch.tensor(self.first_rows), 0)
        made = {n: spec_of(values[0]) for n, values in collate(first, making.batched).items()}
        both = plain.specs | made
        self.specs: dict[str, TensorSpec] = {
            name: both[name] for name in names or made if name not in for_loss
        }
        self._makes_tokens = MASK in made or any(isinstance(v, Tokens) for v in first[0].values())
        self.is_even = not self._makes_tokens and plain.is_even

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        return tuple(self.specs)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample; None where a step at every fetch makes them, or none."""
        return None if self._makes_tokens else self._plain.longest

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        return not self._makes_tokens and self._plain.is_right_padded

    @property
    def has_shorter(self) -> bool:
        """Whether some samples end before the end of a batch that is as long as they get."""
        return not self._makes_tokens and self._plain.has_shorter

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how long a batch of the samples at `indices` is.

        None without tokens, and where a step that is done at every fetch makes them.
        """
        return None if self._makes_tokens else self._plain.extent(indices)

    def use(self, workers: Workers | None, kept: KeptSamples | None) -> None:
        """Take processes that make batches, and a place for samples after the steps done once."""
        self._workers, self._kept = workers, kept

    def fetch(
        self,
        indices: Tensor | Sequence[int],
        *,
        epoch: int = 0,
        blank: Collection[str] = (),
        length: int | None = None,
    ) -> Batch:
        """Make the samples at `indices` `(B,)`; see `Samples.fetch`."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        view = epoch % self.views if self.views else epoch
        plain = self._plain.fetch(rows, blank=blank, length=length)
        made = self.specs.keys() - plain.inputs
        if made <= set(blank) and not self._for_loss:
            found = {name: blank_column(self.specs[name], len(rows)) for name in made}
        else:
            found = collate(self._samples(rows, view), self._making.batched, self._told(rows))
        found |= plain.inputs
        inputs = {name: found[name] for name in self.specs}
        target, more = self._made_for_loss(found)
        return replace(
            plain,
            inputs=inputs,
            target=plain.target if target is None else target,
            view=view if self.views else 0,
            columns=plain.columns | more,
        )

    def _made_for_loss(
        self, found: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the target and the further columns for the loss among those that were made.

        Raises:
            DataError: a step of the user's own has left one out.
        """
        if lost := next((name for name in self._for_loss if name not in found), None):
            raise DataError(f"a transform leaves out column {lost!r}, which the loss takes")
        made = {name: found[name] for name in self._for_loss}
        return made.pop(self._target or "", None), made

    def fetches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Make one batch after another, by processes where there are any."""
        if self._workers is None:
            yield from (self.fetch(rows, epoch=epoch) for rows in batches)
        else:
            yield from self._workers.fetches(self.fetch, batches, epoch)

    def close(self) -> None:
        """End the processes that make batches, if any; the next fetch starts them again."""
        if self._workers is not None:
            self._workers.close()

    def fingerprint(self) -> str:
        """Hash the raw contents of all columns, targets too, and what the steps are."""
        told = f"{self._plain.fingerprint()} {self._making.identity}"
        return fingerprint_of(self._columns, None, told)

    def _of_other_sizes(self) -> list[int]:
        """Return for each column of images the first one that differs in size from the first."""
        found = []
        for column in self._columns.values():
            if isinstance(column, Images):
                sizes = (column.header(row).size for row in range(min(len(column), _SIZES_READ)))
                first = next(sizes)
                found += [row for row, size in enumerate(sizes, start=1) if size != first][:1]
        return found

    def _told(self, rows: Tensor) -> Callable[[int], str] | None:
        """Return a function that names a sample by its position in the batch; None without one."""
        place = self.place
        return None if place is None else lambda position: place(int(rows[position]))

    def _samples(self, rows: Tensor, view: int) -> list[Sample]:
        """Make the samples at `rows`, all with the draw `view` of the random steps."""
        if not self._making.drawn:
            return [self.made_once(row) for row in rows.tolist()]
        samples = []
        with random_state_kept():
            for row in rows.tolist():
                # Before all steps: what a sample draws depends on nothing that came before it.
                seed_all(seed_for("sample", self._making.seed, view, row))
                sample = self.made_once(row)
                samples.append(self._after(sample, self._making.drawn, row))
        return samples

    @property
    def is_made_once(self) -> bool:
        """Whether a sample may be kept, after the `once` steps or after decoding.

        Not if a step of the user comes next, which takes images of Pillow.
        """
        if self._making.once:
            return True
        has_files = any(isinstance(column, DECODED) for column in self._columns.values())
        following = self._making.drawn[:1]
        return has_files and all(isinstance(step, Vision) for step in following)

    def made_once(self, row: int) -> Sample:
        """Return a sample after the `once` steps, kept or made anew.

        Raises:
            DataError: the sample cannot be made.
        """
        if self._kept is not None and (kept := self._kept.get(row)) is not None:
            return kept
        sample: dict[str, Any] = {}
        try:
            sample = {name: column[row] for name, column in self._columns.items()}
        except DataError as error:
            raise self._placed(error, row) from error
        sample = self._after(sample, self._making.once, row)
        if self.is_made_once:
            # Later steps must see the same types, whether the sample was kept or not.
            sample = {name: as_value(value) for name, value in sample.items()}
        if self._kept is not None:
            self._kept.put(row, sample)
        return sample

    def _after(self, sample: Sample, steps: Sequence[Step], row: int) -> Sample:
        """Return a sample after some steps; errors name its row and file."""
        try:
            for step in steps:
                sample = step(sample)
        except DataError as error:
            raise self._placed(error, row) from error
        return sample

    def _placed(self, error: DataError, row: int) -> DataError:
        """Return an error of the data with row and file of the sample."""
        if self.place is not None:
            error.message += f", in {self.place(row)}"
        return error
