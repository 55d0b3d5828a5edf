"""One forward pass watched from outside: every call of a module, and every operation in between."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    parent: "Call | None"
    output: Any = None
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
            call = Call(name, visits.get(name, 0), stack[-1] if stack else None)
            visits[name] = call.visit + 1
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

    reads: frozenset[int]
    writes: frozenset[int]
    escapes: bool
    """Whether values leave the world of tensors here: Python code may decide by them."""
    trains: bool
    """Whether what it gives depends on a trained parameter."""


class Operations(TorchFunctionMode):
    """Records the operations that run while it is not paused.

    Storages are told apart by address, so every tensor seen is kept alive: views and in-place
    changes of a tensor count as the tensor itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self.paused = 0
        self._alive: list[Any] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` and note what it reads and writes."""
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self.note(func.__name__, [*args, *(kwargs or {}).values()], result)
        return result

    def note(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Add an operation, or a call of a module that counts as one."""
        taken = tensors_in(list(arguments))
        given = tensors_in(result)
        self._alive += [taken, given]
        if not taken or (not given and name in _READS_OF_SHAPE):
            return
        in_place = not given and (name.endswith("_") or name in ("__setitem__", "backward"))
        written = given or (taken if in_place else [])
        self.found.append(
            Operation(
                reads=frozenset(map(storage_of, taken)),
                writes=frozenset(map(storage_of, written)),
                escapes=not given and not in_place,
                trains=any(tensor.requires_grad for tensor in written),
            )
        )


def storage_of(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common."""
    address: int = tensor.untyped_storage()._cdata
    return address


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Run the block under `seed`, and give buffers and random state back as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal bit by bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    raw = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*raw)
