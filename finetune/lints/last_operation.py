"""Find which squashing function made the output of a network, by running it.

Letters: B samples, C outputs of a sample.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.module_calls import Call, storage_of, watched
from finetune.structure import tensors_in

Squashing = Literal[
    "softmax", "log-softmax", "sigmoid", "log-sigmoid", "ReLU", "tanh", "softsign", "hardtanh"
]
"""Functions with a limited range, by the name of the best known of their kind."""

_OPERATIONS: dict[str, Squashing] = {
    "_softmax": "softmax",
    "_log_softmax": "log-softmax",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "hardsigmoid": "sigmoid",
    "hardsigmoid_": "sigmoid",
    "log_sigmoid_forward": "log-sigmoid",
    "relu": "ReLU",
    "relu_": "ReLU",
    "softplus": "ReLU",
    "tanh": "tanh",
    "tanh_": "tanh",
    "hardtanh": "hardtanh",
    "hardtanh_": "hardtanh",
    "relu6": "hardtanh",
    "relu6_": "hardtanh",
}
"""Names of ATen operations, to which modules and functions of torch lead."""
_SQUASHING_PARTS = frozenset(
    {*_OPERATIONS, "exp", "exp2", "expm1", "clamp", "clamp_max", "hardtanh", "special_ndtr", "erf"}
)
"""Operations that a sigmoid or softmax may be written out with, or that cut to 0..1."""
_ELEMENTWISE = frozenset({
    "add", "sub", "rsub", "mul", "div", "true_divide", "reciprocal", "neg", "pow", "sqrt",
    "sum", "clamp", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum", "where", "cat",
    "stack", "_to_copy", "clone", "copy", "exp", "exp2", "expm1", "log", "log1p",
})  # fmt: skip
"""Operations behind which values still count as made by a squashing part before them."""
_COPIES = frozenset({"clone", "_to_copy", "copy", "alias_copy"})
"""Operations whose result holds the values of their first argument."""
_TOLERANCE = 1e-4


class LastOperation(NamedTuple):
    """The squashing function that made the output of a network."""

    squashing: Squashing
    module: str
    """Full name of the innermost module that returned it."""
    is_guess: bool = False
    """Whether only the values of a few samples suggest it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """One call of a squashing function; compared by identity."""

    squashing: Squashing


class _Watch(TorchDispatchMode):
    """Records for each storage which squashing function made its values last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, _Made] = {}
        self.squashed: dict[int, int] = {}
        """Storages whose values come, element by element, from a part of a squashing function, and
        the number of elements of that part. Few elements are a scale, not a function of the
        samples."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [storage_of(tensor) for tensor in tensors_in(list(args))]
        # In place, the storage is that of an argument, and yet its values are new.
        is_written = func._schema.is_mutable
        for tensor in tensors_in(result):
            storage = storage_of(tensor)
            self._note(name, storage, given, is_written=is_written)
            if storage not in given or is_written:
                self._note_parts(name.rstrip("_"), tensor, given)
        return result

    def _note_parts(self, name: str, result: Tensor, given: list[int]) -> None:
        """Update `squashed` for the result of one operation."""
        sizes = [self.squashed[storage] for storage in given if storage in self.squashed]
        if name not in _ELEMENTWISE:
            sizes = []
        if name in _SQUASHING_PARTS:
            sizes.append(result.numel())
        if sizes:
            self.squashed[storage_of(result)] = max(sizes)
        else:
            self.squashed.pop(storage_of(result), None)

    def _note(self, name: str, storage: int, given: list[int], *, is_written: bool) -> None:
        """Update `made` for the result of one operation."""
        if name in _OPERATIONS:
            self.made[storage] = _Made(_OPERATIONS[name])
        elif name in _COPIES and given and given[0] in self.made:
            self.made[storage] = self.made[given[0]]
        elif storage not in given or is_written:  # a view shares its values
            # Also drops the entry of a freed tensor whose address was given to this one.
            self.made.pop(storage, None)


def last_operation(
    model: nn.Module, inputs: dict[str, Tensor], name: str | None = None
) -> LastOperation | None:
    """Return the squashing function that made the output of a network; None without one.

    Copies and reshapes behind it do not matter, nor does dropout, which is off in evaluation mode.
    Functions are found as well as modules. A softmax written out by hand is recognised by its
    values; a sigmoid by values between 0 and 1 that come from an exponential or the like, with
    nothing behind it that mixes samples or features.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch of at least two samples, or three to find a sigmoid by hand.
        name: The output that is meant, of a network with several.
    """
    watch = _Watch()
    seen: list[tuple[str, _Made]] = []

    def left(call: Call) -> None:
        # Softsign is no operation of its own: x / (1 + |x|).
        if call.tensors and isinstance(model.get_submodule(call.module), nn.Softsign):
            watch.made[storage_of(call.tensors[0])] = _Made("softsign")
        made = [watch.made.get(storage_of(tensor)) for tensor in call.tensors[:1]]
        seen.extend((call.module, one) for one in made if one is not None)

    with watched(model, left=left) as roots, watch:
        output = model(**inputs)
    output = output if name is None else output[name]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    # From certain to guessed: the operation itself, sums that hardly come by chance, a range.
    made = watch.made.get(storage_of(output))
    if made is not None:
        # Modules end from the inside outwards, so the first one is the innermost.
        names = [name for name, one in seen if one is made]
        return LastOperation(made.squashing, names[0] if names else "")
    squashing = _by_values(output)
    if squashing is None and _looks_cut(output, watch.squashed.get(storage_of(output), 0)):
        return LastOperation("sigmoid", _last_module(roots), is_guess=True)
    return None if squashing is None else LastOperation(squashing, _last_module(roots))


def _looks_cut(output: Tensor, num_squashed: int) -> bool:
    """Tell whether all outputs are between 0 and 1, and a squashing part may have made them so.

    A softmax of two classes may be made from one number per sample: half as many as the outputs. A
    parameter with one number per class, such as a scale, is less than that from three samples on.
    """
    is_made = len(output) > 2 and 2 * num_squashed >= output.numel() > 0
    return is_made and bool(((output >= 0) & (output <= 1)).all())


def _by_values(output: Tensor) -> Squashing | None:
    """Recognise probabilities, or their logarithms, by the sum of each row."""
    if output.ndim != 2 or output.shape[1] < 2 or len(output) < 2:
        return None
    # In float64, so that only the rounding of the network itself is left to tolerate.
    rows = output.double()
    one = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(1), one, rtol=0, atol=_TOLERANCE):
        return "softmax"
    if torch.allclose(rows.exp().sum(1), one, rtol=0, atol=_TOLERANCE):
        return "log-softmax"
    return None


def _last_module(roots: list[Call]) -> str:
    """Return the name of the layer that was called last."""
    children = roots[-1].children if roots else []
    return children[-1].module if children else ""
