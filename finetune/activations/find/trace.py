"""Record one forward pass: every module call, and every operation outside of chosen calls."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.structure import is_opaque, tensors_in

_READS_OF_SHAPE = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset",
    "is_contiguous", "is_floating_point", "is_complex", "__len__", "get_device", "element_size",
    "data_ptr", "untyped_storage", "__repr__", "__hash__", "is_inference", "broadcast_shapes",
}  # fmt: skip
"""Functions that read properties of a tensor but not its values."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module."""

    module: str
    visit: int
    """Number of earlier calls of the same module."""
    is_outermost: bool
    """Whether it has no caller. (A link to the caller would make a reference cycle of tensors.)"""
    output: Any = None
    taken: frozenset[int] = frozenset()
    """Storages of its tensor arguments."""
    children: list["Call"] = field(default_factory=list)
    seconds: float = 0.0
    """Duration."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it returned, in order."""
        return tensors_in(self.output)

    @property
    def is_frozen(self) -> bool:
        """Whether it returns tensors, and none depends on a trained parameter.

        False if it also returns objects that may hide tensors.
        """
        tensors = self.tensors
        return (
            bool(tensors)
            and not is_opaque(self.output)
            and not any(tensor.requires_grad for tensor in tensors)
        )

    def walk(self) -> "Iterator[Call]":
        """Yield the call and all nested ones, in the order of their beginning."""
        yield self
        for child in self.children:
            yield from child.walk()


@contextmanager
def watched(
    model: nn.Module,
    entered: Callable[[Call, tuple[Any, ...], dict[str, Any]], None] | None = None,
    left: Callable[[Call], None] | None = None,
) -> Iterator[list[Call]]:
    """Record every module call of `model` in the block; yields the list of outermost calls.

    Args:
        model: The module that will be called.
        entered: Called when a module call begins, with its arguments.
        left: Called when it ends.
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
    # Ours is the first hook on entry and the last on exit, so that hooks of the user are part of
    # the call.
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
    """One operation outside the chosen calls, with the storages that it reads and writes."""

    name: str
    """Name of the function, property or module."""
    arguments: Sequence[Any]
    """Positional arguments, then a mapping of keyword arguments."""
    reads: frozenset[int]
    writes: frozenset[int]
    escapes: bool
    """Whether it returns no tensor (`item`, say): Python code may branch on the value."""
    trains: bool
    """Whether its result depends on a trained parameter."""


class Operations(TorchFunctionMode):
    """Records operations outside of chosen calls, and values that leave these calls unreturned.

    Tensors are identified by their storage, so a view counts as the tensor itself. All tensors are
    kept alive, since the address of a freed storage may be used again.

    Args:
        known: Tensors that exist before the forward pass.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self.leaking: set[tuple[str, int]] = set()
        """Chosen calls of which a tensor is read outside that they did not return."""
        self._alive: list[Any] = []
        self._outside: set[int] = set()
        self._inside: dict[int, tuple[str, int]] = {}
        self._closed: tuple[str, int] | None = None
        self._hand_out(list(known))

    def close(self, place: tuple[str, int], arguments: Sequence[Any]) -> None:
        """Begin a chosen call: what follows is inside it until `reopen`."""
        self._closed = place
        self._hand_out(tensors_in(list(arguments)))

    def reopen(self, output: Any) -> None:
        """End the chosen call, which returned `output`: operations are recorded again."""
        self._closed = None
        self._hand_out(tensors_in(output))

    @property
    def is_closed(self) -> bool:
        """Whether a chosen call is running."""
        return self._closed is not None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`; record what it reads and writes."""
        result = func(*args, **(kwargs or {}))
        if self._closed is None:
            self.note(_name_of(func), [*args, kwargs or {}], result)
        else:
            self._keep(result, self._closed)
        return result

    def note(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Add an operation, or a module call that is treated as one."""
        taken = tensors_in(list(arguments))
        given = tensors_in(result)
        self._alive.append(taken)
        self._hand_out(given)
        if not given and (not taken or _reads_shape(name)):
            return
        # Assignments return nothing. In torch, names of in-place functions end in `_`.
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
        # A tensor that came from outside and is passed on is not kept by the call.
        for storage in set(map(storage_of, given)) - self._outside:
            self._inside.setdefault(storage, place)


def is_read_of_shape(func: Callable[..., Any], result: Any) -> bool:
    """Tell whether a function that returned `result` has read no value of its tensors."""
    return not tensors_in(result) and _reads_shape(_name_of(func))


def _reads_shape(name: str) -> bool:
    return name.partition(" ")[0] in _READS_OF_SHAPE


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function; of a property's getter, with the name of the property."""
    if func.__name__ != "__get__":
        return func.__name__
    return f"__get__ {getattr(getattr(func, '__self__', None), '__name__', '')}"


def storage_of(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage; sparse tensors have their own."""
    # A sparse tensor has no storage that could be compared.
    if tensor.layout != torch.strided:
        return id(tensor)
    address: int = tensor.untyped_storage()._cdata
    return address
