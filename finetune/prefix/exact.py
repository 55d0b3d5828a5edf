"""Whether batches of a shape may be stored and answered: tried once for each, never assumed.

Kernels may round a sample otherwise in a batch of another size, or filled up to another length.
So rows are kept, and used, only of batches in whose shape every sample gets the bits that a full
batch, filled up to the longest sample, gives it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.loader import Batch
from finetune.errors import is_out_of_memory
from finetune.prefix.constants import Constants
from finetune.prefix.outputs import tensors_in
from finetune.prefix.replay import Replay
from finetune.prefix.shapes import Shape, Split, mask_of, shortened, without_padding
from finetune.prefix.state import equal, random_state, same_bits, undisturbed
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


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a batch by its shape."""

    is_exact: bool
    rows: Mapping[str, Tensor]
    """Its rows `(B, ...)` by name of the output, if it was run to find out; else empty."""


class Trials:
    """The shapes of one split, as they are met.

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
        tell: Receives a line for each shape that is not exact.
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
        tell: Callable[[str], None],
    ) -> None:
        self._model, self._replay, self._samples = model, replay, samples
        self._size, self._in_order, self._autocast = size, in_order, autocast
        self._verdicts, self._run, self._tell = verdicts, run, tell
        self._told: set[tuple[str, str]] = set()
        self._constants: dict[str, Constants] = {}
        self._has_met_others = False
        """Whether full batches were tried in which samples meet others."""
        self.seconds = 0.0
        """Time that trying has taken."""

    @property
    def largest(self) -> int:
        """Samples of a full batch; larger ones cannot be tried."""
        return self._size

    def shape(self, indices: Tensor) -> Shape:
        """Return the shape of a batch of the samples at `indices`."""
        return Shape.of(self._samples, indices)

    def passed(self, shape: Shape) -> bool:
        """Tell whether batches of a shape are known to be exact, and all of them to be alike."""
        now = self._now(shape)
        is_exact = now in self._verdicts and self._verdicts[now] is None
        return is_exact and self._replay.can_answer(self.constants(shape))

    def constants(self, shape: Shape) -> Constants:
        """Return what is the same in every batch of a shape, as far as it is known."""
        now = self._now(shape)
        if now not in self._constants:
            self._constants[now] = Constants(now, self._verdicts)
        return self._constants[now]

    def judge(self, batch: Batch) -> Judgement:
        """Tell whether batches of this one's shape are exact; run it a few times if unknown."""
        shape, rows = self.shape(batch.indices), dict[str, Tensor]()
        now = self._now(shape)
        if _is_padded_unseen(batch, shape):
            fault: str | None = "are filled up behind transforms that draw anew"
        else:
            if now not in self._verdicts:
                found = self._tried(batch, shape)
                self._verdicts.add(now, found.fault, is_lasting=found.is_lasting)
                rows = found.rows
            fault = self._verdicts[now]
        if fault is not None and (now, fault) not in self._told:
            self._told.add((now, fault))
            self._tell(f"prefix: batches of {shape} {fault}; they run whole")
        return Judgement(fault is None, rows)

    def forget(self) -> None:
        """Forget what was found: what rests on no better ground than it has turned out wrong."""
        self._verdicts.forget()
        self._constants.clear()

    def in_full_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Return what a full batch gives the samples of this one, `(B, ...)` by name.

        Empty where the network does not treat it as it treated the trial batch, or where memory
        does not hold a full batch beside this one.
        """
        indices = batch.indices.cpu()[torch.arange(self._size) % len(batch)]
        try:
            with self._trying():
                _, rows = self._rows_in_full(indices, batch.view)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {}
        return {name: row[: len(batch)] for name, row in rows.items()}

    def some_recomputed(self, sealed: Tensor) -> Iterator[Recomputed]:
        """Yield a few of the rows `sealed`, other ones at every call, as they are now.

        First as a batch of their own, which takes the least and mostly gives the same bits; then
        in a batch like those that rows are taken from, which decides.
        """
        first = sealed[SystemRandom().randrange(len(sealed))]
        view, index = divmod(int(first), len(self._samples))
        of_view = sealed[sealed // len(self._samples) == view] % len(self._samples)
        few = of_view[SystemRandom().choices(range(len(of_view)), k=_FEW)]
        if self._in_order:
            yield self._recomputed(few, view)
            start = index // self._size * self._size
            cut = torch.arange(start, min(start + self._size, len(self._samples)))
            yield self._recomputed(cut, view)
        else:
            yield self._recomputed_in_full(few, view)
            yield self._recomputed_in_full(few[torch.arange(self._size) % _FEW], view)

    def _recomputed(self, indices: Tensor, view: int) -> Recomputed:
        """Run the network for samples, as they are when nothing but they is there."""
        batch = self._samples.fetch(indices, epoch=view)
        shape = Shape.of(self._samples, indices)
        with self._trying():
            batch = batch.to(next(self._model.parameters()).device)
            rows = self._rows_of(batch, shape)
        return self._as_recomputed(batch, rows, view, shape.length)

    def _recomputed_in_full(self, indices: Tensor, view: int) -> Recomputed:
        """Run the network for samples, filled up to the longest."""
        with self._trying():
            batch, rows = self._rows_in_full(indices, view)
        return self._as_recomputed(batch, rows, view, self._samples.longest)

    def _as_recomputed(
        self, batch: Batch, rows: Mapping[str, Tensor], view: int, length: int | None
    ) -> Recomputed:
        values = {name: row.cpu() for name, row in self._as_stored(rows, batch.inputs).items()}
        return Recomputed(view * len(self._samples) + batch.indices.cpu(), values, length)

    def _now(self, shape: Shape) -> str:
        """Name a shape in the present mode of the network."""
        mode = "training" if self._model.training else "evaluation"
        gradients = "gradients" if torch.is_grad_enabled() else "no gradients"
        return f"{shape}, {mode}, {gradients}"

    def _tried(self, batch: Batch, shape: Shape) -> "_Finding":
        """Try a batch. That memory is short in a trial is no reason to cut steps into smaller ones.

        A step may do with less.
        """
        if len(batch) > self._size:
            return _Finding("are larger than those that rows are taken from")
        try:
            return self._compared(batch, shape)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return _Finding("cannot be tried: memory is short", is_lasting=False)

    def _compared(self, batch: Batch, shape: Shape) -> "_Finding":
        """Run a batch whole, in other company, and answered: all must have the same bits."""
        with self._trying():
            rows, whole = self._recorded(batch.inputs, shape)
            rows = self._as_stored(rows, batch.inputs)
            if not rows:
                return _Finding("make other calls than the batch that was tried")
            if not self._in_order and not self._agrees_elsewhere(batch, rows):
                return _Finding(
                    "are computed with other bits than in other company, or in other places"
                )
            answered = self._answered(batch.inputs, rows, shape)
        if isinstance(answered, str):
            return _Finding(answered, is_lasting=False)
        fault = whole.difference(answered)
        is_like_a_step = torch.is_grad_enabled() == self._has_gradients
        return _Finding(fault, rows if fault is None and is_like_a_step else {})

    def _answered(
        self, inputs: Mapping[str, Tensor], rows: Mapping[str, Tensor], shape: Shape
    ) -> "_Outcome | str":
        """Run the network with its frozen calls answered; return what came of it, or an error."""
        # the network may change what it is answered with in place
        copies = {name: row.clone() for name, row in rows.items()}
        # blank as in steps: what looked unread in one mode may be read in another
        unread = self._replay.border.unread
        fetched = {
            name: values.new_zeros(values.shape) if name in unread else values
            for name, values in inputs.items()
        }
        try:
            with self._replay.answering(copies, shape, self.constants(shape)):
                return self._outcome(fetched)
        # Whatever the user's code makes of an answer that does not fit, the batch can run whole.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"cannot be answered ({type(error).__name__}: {error})"

    def _recorded(
        self, inputs: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Tensor], "_Outcome"]:
        """Run the network and leave no trace; return the rows and what came of it."""
        with self._replay.recording(shape, self.constants(shape)) as rows:
            outcome = self._outcome(inputs)
        return dict(rows), outcome

    def _rows_of(self, batch: Batch, shape: Shape) -> dict[str, Tensor]:
        """Run the network and leave no trace; return the rows."""
        recording = self._replay.recording(shape, self.constants(shape))
        with recording as rows, undisturbed(self._model, seed=0):
            self._run(**_copied(batch.inputs))
        return dict(rows)

    def _as_stored(
        self, rows: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return rows as a store gives them back, ragged ones with zeros behind their end."""
        return {
            name: without_padding(row, inputs) if self._is_ragged(name) else row
            for name, row in rows.items()
        }

    def _is_ragged(self, name: str) -> bool:
        return self._replay.border.stored[name].ragged

    def _outcome(self, inputs: Mapping[str, Tensor]) -> "_Outcome":
        with undisturbed(self._model, seed=0):
            outputs = tensors_in(self._run(**_copied(inputs)))
            return _Outcome(outputs, self._gradients(outputs), random_state())

    def _gradients(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return what the trained parameters would get for some gradients of the outputs."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        tops = [output for output in outputs if output.requires_grad]
        if not tops:
            return []
        slopes = [torch.linspace(-1, 1, top.numel()).to(top).view_as(top) for top in tops]
        found = torch.autograd.grad(tops, trained, slopes, allow_unused=True)
        return [gradient.to_dense() for gradient in found if gradient is not None]

    @property
    def _has_gradients(self) -> bool:
        """Whether trials compare gradients: on a CPU they have the same bits every time."""
        on_cpu = next(self._model.parameters()).device.type == "cpu"
        return torch.is_grad_enabled() and on_cpu and not self._in_order

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Run the block as a forward pass of the split, and leave no trace of it."""
        began, caches = time.perf_counter(), torch.is_autocast_cache_enabled()
        with torch.set_grad_enabled(self._has_gradients), self._autocast():
            # Weights that were cast here must not serve the forward pass that comes next.
            torch.set_autocast_cache_enabled(False)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caches)
        self.seconds += time.perf_counter() - began

    def _agrees_elsewhere(self, batch: Batch, rows: Mapping[str, Tensor]) -> bool:
        """Tell whether full batches give the samples, in other places and company, these bits."""
        kept = torch.arange(len(batch))
        places = kept.repeat(-(-self._size // len(batch)))[: self._size].flip(0)
        if not self._gives(batch, rows, kept, places):
            return False
        if self._has_met_others or len(batch) < max(2, self._size):
            return True
        # every other sample gives way to its neighbour, which comes twice
        self._has_met_others = self._gives(batch, rows, kept[::2], places - places % 2)
        return self._has_met_others

    def _gives(
        self, batch: Batch, rows: Mapping[str, Tensor], kept: Tensor, places: Tensor
    ) -> bool:
        """Tell whether a full batch of the samples at `places` gives those `kept` these rows."""
        found = torch.stack([(places == place).nonzero()[0, 0] for place in kept])
        _, full = self._rows_in_full(batch.indices.cpu()[places], batch.view)
        if full.keys() != rows.keys():
            return False
        inputs = {name: values[kept] for name, values in batch.inputs.items()}
        theirs = {name: row[found] for name, row in full.items()}
        if (mask := mask_of(inputs)) is not None:
            theirs = {
                name: row[:, : mask.shape[1]] if self._is_ragged(name) else row
                for name, row in theirs.items()
            }
        theirs = self._as_stored(theirs, inputs)
        return all(same_bits(row[kept], theirs[name]) for name, row in rows.items())

    def _rows_in_full(self, indices: Tensor, view: int) -> tuple[Batch, dict[str, Tensor]]:
        """Return the full batch of some samples, filled up to the longest there is, and its rows.

        Wherever samples are of different lengths, one that is filled up is part of every such
        batch: else the longest ones might have other bits among themselves than among others.
        """
        device, longest = next(self._model.parameters()).device, self._samples.longest
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


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a trial of a shape has shown."""

    fault: str | None
    """Why its batches are not exact, None if they are."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Those of the batch tried, where they are as a step would compute them."""
    is_lasting: bool = True
    """Whether the next process would find the same."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one forward pass."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    random_state: list[Any]

    def difference(self, answered: "_Outcome") -> str | None:
        """Return what differs where frozen calls are answered, or None."""
        if not _all_same(self.outputs, answered.outputs):
            return "end in other outputs when frozen calls are answered"
        if not _all_same(self.gradients, answered.gradients):
            return "give other gradients when frozen calls are answered"
        if not equal(self.random_state, answered.random_state):
            return "draw random numbers in frozen calls"
        return None


def _all_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(same_bits, some, others))


def _is_padded_unseen(batch: Batch, shape: Shape) -> bool:
    """Tell whether a batch is filled up in a way that its shape does not tell of.

    That is where transforms are still to come as shapes are told.
    """
    mask = mask_of(batch.inputs)
    return shape.length is None and mask is not None and not bool((mask != 0).all())


def _copied(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs for a network that may change them in place."""
    return {name: values.clone() for name, values in inputs.items()}
