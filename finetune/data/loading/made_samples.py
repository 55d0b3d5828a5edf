"""Samples that are made as they are fetched: raw values, then the steps of `data.transforms`.

Results of deterministic steps may be kept, see `kept_samples.py`.
Letters: N samples, B in a batch.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from finetune.data.batches import (
    MASK,
    Batch,
    Extent,
    blank_column,
    fingerprint_of,
    spec_of,
)
from finetune.data.kept_samples import KeptSamples
from finetune.data.loading.gathered_samples import GatheredSamples
from finetune.data.loading.padding import padded_images
from finetune.data.loading.sample_maker import Making, SampleMaker
from finetune.data.loading.workers import Workers
from finetune.data.ragged import Tokens
from finetune.data.samples import Prepared, Sample
from finetune.data.steps.pipeline import finished_batch, stacked
from finetune.errors import DataError
from finetune.models.declared import TensorSpec


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
        # Without a random step all views of a sample are equal, however many are asked for.
        self.views = views if making.drawn else 1
        self._plain = plain
        self._making, self._target, self._for_loss = making, target, for_loss
        self._workers: Workers | None = None
        self.skipped: dict[int, str] = {}
        self.maker = SampleMaker(columns, making, self.name, self.place)
        # Steps that leave images of different sizes so are told now.
        rows = self.maker.first_rows
        first = self.maker.made(torch.tensor(rows), 0).samples
        self._waiting = {step.column for step in making.batched}
        """Columns that are finished on whole batches."""
        images = self._stacked(first, self._told(torch.tensor(rows)))
        stack = finished_batch(images, making.batched)
        made = {name: spec_of(values[0]) for name, values in stack.items()}
        both = plain.specs | made
        self.specs: dict[str, TensorSpec] = {
            name: both[name] for name in names or made if name not in for_loss
        }
        self._makes_tokens = MASK in made or any(isinstance(v, Tokens) for v in first[0].values())
        self.is_even = not self._makes_tokens and plain.is_even

    def __len__(self) -> int:
        return len(self.maker)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of a batch's columns, in order."""
        return tuple(self.specs)

    @property
    def padded(self) -> frozenset[str]:
        """Names of the columns that a batch pads; none where a step at every fetch makes tokens."""
        return frozenset() if self._makes_tokens else self._plain.padded

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sample; None where a step at every fetch makes them, or none."""
        return None if self._makes_tokens else self._plain.longest

    @cached_property
    def image_sizes(self) -> frozenset[tuple[int, int]] | None:
        """Sizes of images that a batch pads to its largest; see `Samples.image_sizes`."""
        return self.maker.image_sizes() if self._making.pads else frozenset()

    @property
    def is_right_padded(self) -> bool:
        """Whether the mask of every batch is ones up to the end of a sample, then zeros."""
        return not self._makes_tokens and self._plain.is_right_padded

    @property
    def has_shorter(self) -> bool:
        """Whether some samples end before the end of a batch that is as long as they get."""
        return not self._makes_tokens and self._plain.has_shorter

    def extent(self, indices: Tensor) -> Extent | None:
        """Return how many tokens the samples at `indices` have in a batch: padded, least, most.

        None without tokens, and where a step that is done at every fetch makes them.
        """
        return None if self._makes_tokens else self._plain.extent(indices)

    def lengths(self, indices: Tensor) -> Tensor | None:
        """Return how many tokens each of the samples has `(B,)`; None where `extent` is None."""
        return None if self._makes_tokens else self._plain.lengths(indices)

    @property
    def first_row(self) -> int:
        """Position of the first sample that can be made."""
        return self.maker.first_rows[0]

    def use(self, workers: Workers | None, kept: KeptSamples | None) -> None:
        """Make batches by these processes from now on, and keep samples in `kept`.

        Args:
            workers: The processes; None to make batches in this one.
            kept: Keeps samples after the steps that are done once; None to make them every time.
        """
        self._workers = workers
        self.maker.keep_in(kept)

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
        made = self.specs.keys() - set(self._plain.inputs)
        # The activation cache answers such a batch: then no file is opened at all.
        if made <= set(blank) and not self._for_loss:
            plain = self._plain.fetch(rows, blank=blank, length=length)
            found = {name: blank_column(self.specs[name], len(rows)) for name in made}
            inputs = {name: (found | plain.inputs)[name] for name in self.specs}
            return replace(plain, inputs=inputs, view=self._view(epoch) if self.views else 0)
        return self._finished(self._made(rows, epoch, blank, length))

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

    def unfinished(self, rows: Tensor, *, epoch: int) -> Batch:
        """Make a batch, but for the steps on whole batches: images are bytes, so it is small."""
        return self._made(rows, epoch)

    def fetches(
        self, batches: Sequence[Tensor], epoch: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Make one batch after another, by processes where there are any."""
        if self._workers is None:
            made = (self.unfinished(rows, epoch=epoch) for rows in batches)
        else:
            made = self._workers.fetches(self.unfinished, batches, epoch)
        # Bytes go to the device, a quarter of what floats would take; there the last steps run.
        with closing(made):
            for batch in made:
                yield self._finished(batch.to(device))

    def _made(
        self, rows: Tensor, epoch: int, blank: Collection[str] = (), length: int | None = None
    ) -> Batch:
        """Return a batch before the steps on whole batches."""
        view = self._view(epoch)
        made = self.maker.made(rows, view)
        # What stands in the place of another sample brings its own target and other columns.
        plain = self._plain.fetch(made.rows, blank=blank, length=length)
        inputs = self._stacked(made.samples, self._told(made.rows)) | plain.inputs
        view = view if self.views else 0
        return replace(plain, inputs=inputs, indices=rows, view=view, skipped=made.skipped)

    def _stacked(
        self, samples: Sequence[Sample], told: Callable[[int], str] | None = None
    ) -> dict[str, Tensor]:
        """Return samples as one tensor a column; images of different sizes are padded if asked."""
        if not self._making.pads:
            return stacked(samples, self._waiting, told)
        padded = padded_images(samples, told or "sample {} of the batch".format)
        others = [{n: v for n, v in sample.items() if n not in padded} for sample in samples]
        found = stacked(others, self._waiting, told) | padded
        return {name: found[name] for name in samples[0]}

    def _finished(self, batch: Batch) -> Batch:
        """Return a batch after the steps on whole batches, its columns in order."""
        # Noted here, in the run's own process: the batch may come from another one.
        self.skipped.update(batch.skipped)
        found = finished_batch(batch.inputs, self._making.batched)
        target, more = self._made_for_loss(found)
        return replace(
            batch,
            inputs={name: found[name] for name in self.specs},
            target=batch.target if target is None else target,
            columns=batch.columns | more,
        )

    def _view(self, epoch: int) -> int:
        """Return the number of the draw that an epoch sees."""
        return epoch % self.views if self.views else epoch

    def close(self) -> None:
        """End the processes that make batches, if any; the next fetch starts them again."""
        if self._workers is not None:
            self._workers.close()

    @property
    def is_identified(self) -> bool:
        """Whether the contents of all files are known, so that `fingerprint` reads none."""
        return all(known is not None and known.is_complete for known in self.maker.contents)

    def identify(self, tell: Callable[[str], None]) -> None:
        """Read all files whose contents are not known yet; `tell` receives lines for the user."""
        for known in self.maker.contents:
            if known is not None:
                known.complete(tell)

    def fingerprint(self) -> str:
        """Hash the raw contents of all columns, targets too, and what the steps are."""
        # Raw columns and steps stand for the samples: to make all of them would take an epoch.
        told = f"{self._plain.fingerprint()} {self._making.identity}"
        return fingerprint_of(self.maker.columns, None, told)

    def _told(self, rows: Tensor) -> Callable[[int], str] | None:
        """Return a function that names a sample by its position in the batch; None without one."""
        place = self.maker.image_name or self.place
        return None if place is None else lambda position: place(int(rows[position]))
