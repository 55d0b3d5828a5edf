"""The cache of one split at one boundary: its rows, and what is known of the shapes of its batches.

It answers the frozen calls of a batch with rows, or records them as rows, while the caller runs the
network.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import SAMPLE, Shape, labels_of, lengths_of
from finetune.activations.replay import Constants, Replay
from finetune.activations.verdicts import Verdicts
from finetune.data.batches import Batch, Split
from finetune.store.store import Store, StoreError


@dataclass(slots=True)
class Statistics:
    """What the activation cache did in a run so far, in training and evaluation."""

    answered: int = 0
    """Visits of samples whose frozen prefix was read from a store."""
    recorded: int = 0
    """Visits of samples whose frozen prefix ran and was stored."""
    whole: int = 0
    """Visits of samples in batches that ran and were not read: of a shape that is not exact, or
    with a sample that is skipped."""
    seconds_reading: float = 0.0
    seconds_writing: float = 0.0
    seconds_trying: float = 0.0
    """Spent on trials of batch shapes."""
    seconds_avoided: float = 0.0
    """Time that the frozen prefix would have taken for answered samples."""

    @property
    def seconds_saved(self) -> float:
        """Seconds avoided minus seconds spent on the cache."""
        spent = self.seconds_reading + self.seconds_writing + self.seconds_trying
        return self.seconds_avoided - spent

    def as_data(self) -> dict[str, int | float]:
        """Return all of it as plain data, times rounded to milliseconds."""
        rounded = {name: round(value, 3) for name, value in asdict(self).items()}
        return rounded | {"seconds_saved": round(self.seconds_saved, 3)}


class Runner(NamedTuple):
    """A network and how it is run."""

    model: nn.Module
    run: Callable[..., Any]
    """The network as it is called, itself or compiled."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Makes the autocast context of a forward pass."""
    statistics: Statistics
    """Counts what its passes do with the cache; mutated."""
    tell: Callable[[str], None]
    """Receives a line for the user if something is not cached."""


