"""Frozen calls answered from stored rows: the user's own forward runs on, unchanged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from finetune.prefix.outputs import rebuilt, tensors_in
from finetune.prefix.probe import Border, FrozenCall, Leaf, leaf_name


@dataclass(slots=True)
class _Session:
    """One forward pass in which frozen calls are recorded, or answered."""

    rows: Mapping[str, Tensor] | None
    """What to answer with, by the name of the leaf; None to record."""
    size: int
    """Samples in the batch."""
    length: int | None
    """Tokens of the longest sample in the batch, where there are tokens."""
    visits: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, Tensor] = field(default_factory=dict)


class Replay:
    """Stands before the modules of a frozen prefix; does nothing outside a session.

    Args:
        model: The network. While installed, `forward` of the prefix's modules is ours.
        border: Where its prefix ends.
    """

    def __init__(self, model: nn.Module, border: Border) -> None:
        self._model = model
        self._calls = {(call.module, call.visit): call for call in border.calls}
        self._modules = border.modules
        self._session: _Session | None = None
        self._scratch: dict[tuple[Any, ...], Tensor] = {}
        self._constants: dict[tuple[str, int | None], Tensor] = {}
        self._num_constants = sum(
            leaf.needed and not leaf.per_sample for call in border.calls for leaf in call.leaves
        )
        self.seconds = 0.0
        """Time that recorded calls have taken."""

    def install(self) -> None:
        """Put ourselves before the modules."""
        for name in self._modules:
            module = self._model.get_submodule(name)
            module.__dict__["forward"] = partial(self._forward, name, module.forward)

    def remove(self) -> None:
        """Give every module its own `forward` back."""
        for name in self._modules:
            self._model.get_submodule(name).__dict__.pop("forward", None)

    def can_answer(self, length: int | None) -> bool:
        """Tell whether all is known that is the same for every sample of that many tokens."""
        return self._num_constants == sum(at == length for _, at in self._constants)

    @contextmanager
    def recording(self, size: int, length: int | None) -> Iterator[Mapping[str, Tensor]]:
        """Run frozen calls for real; what the store needs of them is in the mapping afterwards."""
        session = _Session(None, size, length)
        with self._during(session):
            yield session.recorded

    @contextmanager
    def answering(
        self, rows: Mapping[str, Tensor], size: int, length: int | None
    ) -> Iterator[None]:
        """Answer frozen calls with `rows`: by the name of the leaf, in the order of the batch."""
        with self._during(_Session(rows, size, length)):
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
        for number, (leaf, tensor) in enumerate(zip(call.leaves, tensors_in(output), strict=True)):
            if not leaf.needed:
                continue
            # The rest of the forward pass may change the tensor in place.
            value, name = tensor.detach().clone(), leaf_name(call, number)
            if leaf.per_sample:
                session.recorded[name] = value
            else:
                self._constants[name, session.length] = value
        return output

    def _answer(self, call: FrozenCall, session: _Session, rows: Mapping[str, Tensor]) -> Any:
        numbers = iter(range(len(call.leaves)))

        def leaf_for(hollow: Tensor) -> Tensor:
            number = next(numbers)
            leaf, name = call.leaves[number], leaf_name(call, number)
            if not leaf.needed:
                return self._blank(name, leaf, session, hollow)
            return rows[name] if leaf.per_sample else self._constants[name, session.length].clone()

        return rebuilt(call.output, leaf_for)

    def _blank(self, name: str, leaf: Leaf, session: _Session, hollow: Tensor) -> Tensor:
        """Return zeros in the place of values that reach nothing: one tensor per call and shape."""
        shape = list(leaf.shape)
        if leaf.per_sample:
            shape[0] = session.size
        if leaf.ragged and session.length is not None:
            shape[1] = session.length
        key = (name, *shape)
        if key not in self._scratch:
            self._scratch[key] = torch.zeros(shape, dtype=leaf.dtype, device=hollow.device)
        return self._scratch[key]
