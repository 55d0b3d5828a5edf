"""Forward passes that only serve the cache: trials of batch shapes, and recomputation of rows.

The definition of a row is here: the frozen outputs of a sample in a full batch that is padded to
the longest sample of the split. For splits that are always cut in order (validation, test): the
outputs of the sample in its own batch.

Kernels may round a sample differently in a batch of another size or padded length. Rows are
recorded and used only for *exact* shapes: those in which every sample gets the same bits as in a
batch of the kind that defines rows. Each shape is tried once. No pass has side effects.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune.activations.batch_shapes import SAMPLE, Shape, mask_of, shortened, without_padding
from finetune.activations.split_cache import SplitCache, device_of
from finetune.bits import all_same_bits, same_bits
from finetune.data.batches import Batch
from finetune.errors import is_out_of_memory
from finetune.preserved import equal, preserved, random_state
from finetune.structure import tensors_in

T = TypeVar("T")
U = TypeVar("U")

_FEW = 4
"""Rows recomputed at an opening."""


@dataclass(frozen=True, slots=True)
class ShapeFinding:
    """Whether batches of one shape can be answered exactly."""

    fault: str | None
    """Why its batches are not exact; None if they are."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows `(B, ...)` of the batch by name of the output, if it was tried just now and a training
    step would compute the same; else empty."""
    is_lasting: bool = True
    """Whether the result holds in other processes too, so that it may be stored."""


def judge(split: SplitCache, batch: Batch) -> ShapeFinding:
    """Decide whether the shape of a batch is exact; run the batch a few times if unknown."""
    shape = split.shape(batch.indices)
    name = split.name_of(shape)
    if name in split.verdicts:
        found = ShapeFinding(split.verdicts[name])
    else:
        began = time.perf_counter()
        found = _tried(split, batch, shape)
        split.verdicts.add(name, found.fault, is_lasting=found.is_lasting)
        split.runner.statistics.seconds_trying += time.perf_counter() - began
    is_news = (name, found.fault) not in split.told and not split.is_ahead
    if found.fault is not None and is_news:
        split.told.add((name, found.fault))
        split.runner.tell(
            f"activation cache: batches of {shape} run all layers, none is read from the "
            f"store: {found.fault}"
        )
    return found


def _tried(split: SplitCache, batch: Batch, shape: Shape) -> ShapeFinding:
    # A full batch is the definition of rows, and could not hold so many samples.
    if len(batch) > split.size:
        return ShapeFinding("they are larger than those whose rows are stored")
    short = ShapeFinding("memory is too short to compare the two ways", is_lasting=False)
    found = _if_memory_suffices(split, lambda: _compared(split, batch, shape), short)
    # Rows computed without gradients may differ in bits from those of a training step.
    is_like_a_step = torch.is_grad_enabled() == split.have_gradients
    return found if is_like_a_step else replace(found, rows={})


def _if_memory_suffices(split: SplitCache, run: Callable[[], T], otherwise: U) -> T | U:
    """Return what `run` does in passes that only serve the cache; `otherwise` if memory is short.

    An error would make training halve its micro-batches, although a step needs less memory.
    """
    try:
        with split.under_way():
            return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return otherwise


def _compared(split: SplitCache, batch: Batch, shape: Shape) -> ShapeFinding:
    """Run a batch normally, among other samples, and answered; all must give the same bits."""
    with split.replay.recording(shape, split.constants_of(shape)) as recorded:
        whole = _outcome(split, batch.inputs)
    if not recorded:
        return ShapeFinding("the network calls other layers for them")
    # From here on as read from a store, which does not keep the values behind the end of a sample.
    rows = _as_stored(split, recorded, batch.inputs)
    if not split.in_order and not _agrees_elsewhere(split, batch, rows):
        return ShapeFinding("this machine rounds a sample otherwise there than in a full batch")
    answered = _answered(split, batch.inputs, rows, shape)
    if isinstance(answered, str):
        return ShapeFinding(answered, is_lasting=False)
    fault = whole.difference(answered)
    return ShapeFinding(fault, rows if fault is None else {})


def _answered(
    split: SplitCache, inputs: Mapping[str, Tensor], rows: Mapping[str, Tensor], shape: Shape
) -> "_Outcome | str":
    """Run the network with its frozen calls answered; return the outcome, or an error text."""
    # Copies, since the network may change the answers in place.
    copies = {name: row.clone() for name, row in rows.items()}
    # Zeros, as in training steps. The trial shows it if a column that is unread in one mode is read
    # in another.
    unread = split.replay.boundary.unread
    fetched = {
        name: values.new_zeros(values.shape) if name in unread else values
        for name, values in inputs.items()
    }
    try:
        with split.replay.answering(copies, shape, split.constants_of(shape)):
            return _outcome(split, fetched)
    # The user's code may raise any exception if answers do not fit. Such a batch then runs whole.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"the network does not run on stored rows ({type(error).__name__}: {error})"


def _outcome(split: SplitCache, inputs: Mapping[str, Tensor]) -> "_Outcome":
    # Each pass from the same seed: a dropout behind the boundary must drop the same in both.
    with preserved(split.runner.model, buffers=True, attributes=True, random=0):
        outputs = tensors_in(split.run(inputs))
        return _Outcome(outputs, _gradients(split, outputs), random_state())


def _gradients(split: SplitCache, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of trained parameters for fixed gradients of the outputs."""
    trained = [p for p in split.runner.model.parameters() if p.requires_grad]
    tops = [output for output in outputs if output.requires_grad]
    if not tops:
        return []
    # Different for each element, so that swapped samples are noticed. The loss is not known here.
    slopes = [torch.linspace(-1, 1, top.numel()).to(top).view_as(top) for top in tops]
    found = torch.autograd.grad(tops, trained, slopes, allow_unused=True)
    return [gradient.to_dense() for gradient in found if gradient is not None]


