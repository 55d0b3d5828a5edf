"""Frozen calls answered from stored rows: the user's own forward runs on, unchanged."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from finetune.prefix.constants import Constants
from finetune.prefix.outputs import apart_from_tensors, rebuilt, tensors_in
from finetune.prefix.probe import Border, FrozenCall, Leaf, leaf_name
from finetune.prefix.shapes import Shape


@dataclass(slots=True)
class _Session:
    """One forward pass in which frozen calls are recorded, or answered."""

    rows: Mapping[str, Tensor] | None
    """What to answer with, by the name of the leaf; None to record."""
    shape: Shape
    """Of the batch."""
    constants: Constants | None
    """What is the same in every batch of that shape; None where nobody asks."""
    visits: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    """What was given that is the same in every batch."""
    is_odd: bool = False
    """Whether a call returned what it did not in the trial."""


class Replay:
    """Stands before the modules of a frozen prefix; does nothing outside a session.

    `torch.compile` leaves its modules out of what it compiles: whether their calls run or are
    answered, what is compiled is the same.

    Args:
        model: The network. While installed, `forward` of the prefix's modules is ours.
        border: Where its prefix ends.
        store_dtype: What rows are stored as, if not as computed. They are rounded as soon as they
            are recorded, so that it does not matter which visit of a sample is the first.
    """

    def __init__(
        self, model: nn.Module, border: Border, store_dtype: torch.dtype | None = None
    ) -> None:
        self.border = border
        self._model, self._store_dtype = model, store_dtype
        self._calls = {(call.module, call.visit): call for call in border.calls}
        self._modules = border.modules
        self._session: _Session | None = None
        self._own: dict[str, Any] = {}
        self._scratch: dict[tuple[Any, ...], Tensor] = {}
        self._stored = frozenset(border.stored)
        self._num_constants = sum(
            leaf.needed and not leaf.per_sample and leaf.twin is None
            for call in border.calls
            for leaf in call.leaves
        )
        self.seconds = 0.0
        """Time that recorded calls have taken."""

    def install(self) -> None:
        """Put ourselves before the modules."""
        for name in self._modules:
            module = self._model.get_submodule(name)
            self._own[name] = vars(module).get("forward")
            forward = partial(self._forward, name, module.forward)
            vars(module)["forward"] = _uncompiled(forward)

    def remove(self) -> None:
        """Give every module the `forward` back that it had."""
        for name, own in self._own.items():
            module = self._model.get_submodule(name)
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own
        self._own = {}

    @property
    def rounds(self) -> bool:
        """Whether what is recorded is rounded to what a store gives back."""
        return self._store_dtype is not None

    def can_answer(self, constants: Constants) -> bool:
        """Tell whether all is known that is the same in every batch of a shape."""
        return len(constants) == self._num_constants

    @contextmanager
    def recording(
        self, shape: Shape, constants: Constants | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """Run frozen calls for real; what the store needs of them is in the mapping afterwards.

        It is empty where the calls of this batch were not those of the trial: another number of
        samples went through a module, a branch was taken that the trial did not see, what should
        be the same in every batch is not.
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
        """Answer frozen calls with `rows`: by the name of the leaf, in the order of the batch."""
        with self._during(_Session(rows, shape, constants)):
            yield

    @contextmanager
    def _during(self, session: _Session) -> Iterator[None]:
        self._session = session
        try:
            yield
        finally:
            self._session = None

    def _forward(self, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if session is None:
            return original(*args, **kwargs)
        visit = session.visits.get(name, 0)
        session.visits[name] = visit + 1
        call = self._calls.get((name, visit))
        if call is None:
            return original(*args, **kwargs)
        if session.rows is not None:
            return self._answer(call, session, session.rows)
        return self._record(call, session, partial(original, *args, **kwargs))

    def _record(self, call: FrozenCall, session: _Session, run: Any) -> Any:
        # Calls inside a frozen call are not counted: an answered one makes none.
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
                # The rest of the forward pass may change it in place.
                session.recorded[name] = handed[-1].detach().clone()
                continue
            if leaf.needed:
                session.fixed[name] = tensor.detach().clone()
            handed.append(tensor)
        if self._store_dtype is None:
            return output
        rest = iter(handed)
        return rebuilt(output, lambda _: next(rest))

    def _rounded(self, value: Tensor) -> Tensor:
        """Return values as they come back from the store; those too large for it as they are."""
        if self._store_dtype is None or not value.is_floating_point():
            return value
        rounded = value.to(self._store_dtype).to(value.dtype)
        return torch.where(rounded.isinf(), value, rounded)

    def _answer(self, call: FrozenCall, session: _Session, rows: Mapping[str, Tensor]) -> Any:
        given: list[Tensor] = []

        def leaf_for(hollow: Tensor) -> Tensor:
            leaf, name = call.leaves[len(given)], leaf_name(call, len(given))
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
        """Return zeros in the place of values that reach nothing, the same ones every time."""
        shape = list(leaf.shape)
        if leaf.per_sample:
            shape[0] = session.shape.size
        if leaf.ragged and session.shape.length is not None:
            shape[1] = session.shape.length
        blank = self._scratch.get((name, *shape))
        # An index that is counted up in place at every step would leave its table some day.
        if blank is None or blank._version:
            # made in inference mode, it would count nothing and serve no step
            with torch.inference_mode(mode=False):
                blank = torch.zeros(shape, dtype=leaf.dtype, device=hollow.device)
            self._scratch[name, *shape] = blank
        return blank


def _uncompiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `torch.compile` from looking into a function."""

    # it only takes functions, and `forward` is a `partial`
    def plain(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    disabled: Callable[..., Any] = torch.compiler.disable(plain)
    return disabled


def _is_as_tried(call: FrozenCall, output: Any, shape: Shape) -> bool:
    """Tell whether an output is like the trial's but for values, samples and tokens."""
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
    """Return the same values with axes lying in memory as the call left them."""
    if leaf.order == tuple(range(row.ndim)):
        return row
    back = [leaf.order.index(axis) for axis in range(row.ndim)]
    return row.permute(leaf.order).contiguous().permute(back)
