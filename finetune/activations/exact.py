"""Try each batch shape once: may its batches be stored and answered without changing a bit?

Kernels may round a sample differently in a batch of another size or padded length. Rows are
recorded and used only for *exact* shapes: those in which every sample gets the same bits as in a
full batch that is padded to the longest sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from finetune.activations.batch_shapes import Shape
from finetune.activations.passes import as_stored, full_rows
from finetune.activations.split_cache import SplitCache
from finetune.bits import same_bits
from finetune.data.batches import Batch
from finetune.errors import is_out_of_memory
from finetune.preserved import equal, preserved, random_state
from finetune.structure import tensors_in


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result for a batch, decided by its shape."""

    is_exact: bool
    rows: Mapping[str, Tensor]
    """Its rows `(B, ...)` by name of the output, if a trial has just computed them; else empty."""


def judge(split: SplitCache, batch: Batch) -> Judgement:
    """Decide whether the shape of a batch is exact; run the batch a few times if unknown."""
    shape, rows = split.shape(batch.indices), dict[str, Tensor]()
    name = split.name_of(shape)
    if name not in split.verdicts:
        found = _tried(split, batch, shape)
        split.verdicts.add(name, found.fault, is_lasting=found.is_lasting)
        rows = found.rows
    fault = split.verdicts[name]
    if fault is not None and (name, fault) not in split.told:
        split.told.add((name, fault))
        split.tell(
            f"activation cache: batches of {shape} run all layers, none is read from the "
            f"store: {fault}"
        )
    return Judgement(fault is None, rows)


def _tried(split: SplitCache, batch: Batch, shape: Shape) -> "_Finding":
    """Try a batch.

    A trial that runs out of memory must not make training halve its micro-batches: a step
    needs less memory. So the shape only counts as not tried.
    """
    if len(batch) > split.size:
        return _Finding("they are larger than those whose rows are stored")
    is_like_a_step = torch.is_grad_enabled() == split.have_gradients
    try:
        with split.under_way():
            found = _compared(split, batch, shape)
        return found if is_like_a_step else replace(found, rows={})
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return _Finding("memory is too short to compare the two ways", is_lasting=False)


def _compared(split: SplitCache, batch: Batch, shape: Shape) -> "_Finding":
    """Run a batch whole, with other neighbours, and answered: all must give the same bits."""
    with split.recording(shape) as recorded:
        whole = _outcome(split, batch.inputs)
    if not recorded:
        return _Finding("the network calls other layers for them")
    rows = as_stored(split, recorded, batch.inputs)
    if not split.in_order and not _agrees_elsewhere(split, batch, rows):
        return _Finding("this machine rounds a sample otherwise there than in a full batch")
    answered = _answered(split, batch.inputs, rows, shape)
    if isinstance(answered, str):
        return _Finding(answered, is_lasting=False)
    fault = whole.difference(answered)
    return _Finding(fault, rows if fault is None else {})


def _answered(
    split: SplitCache, inputs: Mapping[str, Tensor], rows: Mapping[str, Tensor], shape: Shape
) -> "_Outcome | str":
    """Run the network with its frozen calls answered; return the outcome, or an error text."""
    # the network may change the answers in place
    copies = {name: row.clone() for name, row in rows.items()}
    # blank as in training steps: a column unread in one mode may be read in another
    unread = split.replay.boundary.unread
    fetched = {
        name: values.new_zeros(values.shape) if name in unread else values
        for name, values in inputs.items()
    }
    try:
        with split.answering(copies, shape):
            return _outcome(split, fetched)
    # the user's code may raise anything for an unfit answer; the batch then runs whole
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"the network does not run on stored rows ({type(error).__name__}: {error})"


def _outcome(split: SplitCache, inputs: Mapping[str, Tensor]) -> "_Outcome":
    with preserved(split.runner.model, buffers=True, attributes=True, random=0):
        outputs = tensors_in(split.run(inputs))
        return _Outcome(outputs, _gradients(split, outputs), random_state())


def _gradients(split: SplitCache, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of trained parameters for fixed gradients of the outputs."""
    trained = [p for p in split.runner.model.parameters() if p.requires_grad]
    tops = [output for output in outputs if output.requires_grad]
    if not tops:
        return []
    slopes = [torch.linspace(-1, 1, top.numel()).to(top).view_as(top) for top in tops]
    found = torch.autograd.grad(tops, trained, slopes, allow_unused=True)
    return [gradient.to_dense() for gradient in found if gradient is not None]


def _agrees_elsewhere(split: SplitCache, batch: Batch, rows: Mapping[str, Tensor]) -> bool:
    """Tell whether full batches give these bits at other positions, with other neighbours."""
    kept, size = torch.arange(len(batch)), split.size
    places = kept.repeat(-(-size // len(batch)))[:size].flip(0)
    if not _gives(split, batch, rows, kept, places):
        return False
    if split.has_met_others or len(batch) < max(2, size):
        return True
    # replace every second sample by a copy of its neighbour
    split.has_met_others = _gives(split, batch, rows, kept[::2], places - places % 2)
    return split.has_met_others


def _gives(
    split: SplitCache, batch: Batch, rows: Mapping[str, Tensor], kept: Tensor, places: Tensor
) -> bool:
    """Tell whether a full batch of the samples at `places` gives those `kept` these rows."""
    found = torch.stack([(places == place).nonzero()[0, 0] for place in kept])
    _, full = full_rows(split, batch.indices.cpu()[places], batch.view)
    if full.keys() != rows.keys():
        return False
    inputs = {name: values[kept] for name, values in batch.inputs.items()}
    theirs = as_stored(split, {name: row[found] for name, row in full.items()}, inputs)
    return all(same_bits(row[kept], theirs[name]) for name, row in rows.items())


@dataclass(frozen=True, slots=True)
class _Finding:
    """Result of the trial of a shape."""

    fault: str | None
    """Why its batches are not exact; None if they are."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Rows of the tried batch, if a training step would compute the same."""
    is_lasting: bool = True
    """Whether the next process would find the same."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Outputs, gradients and random state after one forward pass."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    random_state: list[Any]

    def difference(self, answered: "_Outcome") -> str | None:
        """Return what differs when frozen calls are answered, or None."""
        if not _all_same(self.outputs, answered.outputs):
            return "the outputs would be others"
        if not _all_same(self.gradients, answered.gradients):
            return "the gradients would be others"
        if not equal(self.random_state, answered.random_state):
            return "frozen layers draw random numbers"
        return None


def _all_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(same_bits, some, others))