def _agrees_elsewhere(split: SplitCache, batch: Batch, rows: Mapping[str, Tensor]) -> bool:
    """Tell whether samples keep the bits of `rows` at other positions of a full batch.

    Once per split, also whether they keep them beside other samples.
    """
    # In reverse order, so that each sample is at another position.
    kept, size = torch.arange(len(batch)), split.size
    places = kept.repeat(-(-size // len(batch)))[:size].flip(0)
    if not _gives(split, batch, rows, kept, places):
        return False
    # Once per split is enough: kernels do not depend on values.
    if split.has_met_others or len(batch) < max(2, size):
        return True
    # Every second sample is replaced by a copy of its neighbour.
    split.has_met_others = _gives(split, batch, rows, kept[::2], places - places % 2)
    return split.has_met_others


def _gives(
    split: SplitCache, batch: Batch, rows: Mapping[str, Tensor], kept: Tensor, places: Tensor
) -> bool:
    """Tell whether a full batch gives the samples at `kept` of a batch their rows, bit by bit.

    It is filled with the samples at `places` of the batch.
    """
    found = torch.stack([(places == place).nonzero()[0, 0] for place in kept])
    _, full = _defining_rows(split, batch.indices.cpu()[places], batch.view)
    if full.keys() != rows.keys():
        return False
    inputs = {name: values[kept] for name, values in batch.inputs.items()}
    theirs = _as_stored(split, {name: row[found] for name, row in full.items()}, inputs)
    return all(same_bits(row[kept], theirs[name]) for name, row in rows.items())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Outputs, gradients and random state after one forward pass."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    random_state: list[Any]

    def difference(self, answered: "_Outcome") -> str | None:
        """Return what differs when frozen calls are answered, or None."""
        if not all_same_bits(self.outputs, answered.outputs):
            return "the outputs would be others"
        if not all_same_bits(self.gradients, answered.gradients):
            return "the gradients would be others"
        if not equal(self.random_state, answered.random_state):
            return "frozen layers draw random numbers"
        return None


def in_full_batch(split: SplitCache, batch: Batch) -> dict[str, Tensor]:
    """Compute the rows of a batch's samples in a full batch, `(B, ...)` by name.

    Empty if the network makes other calls than in the trial batch, or if a full batch does not
    fit into memory.
    """
    began = time.perf_counter()
    # The samples are repeated until the batch is full.
    indices = batch.indices.cpu()[torch.arange(split.size) % len(batch)]
    full = _if_memory_suffices(split, lambda: _defining_rows(split, indices, batch.view), None)
    split.runner.statistics.seconds_trying += time.perf_counter() - began
    return {} if full is None else {name: row[: len(batch)] for name, row in full[1].items()}


def _defining_rows(
    split: SplitCache, indices: Tensor, view: int
) -> tuple[Batch, dict[str, Tensor]]:
    """Return a batch of some samples as it defines their rows, and these rows.

    It is padded to the longest sample of the split; to its own longest one where the split is
    always cut in order. If the samples of a split differ in length, each such batch has at least
    one padded sample. Networks often drop the mask of a batch without padding, and then compute
    other bits.
    """
    samples, longest = split.samples, None if split.in_order else split.samples.longest
    batch = samples.fetch(indices, epoch=view, length=longest).to(device_of(split.runner.model))
    shape = Shape.of(samples, indices, longest)
    needs_no_mask = split.in_order or len(batch) == 1 or not samples.has_shorter
    if needs_no_mask or shape.is_padded or mask_of(batch.inputs) is None:
        return batch, _rows_of(split, batch, shape)
    shape = shape._replace(is_padded=True)
    rows = _rows_of(split, shortened(batch, -1), shape)
    last = _rows_of(split, shortened(batch, 0), shape)
    # Two passes: the first shortens the last sample, the second shortens another one. The row of a
    # sample is taken from the pass that leaves it whole.
    if rows.keys() != last.keys():
        return batch, {}
    return batch, {name: torch.cat([row[:-1], last[name][-1:]]) for name, row in rows.items()}


def _as_stored(
    split: SplitCache, rows: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return rows as they are read from a store: with zeros behind the end of each sample.

    Ragged ones may be longer than the batch.
    """
    stored, mask = split.replay.boundary.stored, mask_of(inputs)
    return {
        name: without_padding(row[:, : mask.shape[1]], inputs)
        if stored[name].ragged and mask is not None
        else row
        for name, row in rows.items()
    }


def check_rows(split: SplitCache, checked: Tensor) -> None:
    """Recompute a few rows, drawn from the row numbers `checked`; drop all if one differs."""
    # Now: otherwise the user would hear much later that stores were removed to make room.
    split.tell_notes()
    # The key cannot contain everything that rows depend on: the code of libraries, for example.
    if len(checked) and (fault := _fault_of_rows(split, checked)) is not None:
        split.forget()
        key = split.store.meta.key
        split.runner.tell(f"activation cache: the rows of store {key} {fault}: all recomputed")


def _fault_of_rows(split: SplitCache, checked: Tensor) -> str | None:
    """Return why the rows of a store cannot be used, or None."""
    # Drawn by the system's generator: those of the run must not advance, and would choose the same
    # rows in every run.
    draw, num_samples = SystemRandom(), len(split.samples)
    view, index = divmod(int(checked[draw.randrange(len(checked))]), num_samples)
    of_view = checked[checked // num_samples == view] % num_samples
    few = of_view[draw.choices(range(len(of_view)), k=_FEW)]
    if split.in_order:
        start = index // split.size * split.size
        whole = torch.arange(start, min(start + split.size, num_samples))
    else:
        whole = few[torch.arange(split.size) % _FEW]
    # A few samples alone mostly get the same bits, and cost little. A whole batch of the kind that
    # defines rows decides.
    is_right = _if_memory_suffices(
        split, lambda: any(_are_stored(split, indices, view) for indices in (few, whole)), None
    )
    if is_right is None:
        return "cannot be looked over, memory is short"
    return None if is_right else "are wrong"


def _are_stored(split: SplitCache, indices: Tensor, view: int) -> bool:
    """Tell whether the rows of some samples, computed anew, are those in the store, bit by bit."""
    batch, rows = _defining_rows(split, indices, view)
    now, mask = _as_stored(split, rows, batch.inputs), mask_of(batch.inputs)
    numbers = split.numbers(batch.indices, batch.view)
    # Some rows of a whole batch may not be stored yet.
    there = split.store.has(numbers)
    then = split.store.read(numbers[there], None if mask is None else mask.shape[1])
    then.pop(SAMPLE, None)
    return now.keys() == then.keys() and all(
        same_bits(row.cpu()[there], then[name]) for name, row in now.items()
    )


def _rows_of(split: SplitCache, batch: Batch, shape: Shape) -> dict[str, Tensor]:
    as_before = preserved(split.runner.model, buffers=True, attributes=True, random=0)
    with split.replay.recording(shape, split.constants_of(shape)) as rows, as_before:
        split.run(batch.inputs)
    return dict(rows)
