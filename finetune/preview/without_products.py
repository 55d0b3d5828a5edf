"""Count the FLOPs of a network without computing its matrix products.

Products, convolutions and attention take most of the time of a pass. Their results are filled with
ones, in the shapes that they would have. All other operations run. What follows from a filled value
is wrong and must not decide what runs next, so reading such a value raises an error. After any
error the caller makes the pass again with all products computed: wrong values may cause others too,
such as an index that is out of range.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.module_calls import storage_of

_TO_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
"""Functions that hand values to Python without an operation that a dispatch mode sees."""


class ValueReadError(Exception):
    """A value that follows from a filled one was about to be read."""


class WithoutProducts(TorchDispatchMode):
    """Counts the FLOPs of a block, and fills the results of costly operations with ones.

    A costly operation is one that has a formula for its FLOPs. It still runs, on tensors without
    data (`meta`), which gives the shapes of its results.

    Args:
        formulas: FLOPs of each costly operation, from its arguments and `out_val`, its result.
        fills: Whether results are filled now; what is computed instead is counted all the same.
    """

    # torch's `FlopCounterMode` around such a mode would see every operation a second time: that
    # took longer than the products of a small network.

    def __init__(self, formulas: Mapping[Any, Callable[..., Any]], *, fills: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills = fills
        self.was_read = False
        """Whether a value that follows from a filled one was asked for."""
        self._formulas = formulas
        self._flops = 0
        self._filled: set[int] = set()
        """Storages of values that follow from filled ones."""
        self._shaped: dict[Any, Any] = {}
        """Results without data, by the operation and the form of its arguments."""

    def get_total_flops(self) -> int:
        """Return the FLOPs counted so far: the method of `FlopCounterMode`, which counts alike."""
        return self._flops

    def is_filled(self, tensor: Tensor) -> bool:
        """Tell whether a tensor may hold a value that follows from a filled one."""
        return storage_of(tensor) in self._filled

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See all operations of the block, and all other reads of values."""
        with _ReadsOfValues(self), self:
            yield

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or fill its result in; add its FLOPs."""
        kwargs = kwargs or {}
        formula = self._formulas.get(func.overloadpacket)
        if formula is None and _is_made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        given = _storages([*args, *kwargs.values()])
        follows = not self._filled.isdisjoint(given)
        if formula is not None and self.fills:
            result, follows = self._filled_in(func, args, kwargs), True
        else:
            if follows and _reads_values(func):
                self.refuse(func)
            result = func(*args, **kwargs)
        if formula is not None:
            self._flops += formula(*args, **kwargs, out_val=result)
        written = _storages([result])
        if not follows:
            # A freed storage may be used again, by what does not follow from a filled value.
            self._filled.difference_update(written)
            return result
        self._filled.update(written)
        if func._schema.is_mutable:
            self._filled.update(given)
        return result

    def _filled_in(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return ones in the place of a result: of its shapes, strides and types."""
        # Blocks of a network are alike, and torch derives many shapes in Python.
        key = (func, _form(args), _form(tuple(kwargs.items())))
        if (shaped := self._shaped.get(key)) is None:
            without = {name: _without_data(value) for name, value in kwargs.items()}
            shaped = self._shaped[key] = func(*map(_without_data, args), **without)
        device = next(value.device for value in args if isinstance(value, Tensor))
        if isinstance(shaped, Tensor):
            return _ones(shaped, device)
        return tuple(_ones(one, device) if isinstance(one, Tensor) else one for one in shaped)

    def refuse_reading(self, func: Callable[..., Any], args: Sequence[Any]) -> None:
        """Raise if a function would hand a value to Python that follows from a filled one.

        Raises:
            ValueReadError: it would.
        """
        if func in _TO_PYTHON and not self._filled.isdisjoint(_storages(args)):
            self.refuse(func)

    def refuse(self, func: Any) -> NoReturn:
        """Raise for a function that would read a value.

        Raises:
            ValueReadError: always. Code of the user may catch it: `was_read` tells nevertheless.
        """
        self.was_read = True
        raise ValueReadError(str(func))


class _ReadsOfValues(TorchFunctionMode):
    """Sees the reads that are no operations."""

    def __init__(self, mode: WithoutProducts) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse to read a value that follows from a filled one."""
        self._mode.refuse_reading(func, args)
        return func(*args, **(kwargs or {}))


def _storages(values: Iterable[Any]) -> list[int]:
    """Return the storages of the tensors among values, and in lists of them."""
    # Not by `tensors_in`: an operation takes and returns no deeper nesting, and a pass has
    # thousands of them.
    found: list[int] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(storage_of(value))
        elif isinstance(value, list | tuple):
            found += [storage_of(one) for one in value if isinstance(one, Tensor)]
    return found


@cache
def _is_made_of_others(func: Any) -> bool:
    """Tell whether an operation is written as other ones; seen whole only in inference mode."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), composite
    )


@cache
def _reads_values(func: Any) -> bool:
    """Tell whether values may decide what an operation returns besides values: sizes, a number."""
    # Of operations of other packages nothing is known.
    if func.namespace not in ("aten", "prims"):
        return True
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags})


def _form(value: Any) -> Any:
    """Return what the shapes of results depend on, of an argument or several, to look it up by."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_form, value)) if isinstance(value, list | tuple) else value


def _without_data(value: Any) -> Any:
    """Return a tensor of the same form without data; anything else unchanged."""
    return value.to("meta") if isinstance(value, Tensor) else value


def _ones(like: Tensor, device: torch.device) -> Tensor:
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    return made.fill_(1)
