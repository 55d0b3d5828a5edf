"""Weights and state of a user's own layer that lie where PyTorch does not look for them.

A layer in a plain list, or a tensor that is an attribute and no buffer, is no part of the network:
no optimizer trains it, no checkpoint holds it, no proof covers it.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from finetune.bits import same_bits
from finetune.config.model import ImportLayer
from finetune.freezing.lints import Lint
from finetune.lints.subject import Subject
from finetune.preserved import (
    AttributeName,
    attributes,
    loose_values,
    moved_attributes,
    preserved,
)
from finetune.process import available_memory_bytes
from finetune.structure import tensors_in


def state_elsewhere(subject: Subject) -> Iterator[Lint]:
    """Yield a note for each attribute with weights, and for each with state, that none saves."""
    own = [node for node in subject.config.model.layers if isinstance(node, ImportLayer)]
    if not own:
        return
    for (module, attribute), weights in _weights_elsewhere(subject.model).items():
        key, node = subject.layer(module)
        if isinstance(node, ImportLayer):
            tensors = "1 tensor" if len(weights) == 1 else f"{len(weights)} tensors"
            yield Lint(
                key,
                f"{subject.label(module)} keeps {tensors} of weights in {attribute!r}, which is "
                "no part of the network: they are not trained, saved or proven",
                "nn.ModuleList in place of a list, nn.ModuleDict in place of a dict, nn.Parameter "
                "as an attribute",
            )
    if len(subject.samples) < 2:
        return
    for module, attribute in sorted(_moved_by_training(subject)):
        key, _ = subject.layer(module)
        yield Lint(
            key,
            f"training changes {attribute!r} of {subject.label(module)}, and outputs depend on it: "
            "no checkpoint holds it, so evaluated and predicted outputs differ",
            f"self.register_buffer({attribute!r}, ...)",
        )


def _weights_elsewhere(model: nn.Module) -> dict[AttributeName, list[Tensor]]:
    """Return the weights in attributes that are no parameters or buffers of the network."""
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found = dict[AttributeName, list[Tensor]]()
    for place, value in loose_values(model):
        weights = [tensor for tensor in _weights_of(value) if id(tensor) not in known]
        # The same layer may be in two lists.
        known.update(map(id, weights))
        if weights and place[0]:
            found.setdefault(place, []).extend(weights)
    return found


def _weights_of(value: Any) -> list[Tensor]:
    """Return the weights that a value is or holds."""
    if isinstance(value, nn.Module):
        return [*value.parameters()]
    is_weight = isinstance(value, Tensor) and value.is_leaf and value.requires_grad
    return [value] if is_weight else []


def _moved_by_training(subject: Subject) -> set[AttributeName]:
    """Return the attributes by which outputs change after a pass in training."""
    # A layer may move its own weights as it is called, such as a codebook.
    weights = [*_own_weights(subject)]
    if sum(one.nbytes for one in weights) > available_memory_bytes() // 2:
        # They could not be given back.
        return set()
    model, inputs = subject.model, subject.batch(2).inputs
    before = _outputs(model, inputs)
    held = attributes(model)
    with preserved(model, buffers=True, modes=True, weights=weights):
        model.train()
        model(**inputs)
    # Most networks move nothing, and are called no more.
    if not (moved := moved_attributes(held, attributes(model))):
        return set()
    after, again = _outputs(model, inputs), _outputs(model, inputs)
    # Outputs that are drawn anew each time tell nothing. An attribute that moves and changes no
    # output, such as a count of calls, is no state.
    return moved if _alike(after, again) and not _alike(before, after) else set()


def _own_weights(subject: Subject) -> Iterator[nn.Parameter]:
    """Yield the parameters of layers of the user's own."""
    for name, child in subject.model.named_children():
        if isinstance(subject.layer(name)[1], ImportLayer):
            yield from child.parameters()


def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the outputs as tensors of their own."""
    return [tensor.clone() for tensor in tensors_in(model(**inputs))]


def _alike(some: list[Tensor], others: list[Tensor]) -> bool:
    """Tell whether outputs have the same bits."""
    return len(some) == len(others) and all(map(same_bits, some, others))
