"""Record the outputs of frozen calls, or answer the calls with stored rows.

`forward` of each frozen module is replaced, so the user's own code around them runs unchanged.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from finetune.activations.batch_shapes import Shape
from finetune.activations.find.boundary import Boundary, FrozenCall, Leaf, leaf_name
from finetune.activations.verdicts import Verdicts
from finetune.bits import fingerprint, same_bits
from finetune.structure import apart_from_tensors, rebuilt, tensors_in

_OTHER_CONSTANTS = "give other values in every batch where the trial found the same in all"


class Constants:
    """Outputs of frozen calls that are the same in every batch of a shape: position embeddings.

    Batches are answered with rows and constants. Constants are taken from the first batch that
    runs in a process, compared in every later batch that runs, and compared by digest with those
    of earlier processes. Once they differ, no batch of this shape is answered any more.

    Args:
        shape: Name of the shape in the verdicts.
        verdicts: Holds the digests, and why a shape is not exact; mutated.
    """

    def __init__(self, shape: str, verdicts: Verdicts) -> None:
        self._shape, self._verdicts = shape, verdicts
        self._values: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, leaf: str) -> Tensor:
        """Return a copy of one constant, by the name of the output."""
        return self._values[leaf].clone()

    def agree(self, found: Mapping[str, Tensor]) -> bool:
        """Add or compare a batch's constants, by name of the output; tell whether all agree."""
        agreed = [self._agrees(leaf, value) for leaf, value in found.items()]
        if not all(agreed):
            self._verdicts.add(self._shape, _OTHER_CONSTANTS)
        return all(agreed)

    def _agrees(self, leaf: str, value: Tensor) -> bool:
        if leaf in self._values:
            return same_bits(self._values[leaf], value)
        # A copy: the network may change what it got in place.
        self._values[leaf] = value.detach().clone()
        # A warm run must find the constants of the run that has stored the rows. The digest lies
        # among the verdicts, under a name of its own, so that it is forgotten together with them.
        name, digest = f"{self._shape}: {leaf}", fingerprint(value)
        if name not in self._verdicts:
            self._verdicts.add(name, digest)
        return self._verdicts[name] == digest


@dataclass(slots=True)
class _Session:
    """One forward pass in which frozen calls are recorded or answered."""

    rows: Mapping[str, Tensor] | None
    """Rows to answer with, by name of the output; None to record."""
    shape: Shape
    """Shape of the batch."""
    constants: Constants | None
    """Constants of that shape; None if they are not needed."""
    visits: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    """Constants that the calls returned."""
    is_odd: bool = False
    """Whether a call returned another structure than in the trial."""


