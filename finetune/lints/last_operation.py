"""Which operation gave the output of a network, found by running it.

Letters: B samples, C outputs of a sample.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.activations.find.trace import Call, storage_of, watched
from finetune.structure import tensors_in

Squashing = Literal["softmax", "log-softmax", "sigmoid", "log-sigmoid", "ReLU", "tanh"]
"""Functions that do not give every number, by the name of the best known of their kind."""

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
}
"""Operations of torch below its modules and functions, by name."""
_SQUASHING_PARTS = frozenset(
    {*_OPERATIONS, "exp", "exp2", "expm1", "clamp", "clamp_max", "hardtanh", "special_ndtr", "erf"}
)
"""Operations of which a sigmoid or a softmax may be written out, or cut to 0..1."""
_ELEMENTWISE = frozenset({
    "add", "sub", "rsub", "mul", "div", "true_divide", "reciprocal", "neg", "pow", "sqrt",
    "sum", "clamp", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum", "where", "cat",
    "stack", "_to_copy", "clone", "copy", "exp", "exp2", "expm1", "log", "log1p",
})  # fmt: skip
"""Operations that leave an output what the operations before it have made of it."""
_COPIES = frozenset({"clone", "_to_copy", "copy", "alias_copy"})
"""Operations whose outcome holds the values of what they take."""
_TOLERANCE = 1e-4


class LastOperation(NamedTuple):
    """What gave the output of a network."""

    squashing: Squashing
    module: str
    """Full name of the innermost module that gave it."""
    is_guess: bool = False
    """Whether values alone tell it, on the few samples that were tried."""


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """One application of a squashing function; told apart by identity."""

    squashing: Squashing


class _Watch(TorchDispatchMode):
    """Knows of each storage by which squashing function its values were made last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, _Made] = {}
        self.squashed: dict[int, int] = {}
        """Storages whose values come, element by element, from a part of a squashing function, and
        how many numbers that gave: less than a sample has of them is a scale, and no function of
        it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [storage_of(tensor) for tensor in tensors_in(list(args))]
        is_written = func._schema.is_mutable
        for tensor in tensors_in(result):
            storage = storage_of(tensor)
            self._note(name, storage, given, is_written=is_written)
            if storage not in given or is_written:
                self._note_parts(name.rstrip("_"), tensor, given)
        return result

    def _note_parts(self, name: str, result: Tensor, given: list[int]) -> None:
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
        if name in _OPERATIONS:
            self.made[storage] = _Made(_OPERATIONS[name])
        elif name in _COPIES and given and given[0] in self.made:
            self.made[storage] = self.made[given[0]]
        elif storage not in given or is_written:  # a view has the values of what it looks at
            # also where the memory of a tensor that is gone was given to this one
            self.made.pop(storage, None)


def last_operation(model: nn.Module, inputs: dict[str, Tensor]) -> LastOperation | None:
    """Return the squashing function that the output of a network comes from; None without one.

    What only copies or reshapes does not count, nor does dropout, which does nothing in evaluation.
    Functions are found as well as modules. A softmax written out by hand is known by its values; a
    sigmoid by values between 0 and 1 that come from an exponential or the like, with nothing
    behind it that mixes samples or features.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch of two samples or more; a sigmoid by hand is found from three on.
    """
    watch = _Watch()
    seen: list[tuple[str, _Made]] = []

    def left(call: Call) -> None:
        made = [watch.made.get(storage_of(tensor)) for tensor in call.tensors[:1]]
        seen.extend((call.module, one) for one in made if one is not None)

    with watched(model, left=left) as roots, watch:
        output = model(**inputs)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    made = watch.made.get(storage_of(output))
    if made is not None:
        names = [name for name, one in seen if one is made]
        return LastOperation(made.squashing, names[0] if names else "")
    squashing = _by_values(output)
    if squashing is None and _looks_cut(output, watch.squashed.get(storage_of(output), 0)):
        return LastOperation("sigmoid", _last_module(roots), is_guess=True)
    return None if squashing is None else LastOperation(squashing, _last_module(roots))


def _looks_cut(output: Tensor, num_squashed: int) -> bool:
    """Tell whether every output is between 0 and 1, and such a function may have made it so.

    A softmax of two classes may be made from one number a sample: half as many as the outputs. A
    parameter of a number for each class, such as a scale, is less than that of three samples.
    """
    is_made = len(output) > 2 and 2 * num_squashed >= output.numel() > 0
    return is_made and bool(((output >= 0) & (output <= 1)).all())


def _by_values(output: Tensor) -> Squashing | None:
    """Tell probabilities, and their logarithms, by what each row adds up to."""
    if output.ndim != 2 or output.shape[1] < 2 or len(output) < 2:
        return None
    rows = output.double()
    one = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(1), one, rtol=0, atol=_TOLERANCE):
        return "softmax"
    if torch.allclose(rows.exp().sum(1), one, rtol=0, atol=_TOLERANCE):
        return "log-softmax"
    return None


def _last_module(roots: list[Call]) -> str:
    """Return the layer that was called last."""
    children = roots[-1].children if roots else []
    return children[-1].module if children else ""