@dataclass(slots=True, kw_only=True, eq=False)
class SplitCache:
    """The cache of one split at one boundary."""

    samples: Split
    store: Store
    verdicts: Verdicts
    """Results of trials of batch shapes, of this process and earlier ones."""
    replay: Replay
    """Records and answers the frozen calls."""
    runner: Runner
    size: int
    """Samples of a full batch."""
    in_order: bool
    """Whether the split is always cut in the same way, so that a sample keeps its neighbours."""
    prefix_seconds: float
    """Seconds of the frozen prefix for one sample: as probed, then the mean of what was measured.
    The probe used a small batch, which is slower per sample."""
    num_timed: int = 0
    """Samples in that mean."""
    is_ahead: bool = False
    """Whether its rows are for a later phase: nobody has asked about its batches yet."""
    is_full: bool = False
    """Whether nothing more is written: the store is full, or belongs to an earlier phase."""
    has_met_others: bool = False
    """Whether a full batch with other neighbours was tried."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """Names of shapes that are not exact, with the reason, of which the user knows."""
    constants: dict[str, Constants] = field(default_factory=dict)

    def has(self, indices: Tensor, view: int) -> bool:
        """Tell whether all rows of a batch are stored."""
        return bool(self.store.has(self.numbers(indices, view)).all())

    def rows_of(self, indices: Tensor, view: int) -> Tensor | None:
        """Return the row numbers of a batch that can be answered with them, else None.

        It can if its shape is exact, its constants are known and all rows are stored.
        """
        # Cheap questions first: whether rows are there may take a look at all their bytes.
        shape = self.shape(indices)
        name = self.name_of(shape)
        is_exact = name in self.verdicts and self.verdicts[name] is None
        if not is_exact or not self.replay.can_answer(self.constants_of(shape)):
            return None
        return self.numbers(indices, view) if self.has(indices, view) else None

    def numbers(self, indices: Tensor, view: int) -> Tensor:
        """Return the row numbers of a view of the samples at `indices`."""
        return view * len(self.samples) + indices.cpu()

    @contextmanager
    def answering(self, batch: Batch, numbers: Tensor) -> Iterator[None]:
        """Answer the frozen calls in the block with the stored rows of a batch."""
        # The time until the rows are on the device: they are needed there before the pass begins.
        began, shape = time.perf_counter(), self.shape(batch.indices)
        # Rows that were verified when the batch was fetched stay readable, whatever other processes
        # do.
        found = self.store.read(numbers, shape.length if self._is_ragged else None)
        rows = {name: row.to(batch.indices.device) for name, row in found.items()}
        statistics = self.runner.statistics
        statistics.seconds_reading += time.perf_counter() - began
        statistics.seconds_avoided += self.prefix_seconds * len(batch)
        with self.replay.answering(rows, shape, self.constants_of(shape)):
            yield

    @contextmanager
    def recording(self, batch: Batch, *, is_timed: bool) -> Iterator[dict[str, Tensor]]:
        """Record and store the outputs of the frozen calls in the block, which run for real.

        Yields the mapping of rows, filled when the block ends. If `is_timed`, the block runs the
        whole prefix, so that its time counts.
        """
        shape, before = self.shape(batch.indices), self.replay.seconds
        with self.replay.recording(shape, self.constants_of(shape)) as rows:
            yield rows
        if is_timed:
            self.num_timed += len(batch)
            later = self.replay.seconds - before - len(batch) * self.prefix_seconds
            self.prefix_seconds += later / self.num_timed
        self.write(batch, rows)

    def write(self, batch: Batch, rows: Mapping[str, Tensor]) -> None:
        """Store the rows of a batch, `(B, ...)` by name of the output, unless the store is full."""
        if self.is_full or not rows:
            return
        # Splits that are cut in order have rows of whole batches only.
        if batch.skipped and self.in_order:
            return
        # A sample that takes the place of a skipped one must not be stored as the row of that one.
        kept = batch.is_whole if batch.skipped else slice(None)
        began = time.perf_counter()
        if any(column.name == SAMPLE for column in self.store.meta.layout.columns):
            # Rows of a split that is not cut in order are those of a full batch, see `exact.py`.
            shape = self.shape(batch.indices) if self.in_order else None
            rows = {**rows, SAMPLE: labels_of(batch.inputs, self.samples.padded, shape)}
        try:
            self.store.write(
                self.numbers(batch.indices, batch.view)[kept],
                {name: row.cpu()[kept] for name, row in rows.items()},
                lengths_of(batch.inputs).cpu()[kept] if self._is_ragged else None,
            )
        except StoreError as error:
            # Only speed is lost: stored rows are still used, all other samples run.
            self.stop_writing(error.in_one_line)
        self.tell_notes()
        self.runner.statistics.seconds_writing += time.perf_counter() - began

    def stop_writing(self, why: str) -> None:
        """Write no more rows, and tell the user why."""
        self.is_full = True
        self.runner.tell(f"activation cache: nothing more is stored: {why}")

    def tell_notes(self) -> None:
        """Tell the user the new messages of the store."""
        for note in self.store.take_notes():
            self.runner.tell(f"activation cache: {note}")

    @property
    def _is_ragged(self) -> bool:
        return self.store.meta.layout.ragged

    def shape(self, indices: Tensor) -> Shape:
        """Return the shape of a batch of the samples at `indices`."""
        return Shape.of(self.samples, indices)

    def name_of(self, shape: Shape) -> str:
        """Return the name of a shape in the present mode of the network: the key of its verdict."""
        # Kernels may differ by mode and with gradients on or off, so each combination has its own
        # verdict.
        mode = "training" if self.runner.model.training else "evaluation"
        gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
        return f"{shape}, {mode}, {gradients}"

    def was_tried(self, indices: Tensor) -> bool:
        """Tell whether the shape of a batch of the samples at `indices` was tried."""
        return self.name_of(self.shape(indices)) in self.verdicts

    def constants_of(self, shape: Shape) -> Constants:
        """Return the constants of a shape, as far as they are known."""
        name = self.name_of(shape)
        if name not in self.constants:
            self.constants[name] = Constants(name, self.verdicts)
        return self.constants[name]

    def forget(self) -> None:
        """Discard all rows that turned out wrong, and the results of trials with them."""
        self.store.discard()
        # Wrong rows mean that something has changed that the trials depend on too.
        self.verdicts.forget()
        self.constants.clear()

    @property
    def have_gradients(self) -> bool:
        """Whether trials compare gradients: only on a CPU are their bits reproducible."""
        # Splits that are always cut in order are only evaluated, never trained on.
        on_cpu = next(self.runner.model.parameters()).device.type == "cpu"
        return torch.is_grad_enabled() and on_cpu and not self.in_order

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Set gradients and autocast for passes of our own in the block."""
        caches = torch.is_autocast_cache_enabled()
        with torch.set_grad_enabled(self.have_gradients), self.runner.autocast():
            # Autocast keeps the weights that it has cast; the next forward pass must not reuse
            # those of this pass.
            torch.set_autocast_cache_enabled(False)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caches)

    def run(self, inputs: Mapping[str, Tensor]) -> object:
        """Run the network on copies of the inputs, since it may change them in place."""
        return self.runner.run(**{name: values.clone() for name, values in inputs.items()})


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network is on; the CPU for one without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
