"""Run a network without computing its matrix products, where only FLOPs and sizes are wanted.

Products, convolutions and attention take most of the time of a pass. Their results are filled with
ones, in the shapes that they would have. All other operations run. What follows from a filled value
is wrong and must not decide what runs next, so reading such a value raises an error. After any
error the caller makes the pass again with all products computed: wrong values may cause others too,
such as an index that is out of range.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from finetune.activations.find.trace import storage_of
from finetune.structure import tensors_in

_TO_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
"""Functions that hand values to Python without an operation that a dispatch mode sees."""


class ValueReadError(Exception):
    """A value that follows from a filled one was about to be read."""


class WithoutProducts(TorchDispatchMode):
    """Fills the results of costly operations with ones while `is_on`.

    Args:
        costly: The operations that are not computed.
    """

    supports_higher_order_operators = True

    def __init__(self, costly: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_on = False
        self.was_read = False
        """Whether a value that follows from a filled one was asked for."""
        self._costly = frozenset(costly)
        self._filled: set[int] = set()
        """Storages of values that follow from filled ones."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See all operations of the block, and all other reads of values."""
        with _ReadsOfValues(self), self:
            yield

    def follows(self, values: Any) -> bool:
        """Tell whether any of these tensors follows from a filled one."""
        return any(storage_of(tensor) in self._filled for tensor in tensors_in(values))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or fill its result in."""
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        follows = self.follows(given)
        if self.is_on and getattr(func, "overloadpacket", None) in self._costly:
            result, follows = _filled(func, args, kwargs), True
        else:
            if follows and _reads_values(func):
                self.refuse(func)
            result = func(*args, **kwargs)
        written = tensors_in(result)
        if follows and func._schema.is_mutable:
            written += tensors_in(given)
        # A freed storage may be used again, by what does not follow from a filled value.
        change = self._filled.update if follows else self._filled.difference_update
        change(map(storage_of, written))
        return result

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
        if func in _TO_PYTHON and self._mode.follows(list(args)):
            self._mode.refuse(func)
        return func(*args, **(kwargs or {}))


def _reads_values(func: Any) -> bool:
    """Tell whether values may decide what an operation returns besides values: sizes, a number."""
    # Of operators of higher order, and of operations of other packages, nothing is known.
    if not isinstance(func, torch._ops.OpOverload) or func.namespace not in ("aten", "prims"):
        return True
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags})


def _filled(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return ones in the place of a result: of its shapes, strides and types."""
    device = next(tensor.device for tensor in tensors_in([*args, *kwargs.values()]))
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), kwargs))
    shaped = func(*shapes[0], **shapes[1])

    def ones(like: Tensor) -> Tensor:
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
        return made.fill_(1)

    return tree_map_only(Tensor, ones, shaped)
