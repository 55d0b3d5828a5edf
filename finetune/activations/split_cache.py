"""The cache of one split: its rows, and what is known of the shapes of its batches."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import SAMPLE, Shape
from finetune.activations.replay import Constants, Replay
from finetune.data.batches import Split
from finetune.store.store import Store
from finetune.store.verdicts import Verdicts


class Runner(NamedTuple):
    """A network and how it is run."""

    model: nn.Module
    run: Callable[..., Any]
    """The network as it is called, itself or compiled."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Makes the autocast context of a forward pass."""


@dataclass(slots=True, kw_only=True, eq=False)
class SplitCache:
    """The cache of one split."""

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
    tell: Callable[[str], None]
    """Receives a line for each shape that is not exact."""
    is_full: bool = False
    """Whether nothing more is written: the store is full, or belongs to an earlier phase."""
    seconds: float = 0.0
    """Seconds spent in passes that only serve the cache."""
    has_met_others: bool = False
    """Whether a full batch with other neighbours was tried."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """Names of shapes that are not exact, with the reason, of which the user knows."""
    constants: dict[str, Constants] = field(default_factory=dict)

    @property
    def keeps_digests(self) -> bool:
        """Whether the store keeps a digest of each sample beside its row."""
        return any(column.name == SAMPLE for column in self.store.meta.layout.columns)

    def numbers(self, indices: Tensor, view: int) -> Tensor:
        """Return the row numbers of a view of the samples at `indices`."""
        return view * len(self.samples) + indices.cpu()

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

    def recording(self, shape: Shape) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Run frozen calls of a batch of a shape for real; see `Replay.recording`."""
        return self.replay.recording(shape, self.constants_of(shape))

    def answering(self, rows: Mapping[str, Tensor], shape: Shape) -> AbstractContextManager[None]:
        """Answer frozen calls of a batch of a shape with `rows`; see `Replay.answering`."""
        return self.replay.answering(rows, shape, self.constants_of(shape))

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
        """Set gradients and autocast for passes of our own in the block, and measure its time."""
        began, caches = time.perf_counter(), torch.is_autocast_cache_enabled()
        with torch.set_grad_enabled(self.have_gradients), self.runner.autocast():
            # Autocast keeps the weights that it has cast; the next forward pass must not reuse
            # those of this pass.
            torch.set_autocast_cache_enabled(False)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caches)
                self.seconds += time.perf_counter() - began

    def run(self, inputs: Mapping[str, Tensor]) -> object:
        """Run the network on copies of the inputs, since it may change them in place."""
        return self.runner.run(**{name: values.clone() for name, values in inputs.items()})
