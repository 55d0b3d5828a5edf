"""Forward passes of a split that are made for the sake of its store, and leave no trace.

What a row is, is defined here: what the network gives a sample in a full batch, filled up to the
longest sample there is; or in its own batch, where a split is always cut in one way.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from random import SystemRandom

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch
from finetune.errors import is_out_of_memory
from finetune.prefix.constants import Constants
from finetune.prefix.replay import Replay
from finetune.prefix.shapes import Shape, Split, mask_of, shortened, without_padding
from finetune.prefix.state import undisturbed
from finetune.store.verdicts import Verdicts

_FEW = 4
"""Rows recomputed at an opening."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Rows of a store as the network gives them now."""

    rows: Tensor
    """Their numbers `(R,)`."""
    values: dict[str, Tensor]
    """By name of the output, `(R, ...)`, zeros behind the end of every sample."""
    length: int | None
    """Tokens they are filled up to, where there are tokens."""


class Passes:
    """The passes of one split.

    Args:
        model: The network, with the replay installed.
        replay: Records and answers its frozen calls.
        samples: The split.
        size: Samples of a full batch.
        in_order: Whether the split is cut in one and the same way every time, so that a sample
            never meets other company.
        autocast: The number format of the forward pass.
        verdicts: What is known of shapes, by this process or one before it.
        run: The network as it is called, itself or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        replay: Replay,
        samples: Split,
        *,
        size: int,
        in_order: bool,
        autocast: Callable[[], AbstractContextManager[object]],
        verdicts: Verdicts,
        run: Callable[..., object],
    ) -> None:
        self.model, self.replay, self.verdicts = model, replay, verdicts
        self.size, self.in_order = size, in_order
        self.seconds = 0.0
        """Time that they have taken."""
        self._samples, self._autocast, self._run = samples, autocast, run
        self._constants: dict[str, Constants] = {}

    def shape(self, indices: Tensor) -> Shape:
        """Return the shape of a batch of the samples at `indices`."""
        return Shape.of(self._samples, indices)

    def name_of(self, shape: Shape) -> str:
        """Name a shape in the present mode of the network."""
        mode = "training" if self.model.training else "evaluation"
        gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
        return f"{shape}, {mode}, {gradients}"

    def constants(self, shape: Shape) -> Constants:
        """Return what is the same in every batch of a shape, as far as it is known."""
        name = self.name_of(shape)
        if name not in self._constants:
            self._constants[name] = Constants(name, self.verdicts)
        return self._constants[name]

    def recording(self, shape: Shape) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Run frozen calls of a batch of a shape for real; see `Replay.recording`."""
        return self.replay.recording(shape, self.constants(shape))

    def answering(self, rows: Mapping[str, Tensor], shape: Shape) -> AbstractContextManager[None]:
        """Answer frozen calls of a batch of a shape with `rows`; see `Replay.answering`."""
        return self.replay.answering(rows, shape, self.constants(shape))

    def forget(self) -> None:
        """Forget what was found: what rests on no better ground than it has turned out wrong."""
        self.verdicts.forget()
        self._constants.clear()

    @property
    def have_gradients(self) -> bool:
        """Whether gradients are to be compared: on a CPU they have the same bits every time."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return torch.is_grad_enabled() and on_cpu and not self.in_order

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Set the block up for forward passes of the split."""
        began, caches = time.perf_counter(), torch.is_autocast_cache_enabled()
        with torch.set_grad_enabled(self.have_gradients), self._autocast():
            # Weights that were cast here must not serve the forward pass that comes next.
            torch.set_autocast_cache_enabled(False)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caches)
                self.seconds += time.perf_counter() - began

    def run(self, inputs: Mapping[str, Tensor]) -> object:
        """Run the network on a copy of inputs, which it may change in place."""
        return self._run(**{name: values.clone() for name, values in inputs.items()})

    def in_full_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rows of the samples of a batch, `(B, ...)` by name.

        Empty where the network does not treat it as it treated the trial batch, or where memory
        does not hold a full batch beside this one.
        """
        indices = batch.indices.cpu()[torch.arange(self.size) % len(batch)]
        try:
            with self.under_way():
                _, rows = self.full_rows(indices, batch.view)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {}
        return {name: row[: len(batch)] for name, row in rows.items()}

    def full_rows(self, indices: Tensor, view: int) -> tuple[Batch, dict[str, Tensor]]:
        """Return the batch of some samples, filled up to the longest there is, and its rows.

        Wherever samples are of different lengths, one that is filled up is part of every such
        batch: else the longest ones might have other bits among themselves than among others.
        """
        device, longest = next(self.model.parameters()).device, self._samples.longest
        batch = self._samples.fetch(indices, epoch=view, length=longest).to(device)
        shape = Shape.of(self._samples, indices, longest)
        is_alone = len(batch) == 1 or not self._samples.has_shorter
        if is_alone or shape.is_padded or mask_of(batch.inputs) is None:
            return batch, self._rows_of(batch, shape)
        shape = shape._replace(is_padded=True)
        rows = self._rows_of(shortened(batch, -1), shape)
        last = self._rows_of(shortened(batch, 0), shape)
        if rows.keys() != last.keys():
            return batch, {}
        return batch, {name: torch.cat([row[:-1], last[name][-1:]]) for name, row in rows.items()}

    def as_stored(
        self, rows: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return rows as a store gives them back to a batch: with zeros behind the end of each.

        Args:
            rows: By name of the output, ragged ones as long as the batch or longer.
            inputs: The columns of the batch.
        """
        stored, mask = self.replay.border.stored, mask_of(inputs)
        return {
            name: without_padding(row[:, : mask.shape[1]], inputs)
            if stored[name].ragged and mask is not None
            else row
            for name, row in rows.items()
        }

    def some_recomputed(self, sealed: Tensor) -> Iterator[Recomputed]:
        """Yield a few of the rows `sealed`, other ones at every call, as they are now.

        First as a batch of their own, which takes the least and mostly gives the same bits; then
        in a batch like those that rows are taken from, which decides.
        """
        first = sealed[SystemRandom().randrange(len(sealed))]
        view, index = divmod(int(first), len(self._samples))
        of_view = sealed[sealed // len(self._samples) == view] % len(self._samples)
        few = of_view[SystemRandom().choices(range(len(of_view)), k=_FEW)]
        if self.in_order:
            yield self._recomputed(few, view)
            start = index // self.size * self.size
            cut = torch.arange(start, min(start + self.size, len(self._samples)))
            yield self._recomputed(cut, view)
        else:
            yield self._recomputed_in_full(few, view)
            yield self._recomputed_in_full(few[torch.arange(self.size) % _FEW], view)

    def _recomputed(self, indices: Tensor, view: int) -> Recomputed:
        """Run the network for samples, as they are when nothing but they is there."""
        shape = self.shape(indices)
        with self.under_way():
            batch = self._samples.fetch(indices, epoch=view)
            batch = batch.to(next(self.model.parameters()).device)
            rows = self._rows_of(batch, shape)
        return self._as_recomputed(batch, rows, shape.length)

    def _recomputed_in_full(self, indices: Tensor, view: int) -> Recomputed:
        """Run the network for samples, filled up to the longest."""
        with self.under_way():
            batch, rows = self.full_rows(indices, view)
        return self._as_recomputed(batch, rows, self._samples.longest)

    def _as_recomputed(
        self, batch: Batch, rows: Mapping[str, Tensor], length: int | None
    ) -> Recomputed:
        values = {name: row.cpu() for name, row in self.as_stored(rows, batch.inputs).items()}
        numbers = batch.view * len(self._samples) + batch.indices.cpu()
        return Recomputed(numbers, values, length)

    def _rows_of(self, batch: Batch, shape: Shape) -> dict[str, Tensor]:
        with self.recording(shape) as rows, undisturbed(self.model, seed=0):
            self.run(batch.inputs)
        return dict(rows)
