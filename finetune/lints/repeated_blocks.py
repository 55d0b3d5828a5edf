"""Blocks that run several times with the same weights in one forward pass, as in ALBERT."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finetune.bits import same_bits
from finetune.module_calls import Call, watched
from finetune.structure import rebuilt, tensors_in


def repeated_blocks(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Return how often each repeated block runs, by name, without blocks inside another.

    A repeated block is a module of several parts with parameters whose input depends on its own
    earlier output. A network that reads two texts one after the other repeats nothing.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch.
    """
    with watched(model) as roots:
        model(**inputs)
    counts = {name: count for root in roots for name, count in _called_again(model, root)}
    outermost = {
        name: count
        for name, count in counts.items()
        if not any(name.startswith(f"{other}.") for other in counts)
    }
    # Two more passes per module, so only for those that one call makes several times.
    return {name: count for name, count in outermost.items() if _takes_its_own(model, name, inputs)}


def _called_again(model: nn.Module, call: Call) -> Iterator[tuple[str, int]]:
    """Yield the composite modules that one call makes several times, with their number."""
    names = [child.module for child in call.children]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and _is_composite(model.get_submodule(name)):
            yield name, names.count(name)
    for child in call.children:
        yield from _called_again(model, child)


def _is_composite(module: nn.Module) -> bool:
    """Tell whether several parts of a module have parameters."""
    holders = [part for part in module.modules() if next(part.parameters(False), None) is not None]
    return len(holders) > 1


def _takes_its_own(model: nn.Module, name: str, inputs: dict[str, Tensor]) -> bool:
    """Tell whether a module's second input changes if its first output is replaced by zeros."""
    as_it_is = _second_input(model, name, inputs, empties_first=False)
    otherwise = _second_input(model, name, inputs, empties_first=True)
    pairs = zip(as_it_is, otherwise, strict=False)
    return any(one.shape != other.shape or not same_bits(one, other) for one, other in pairs)


def _second_input(
    model: nn.Module, name: str, inputs: dict[str, Tensor], *, empties_first: bool
) -> list[Tensor]:
    """Run the network; return copies of the tensors that a module's second call takes."""
    taken: list[list[Tensor]] = []

    def enter(module: nn.Module, args: object, kwargs: dict[str, object]) -> None:
        # Copied, as a later operation may change them in place.
        taken.append([tensor.clone() for tensor in tensors_in([args, *kwargs.values()])])

    def leave(module: nn.Module, args: object, output: object) -> object:
        if len(taken) > 1 or not empties_first:
            return None
        return rebuilt(output, torch.zeros_like)

    module = model.get_submodule(name)
    handles = [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return taken[1] if len(taken) > 1 else []
