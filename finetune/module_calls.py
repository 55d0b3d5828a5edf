"""Watch a network run: every call of a module, and which memory its tensors lie in."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.structure import is_opaque, tensors_in

Place = tuple[str, int]
"""A call of a module: name of the module, and number of its earlier calls."""
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
    """Duration, without most of the time in which other programs had the processors."""

    @property
    def place(self) -> Place:
        """Which call it is."""
        return self.module, self.visit

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
    begun: list[tuple[float, float]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(name, visits.get(name, 0), is_outermost=not stack)
            visits[name] = call.visit + 1
            call.taken = frozenset(map(storage_of, tensors_in([*args, *kwargs.values()])))
            (stack[-1].children if stack else roots).append(call)
            stack.append(call)
            begun.append((time.perf_counter(), time.process_time()))
            if entered is not None:
                entered(call, args, kwargs)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call = stack.pop()
        wall, used = begun.pop()
        # On a machine that is busy with other work a call of a millisecond may take a second. All
        # threads of this process together have then still used a few milliseconds.
        call.seconds = min(time.perf_counter() - wall, time.process_time() - used)
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


def is_within(name: str, module: str) -> bool:
    """Tell whether a name is that of `module`, or of something inside it."""
    return name == module or name.startswith(f"{module}.")


def storage_of(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage; sparse tensors have their own."""
    # A sparse tensor has no storage that could be compared.
    if tensor.layout != torch.strided:
        return id(tensor)
    address: int = tensor.untyped_storage()._cdata
    return address


def is_read_of_shape(func: Callable[..., Any], result: Any) -> bool:
    """Tell whether a function that returned `result` has read no value of its tensors."""
    return not tensors_in(result) and reads_shape(function_name(func))


def reads_shape(name: str) -> bool:
    """Tell whether a function of this name reads no values of tensors."""
    return name.partition(" ")[0] in _READS_OF_SHAPE


def function_name(func: Callable[..., Any]) -> str:
    """Return the name of a function; of a property's getter, with the name of the property."""
    if func.__name__ != "__get__":
        return func.__name__
    return f"__get__ {getattr(getattr(func, '__self__', None), '__name__', '')}"
