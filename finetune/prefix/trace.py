"""One forward pass watched from outside: every call of a module, and every operation in between."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.prefix.outputs import is_opaque, tensors_in

_READS_OF_SHAPE = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset",
    "is_contiguous", "is_floating_point", "is_complex", "__len__", "get_device", "element_size",
    "data_ptr", "untyped_storage", "__repr__", "__hash__", "is_inference", "broadcast_shapes",
}  # fmt: skip
"""Functions that tell about a tensor without reading its values."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module."""

    module: str
    visit: int
    """How many calls of the same module came before."""
    is_outermost: bool
    """Whether no other call was under way. (A link to that one would hold tensors in a circle.)"""
    output: Any = None
    taken: frozenset[int] = frozenset()
    """Storages of the tensors it was given."""
    children: list["Call"] = field(default_factory=list)
    seconds: float = 0.0
    """How long it took."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors it returns, in order."""
        return tensors_in(self.output)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing that it returns depends on a trained parameter."""
        tensors = self.tensors
        return (
            bool(tensors)
            and not is_opaque(self.output)
            and not any(tensor.requires_grad for tensor in tensors)
        )

    def walk(self) -> "Iterator[Call]":
        """Yield the call and all below it, in the order in which they began."""
        yield self
        for child in self.children:
            yield from child.walk()


@contextmanager
def watched(
    model: nn.Module,
    entered: Callable[[Call, tuple[Any, ...], dict[str, Any]], None] | None = None,
    left: Callable[[Call], None] | None = None,
) -> Iterator[list[Call]]:
    """Note every call of a module of `model` while the block runs; gives the outermost calls.

    Args:
        model: The module that will be called.
        entered: Told as a call begins, with its arguments.
        left: Told as it ends.
    """
    roots: list[Call] = []
    stack: list[Call] = []
    visits: dict[str, int] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(name, visits.get(name, 0), is_outermost=not stack)
            visits[name] = call.visit + 1
            call.taken = frozenset(map(storage_of, tensors_in([*args, *kwargs.values()])))
            (stack[-1].children if stack else roots).append(call)
            stack.append(call)
            call.seconds = -time.perf_counter()
            if entered is not None:
                entered(call, args, kwargs)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call = stack.pop()
        call.seconds += time.perf_counter()
        call.output = output
        if left is not None:
            left(call)

    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True)
        )
        handles.append(module.register_forward_hook(leave))
    try:
        yield roots
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation outside the frozen calls, by the storages it reads and writes."""

    name: str
    """Of the function, the property or the module."""
    arguments: Sequence[Any]
    """Those by position, and a mapping of those by name."""
    reads: frozenset[int]
    writes: frozenset[int]
    escapes: bool
    """Whether values leave the world of tensors here: Python code may decide by them."""
    trains: bool
    """Whether what it gives depends on a trained parameter."""


class Operations(TorchFunctionMode):
    """Records the operations outside of closed calls, and what closed calls leave behind.

    Storages are told apart by address, so every tensor seen is kept alive: views and in-place
    changes of a tensor count as the tensor itself.

    Args:
        known: Tensors that are there before the forward pass begins.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self.leaking: set[tuple[str, int]] = set()
        """Closed calls of which a tensor is read that they did not return."""
        self._alive: list[Any] = []
        self._outside: set[int] = set()
        self._inside: dict[int, tuple[str, int]] = {}
        self._closed: tuple[str, int] | None = None
        self._hand_out(list(known))

    def close(self, place: tuple[str, int], arguments: Sequence[Any]) -> None:
        """Take what follows as the inside of a call with these arguments."""
        self._closed = place
        self._hand_out(tensors_in(list(arguments)))

    def reopen(self, output: Any) -> None:
        """End the closed call; it has returned `output`."""
        self._closed = None
        self._hand_out(tensors_in(output))

    @property
    def is_closed(self) -> bool:
        """Whether what happens now is the inside of a closed call."""
        return self._closed is not None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` and note what it reads and writes."""
        result = func(*args, **(kwargs or {}))
        if self._closed is None:
            self.note(_name_of(func), [*args, kwargs or {}], result)
        else:
            self._keep(result, self._closed)
        return result

    def note(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Add an operation, or a call of a module that counts as one."""
        taken = tensors_in(list(arguments))
        given = tensors_in(result)
        self._alive.append(taken)
        self._hand_out(given)
        if not given and (not taken or name.partition(" ")[0] in _READS_OF_SHAPE):
            return
        in_place = not given and (name.endswith("_") or name in ("__setitem__", "backward"))
        written = given or (taken if in_place else [])
        reads, writes = (frozenset(map(storage_of, some)) for some in (taken, written))
        self.leaking |= {self._inside[one] for one in reads - self._outside if one in self._inside}
        trains = any(tensor.requires_grad for tensor in written)
        escapes = not given and not in_place
        self.found.append(Operation(name, arguments, reads, writes, escapes, trains))

    def _hand_out(self, tensors: list[Tensor]) -> None:
        self._alive.append(tensors)
        self._outside |= set(map(storage_of, tensors))

    def _keep(self, result: Any, place: tuple[str, int]) -> None:
        given = tensors_in(result)
        self._alive.append(given)
        for storage in set(map(storage_of, given)) - self._outside:
            self._inside.setdefault(storage, place)


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function; for what gets a property that holds a tensor, its name."""
    if func.__name__ != "__get__":
        return func.__name__
    return f"__get__ {getattr(getattr(func, '__self__', None), '__name__', '')}"


def storage_of(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common; sparse ones count by themselves."""
    if tensor.layout != torch.strided:
        return id(tensor)
    address: int = tensor.untyped_storage()._cdata
    return address
