"""Which operation gave the output of a network, found by running it.

Letters: B samples, C outputs of a sample.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.activations.find.trace import Call, storage_of, watched
from finetune.activations.outputs import tensors_in

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
_COPIES = frozenset({"clone", "_to_copy", "copy", "alias_copy"})
"""Operations whose outcome holds the values of what they take."""
_TOLERANCE = 1e-4


class LastOperation(NamedTuple):
    """What gave the output of a network."""

    squashing: Squashing
    module: str
    """Full name of the innermost module that gave it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """One application of a squashing function; told apart by identity."""

    squashing: Squashing


class _Watch(TorchDispatchMode):
    """Knows of each storage by which squashing function its values were made last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, _Made] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [storage_of(tensor) for tensor in tensors_in(list(args))]
        for tensor in tensors_in(result):
            self._note(name, storage_of(tensor), given, is_written=func._schema.is_mutable)
        return result

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
    Functions are found as well as modules. A softmax written out by hand is known by its values.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch of two samples or more.
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
    return None if squashing is None else LastOperation(squashing, _last_module(roots))


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