class Replay:
    """Replaces `forward` of the modules of a frozen prefix; runs them normally outside a session.

    `torch.compile` skips these modules, so the compiled code is the same whether their calls run
    or are answered.

    Args:
        model: The network. While installed, `forward` of the frozen modules is replaced.
        boundary: Its boundary.
        store_dtype: Dtype of stored rows, if not as computed. Outputs are rounded when they are
            recorded, so the first visit of a sample gives the same values as later ones.
    """

    def __init__(
        self, model: nn.Module, boundary: Boundary, store_dtype: torch.dtype | None = None
    ) -> None:
        self.boundary = boundary
        self._model, self._store_dtype = model, store_dtype
        self._calls = {(call.module, call.visit): call for call in boundary.calls}
        self._session: _Session | None = None
        self._own: dict[str, Any] = {}
        self._scratch: dict[tuple[Any, ...], Tensor] = {}
        self._stored = frozenset(boundary.stored)
        self._num_constants = sum(
            leaf.needed and not leaf.per_sample and leaf.twin is None
            for call in boundary.calls
            for leaf in call.leaves
        )
        self.seconds = 0.0
        """Seconds spent in recorded calls."""

    def install(self) -> None:
        """Replace `forward` of the modules."""
        for name in self.boundary.modules:
            module = self._model.get_submodule(name)
            # Set on the object, not on the class: other modules of that class may be trained.
            self._own[name] = vars(module).get("forward")
            forward = partial(self._forward, name, module.forward)
            replaced = _uncompiled(forward)
            # For modules whose weights must be gathered first.
            vars(replaced)["needs_weights"] = partial(self._runs_next, name)
            vars(module)["forward"] = replaced

    def remove(self) -> None:
        """Restore the `forward` of every module."""
        for name, own in self._own.items():
            module = self._model.get_submodule(name)
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own
        self._own = {}

    @property
    def rounds(self) -> bool:
        """Whether recorded outputs are rounded to the dtype of the store."""
        return self._store_dtype is not None

    def can_answer(self, constants: Constants) -> bool:
        """Tell whether all constants of a shape are known."""
        return len(constants) == self._num_constants

    @contextmanager
    def recording(
        self, shape: Shape, constants: Constants | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Run frozen calls; the yielded mapping holds their rows when the block has ended.

        It is empty if the calls of this batch differ from the trial: a module saw another number
        of samples, another branch was taken, or a constant has another value.
        """
        session = _Session(None, shape, constants)
        with self._during(session):
            yield session.recorded
        is_odd = session.is_odd or session.recorded.keys() != self._stored
        if is_odd or (constants is not None and not constants.agree(session.fixed)):
            session.recorded.clear()

    @contextmanager
    def answering(
        self, rows: Mapping[str, Tensor], shape: Shape, constants: Constants
    ) -> Iterator[None]:
        """Answer frozen calls with `rows`, by name of the output, in the order of the batch."""
        with self._during(_Session(rows, shape, constants)):
            yield

    @contextmanager
    def _during(self, session: _Session) -> Iterator[None]:
        self._session = session
        try:
            yield
        finally:
            self._session = None

    def _runs_next(self, name: str) -> bool:
        """Tell whether the next call of a module runs the module."""
        session = self._session
        if session is None or session.rows is None:
            return True
        return (name, session.visits.get(name, 0)) not in self._calls

    def _forward(self, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        # Outside a session modules run normally: in probes, and when the user's code calls them.
        session = self._session
        if session is None:
            return original(*args, **kwargs)
        visit = session.visits.get(name, 0)
        session.visits[name] = visit + 1  # in the order of the calls, as the probe has counted
        # One call of a module may belong to the prefix and another one not.
        call = self._calls.get((name, visit))
        if call is None:
            return original(*args, **kwargs)
        if session.rows is not None:
            return self._answer(call, session, session.rows)
        return self._record(call, session, partial(original, *args, **kwargs))

    def _record(self, call: FrozenCall, session: _Session, run: Any) -> Any:
        # Calls inside a frozen call are not counted: when it is answered, they do not happen.
        self._session = None
        began = perf_counter()
        try:
            output = run()
        finally:
            self._session = session
        self.seconds += perf_counter() - began
        if not _is_as_tried(call, output, session.shape):
            session.is_odd = True
            return output
        handed: list[Tensor] = []
        for number, (leaf, tensor) in enumerate(zip(call.leaves, tensors_in(output), strict=True)):
            name = leaf_name(call, number)
            if leaf.twin is not None:
                handed.append(handed[leaf.twin])
                continue
            if leaf.needed and leaf.per_sample:
                handed.append(self._rounded(tensor))
                # A copy, since the rest of the forward pass may change the tensor in place.
                session.recorded[name] = handed[-1].detach().clone()
                continue
            if leaf.needed:
                session.fixed[name] = tensor.detach().clone()
            handed.append(tensor)
        if self._store_dtype is None:
            return output
        # The rest of the network gets the rounded values now too, as it does when the call is
        # answered.
        rest = iter(handed)
        return rebuilt(output, lambda _: next(rest))

    def _rounded(self, value: Tensor) -> Tensor:
        """Return values as read from the store; those too large for its dtype stay unchanged."""
        if self._store_dtype is None or not value.is_floating_point():
            return value
        rounded = value.to(self._store_dtype).to(value.dtype)
        return torch.where(rounded.isinf(), value, rounded)

    def _answer(self, call: FrozenCall, session: _Session, rows: Mapping[str, Tensor]) -> Any:
        given: list[Tensor] = []

        def leaf_for(hollow: Tensor) -> Tensor:
            leaf, name = call.leaves[len(given)], leaf_name(call, len(given))
            # Two outputs that were one tensor stay one tensor: the network may change it in place.
            if leaf.twin is not None:
                answer = given[leaf.twin]
            elif not leaf.needed:
                answer = self._blank(name, leaf, session, hollow)
            elif leaf.per_sample:
                answer = _laid_out(rows[name], leaf)
            else:
                assert session.constants is not None
                answer = session.constants[name]
            given.append(answer)
            return answer

        return rebuilt(call.output, leaf_for)

    def _blank(self, name: str, leaf: Leaf, session: _Session, hollow: Tensor) -> Tensor:
        """Return zeros in place of values that nothing reads; the tensor is reused."""
        shape = list(leaf.shape)
        if leaf.per_sample:
            shape[0] = session.shape.size
        if leaf.ragged and session.shape.length is not None:
            shape[1] = session.shape.length
        blank = self._scratch.get((name, *shape))
        # If the network has changed the zeros in place, make new ones: an index that it counts up
        # would exceed its table.
        if blank is None or blank._version:
            # A tensor made in inference mode has no version counter and cannot be used by autograd.
            with torch.inference_mode(mode=False):
                blank = torch.zeros(shape, dtype=leaf.dtype, device=hollow.device)
            self._scratch[name, *shape] = blank
        return blank


def _uncompiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `torch.compile` does not trace into."""

    # `torch.compiler.disable` only takes functions, and `forward` is a `partial`.
    def plain(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    disabled: Callable[..., Any] = torch.compiler.disable(plain)
    return disabled


def _is_as_tried(call: FrozenCall, output: Any, shape: Shape) -> bool:
    """Tell whether an output has the structure of the trial's, apart from values and sizes."""
    if apart_from_tensors(output) != apart_from_tensors(call.output):
        return False
    return all(
        tensor.dtype == leaf.dtype
        and tensor.ndim == len(leaf.shape)
        and (not leaf.per_sample or _fits_rows(tensor, leaf, shape))
        for leaf, tensor in zip(call.leaves, tensors_in(output), strict=True)
    )


def _fits_rows(tensor: Tensor, leaf: Leaf, shape: Shape) -> bool:
    leading = (shape.size, shape.length) if leaf.ragged else (shape.size,)
    return tuple(tensor.shape) == (*leading, *leaf.shape[len(leading) :])


def _laid_out(row: Tensor, leaf: Leaf) -> Tensor:
    """Return the same values in the memory layout of the call's own output."""
    # The layout matters (`channels_last`, for example): kernels are chosen by it, and round
    # differently.
    if leaf.order == tuple(range(row.ndim)):
        return row
    back = [leaf.order.index(axis) for axis in range(row.ndim)]
    return row.permute(leaf.order).contiguous().permute(back)
