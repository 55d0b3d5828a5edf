"""Forward passes that only serve the cache: trials and recomputation, without side effects.

The definition of a row is here: the frozen outputs of a sample in a full batch that is padded to
the longest sample of the split. For splits that are always cut in order (validation, test): the
outputs of the sample in its own batch.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from random import SystemRandom

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import Shape, Split, mask_of, shortened, without_padding
from finetune.activations.constants import Constants
from finetune.activations.replay import Replay
from finetune.data.batches import Batch
from finetune.errors import is_out_of_memory
from finetune.preserved import preserved
from finetune.store.verdicts import Verdicts

_FEW = 4
"""Rows recomputed at an opening."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Rows as the network computes them now."""

    rows: Tensor
    """Row numbers `(R,)`."""
    values: dict[str, Tensor]
    """By name of the output, `(R, ...)`, zeros behind the end of each sample."""
    length: int | None
    """Padded length in tokens; None without tokens."""


class Passes:
    """Makes the passes of one split.

    Args:
        model: The network, with the replay installed.
        replay: Records and answers its frozen calls.
        samples: The split.
        size: Samples of a full batch.
        in_order: Whether the split is always cut in the same way, so that a sample always has the
            same neighbours.
        autocast: The number format of the forward pass.
        verdicts: Results of trials, of this process and earlier ones.
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
        """Seconds spent in these passes."""
        self._samples, self._autocast, self._run = samples, autocast, run
        self._constants: dict[str, Constants] = {}

    def shape(self, indices: Tensor) -> Shape:
        """Return the shape of a batch of the samples at `indices`."""
        return Shape.of(self._samples, indices)

    def name_of(self, shape: Shape) -> str:
        """Return the name of a shape in the present mode of the network: the key of its verdict."""
        mode = "training" if self.model.training else "evaluation"
        gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
        return f"{shape}, {mode}, {gradients}"

    def constants(self, shape: Shape) -> Constants:
        """Return the constants of a shape, as far as they are known."""
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
        """Discard cached results whose rows turned out wrong."""
        self.verdicts.forget()
        self._constants.clear()

    @property
    def have_gradients(self) -> bool:
        """Whether to compare gradients: only on a CPU are their bits reproducible."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return torch.is_grad_enabled() and on_cpu and not self.in_order

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Set gradients and autocast for forward passes in the block, and measure its time."""
        began, caches = time.perf_counter(), torch.is_autocast_cache_enabled()
        with torch.set_grad_enabled(self.have_gradients), self._autocast():
            # weights that autocast has cast here must not be reused by the next forward pass
            torch.set_autocast_cache_enabled(False)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caches)
                self.seconds += time.perf_counter() - began

    def run(self, inputs: Mapping[str, Tensor]) -> object:
        """Run the network on copies of the inputs, since it may change them in place."""
        return self._run(**{name: values.clone() for name, values in inputs.items()})

    def in_full_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the rows of a batch's samples in a full batch, `(B, ...)` by name.

        Empty if the network makes other calls than in the trial batch, or if a full batch does not
        fit into memory.
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
        """Return the batch of some samples, padded to the longest of the split, and its rows.

        If the samples of a split differ in length, each such batch has at least one padded sample.
        Networks often drop the mask of a batch without padding, and then compute other bits.
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
        """Return rows as they are read from a store: with zeros behind the end of each sample.

        Args:
            rows: By name of the output; ragged ones as long as the batch, or longer.
            inputs: The columns of the batch.
        """
        stored, mask = self.replay.boundary.stored, mask_of(inputs)
        return {
            name: without_padding(row[:, : mask.shape[1]], inputs)
            if stored[name].ragged and mask is not None
            else row
            for name, row in rows.items()
        }

    def some_recomputed(self, written: Tensor) -> Iterator[Recomputed]:
        """Recompute a few randomly chosen rows of `written`, first cheaply, then decisively.

        The first attempt is a small batch, which mostly gives the same bits. The second is a batch
        of the kind that defines rows.
        """
        first = written[SystemRandom().randrange(len(written))]
        view, index = divmod(int(first), len(self._samples))
        of_view = written[written // len(self._samples) == view] % len(self._samples)
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
        """Run the network on a batch of exactly these samples."""
        shape = self.shape(indices)
        with self.under_way():
            batch = self._samples.fetch(indices, epoch=view)
            batch = batch.to(next(self.model.parameters()).device)
            rows = self._rows_of(batch, shape)
        return self._as_recomputed(batch, rows, shape.length)

    def _recomputed_in_full(self, indices: Tensor, view: int) -> Recomputed:
        """Run the network on these samples, padded to the longest of the split."""
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
        as_before = preserved(self.model, buffers=True, attributes=True, random=0)
        with self.recording(shape) as rows, as_before:
            self.run(batch.inputs)
        return dict(rows)
