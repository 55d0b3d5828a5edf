"""Record the operations of a forward pass outside of chosen calls, and values that leave these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from finetune.module_calls import Place, function_name, reads_shape, storage_of
from finetune.structure import tensors_in


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
        self.leaking: set[Place] = set()
        """Chosen calls of which a tensor is read outside that they did not return."""
        self._alive: list[Any] = []
        self._outside: set[int] = set()
        self._inside: dict[int, Place] = {}
        self._closed: Place | None = None
        self._hand_out(list(known))

    def close(self, place: Place, arguments: Sequence[Any]) -> None:
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
            self.note(function_name(func), [*args, kwargs or {}], result)
        else:
            self._keep(result, self._closed)
        return result

    def note(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Add an operation, or a module call that is treated as one."""
        taken = tensors_in(list(arguments))
        given = tensors_in(result)
        self._alive.append(taken)
        self._hand_out(given)
        if not given and (not taken or reads_shape(name)):
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

    def _keep(self, result: Any, place: Place) -> None:
        given = tensors_in(result)
        self._alive.append(given)
        # A tensor that came from outside and is passed on is not kept by the call.
        for storage in set(map(storage_of, given)) - self._outside:
            self._inside.setdefault(storage, place)
