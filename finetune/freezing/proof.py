"""Proof by fingerprint: frozen parameters and buffers are bit-identical before and after."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.bits import fingerprint
from finetune.config.freeze import ModulesConfig
from finetune.distributed import is_sharded, whole
from finetune.errors import FrozenWeightError
from finetune.freezing.apply import frozen_modules, held_modules
from finetune.freezing.rows import rows_of, tensor_of

_ALL_HELD = ModulesConfig()
_MOST_COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class PhaseProof:
    """Result of comparing the frozen tensors of one phase."""

    phase: str
    first_step: int
    last_step: int
    tensors: int
    parameters: int
    """Number of elements in the frozen parameters."""
    intact: bool
    changed: tuple[str, ...]
    digests: dict[str, tuple[str, str]]
    """Fingerprint of each tensor before and after."""
    left_out: tuple[str, ...]
    """Buffers of frozen modules that the config lets move."""
    largest_change: dict[str, float]
    """Largest difference of an element, by changed tensor, where it could be measured."""


def fingerprints(
    model: nn.Module,
    names: Iterable[str] | None = None,
    *,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the fingerprint of each named parameter and buffer of `model`.

    Args:
        model: Any module.
        names: The tensors to hash; those that are frozen now if left out (parameters that do not
            require a gradient, and the buffers of wholly frozen modules).
        known: Fingerprints that are returned as they are, without hashing the tensors.

    Raises:
        KeyError: the model has no tensor of that name.
    """
    tensors = _tensors(model)
    if names is None:
        frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
        names = frozen_tensors(model, frozen)
    names, known = list(names), known or {}
    taken = hashed({name: tensor_of(tensors, name) for name in names if name not in known})
    return {name: known[name] if name in known else taken[name] for name in names}


def hashed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the fingerprint of each tensor, hashed by as many threads as torch may use."""
    # One whole tensor at a time, in one order: all ranks gather it together. Sorted, as callers
    # may hand over a set's order, which differs between processes that torchrun has started.
    gathered = {
        n: fingerprint(whole(tensors[n])) for n in sorted(tensors) if is_sharded(tensors[n])
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in gathered}
    # hashlib releases the GIL while it hashes, so threads run in parallel.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        found = dict(zip(rest, threads.map(fingerprint, rest.values()), strict=True))
    return {name: gathered.get(name) or found[name] for name in tensors}


def verify(model: nn.Module, before: Mapping[str, str]) -> None:
    """Check every tensor in `before` against its fingerprint.

    Raises:
        FrozenWeightError: at least one tensor differs or is gone. The message names all of them.
    """
    changed = changed_tensors(before, _fingerprints_present(model, before))
    if changed:
        raise FrozenWeightError(
            f"{len(changed)} of {len(before)} frozen tensors changed: {', '.join(changed)}"
        )


def frozen_tensors(
    model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig = _ALL_HELD
) -> list[str]:
    """Return the names that a proof covers: `frozen`, and all buffers of held modules.

    Held are wholly frozen modules that stay in evaluation mode, and norms if the config says so.

    For a parameter that is frozen in part, these are its frozen row slices.
    """
    parameters = [name for name, _ in model.named_parameters() if name in frozen]
    # Sorted, as a set has no order and the proof is written to a file.
    slices = sorted(n for n in frozen if rows_of(n)[1] is not None and rows_of(n)[0] not in frozen)
    buffers = _buffers_of(held_modules(model, frozen, modules))
    return list(dict.fromkeys([*parameters, *slices, *buffers]))


def moving_buffers(model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig) -> list[str]:
    """Return the buffers of wholly frozen modules in training mode, which are not proven."""
    held = held_modules(model, frozen, modules)
    free = {n: m for n, m in frozen_modules(model, frozen).items() if n not in held}
    return _buffers_of(free)


def copies_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return copies of the named tensors; an empty dict if they take more than 256 MiB.

    A proof works without them. They only measure how far a tensor moved if the proof fails.
    """
    tensors = _tensors(model)
    named = {name: tensor_of(tensors, name).detach() for name in names}
    size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
    return {n: t.clone() for n, t in named.items()} if size <= _MOST_COPIED_BYTES else {}


def changed_tensors(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names whose fingerprint in `after` differs or is missing."""
    return tuple(name for name, digest in before.items() if after.get(name) != digest)


def prove(
    model: nn.Module,
    before: Mapping[str, str],
    *,
    phase: str,
    first_step: int,
    last_step: int,
    left_out: Sequence[str] = (),
    copies: Mapping[str, Tensor] | None = None,
) -> PhaseProof:
    """Compare the frozen tensors with their fingerprints of `first_step`.

    Args:
        model: The model. It may have lost a tensor, which counts as changed.
        before: The fingerprints.
        phase: Name of the phase.
        first_step: Step at which the fingerprints were taken.
        last_step: The present step.
        left_out: Buffers that the config lets move.
        copies: Copies of the tensors from `first_step`, as far as there are any.
    """
    after = _fingerprints_present(model, before)
    changed = changed_tensors(before, after)
    tensors = dict(model.named_parameters())
    # Buffers are proven as well, and are not counted as parameters.
    parameters = {name for name in before if rows_of(name)[0] in tensors}
    return PhaseProof(
        phase=phase,
        first_step=first_step,
        last_step=last_step,
        tensors=len(before),
        parameters=sum(tensor_of(tensors, name).numel() for name in before if name in parameters),
        intact=not changed,
        changed=changed,
        digests={name: (digest, after.get(name, "")) for name, digest in before.items()},
        left_out=tuple(left_out),
        largest_change=_largest_changes(model, before, changed, copies or {}),
    )


def in_words(proof: PhaseProof) -> str:
    """Return the words for a failed proof: which frozen tensors changed, and how far."""
    far = proof.largest_change
    changed = [f"{n} (by up to {far[n]:.3g})" if n in far else n for n in proof.changed]
    return (
        f"{len(changed)} of {proof.tensors} frozen tensors changed in phase {proof.phase!r} "
        f"between steps {proof.first_step} and {proof.last_step}: {', '.join(changed)}"
    )


def _largest_changes(
    model: nn.Module,
    before: Mapping[str, str],
    changed: Sequence[str],
    copies: Mapping[str, Tensor],
) -> dict[str, float]:
    """Return the largest difference by changed tensor, where it is finite and can be measured."""
    tensors, found = _tensors(model), dict[str, float]()
    # Sorted: all ranks gather the same tensor at a time, and `changed` may have a set's order.
    for name in sorted(changed):
        now = tensor_of(tensors, name) if rows_of(name)[0] in tensors else None
        then = copies.get(name)
        # A network may have lost or replaced a tensor: that counts as changed and has no distance.
        if now is None or then is None or then.shape != now.shape:
            continue
        now, then = whole(now), whole(then)
        # On the CPU, as not every device has float64.
        distance = float((now.detach().cpu().double() - then.cpu().double()).abs().max())
        # After a resume the copy may be of the changed tensor: then it is no measure.
        if fingerprint(then) == before[name] and math.isfinite(distance):
            found[name] = distance
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under all their names, tied ones included."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _fingerprints_present(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of the named tensors that the model still has."""
    tensors = _tensors(model)
    present = [name for name in names if rows_of(name)[0] in tensors]
    return hashed({name: tensor_of(tensors, name) for name in present})


def _buffers_of(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules' own buffers, without those of their children."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in modules.items()
        for name, _ in module.named_buffers(recurse=False)
    ]
