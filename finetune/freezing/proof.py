"""Proof by fingerprint: frozen parameters and buffers are bit-identical before and after."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.bits import fingerprint
from finetune.config.freeze import ModulesConfig
from finetune.errors import FrozenWeightError
from finetune.freezing.apply import frozen_modules, held_modules
from finetune.freezing.rows import rows_of, tensor_of

_ALL_HELD = ModulesConfig()
_MOST_COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class PhaseProof:
    """What was compared over one phase, and how it came out."""

    phase: str
    first_step: int
    last_step: int
    tensors: int
    parameters: int
    """How many numbers the frozen parameters hold."""
    intact: bool
    changed: tuple[str, ...]
    digests: dict[str, tuple[str, str]]
    """Fingerprint of each tensor before and after."""
    left_out: tuple[str, ...]
    """Buffers of frozen modules that were meant to move."""
    largest_change: dict[str, float]
    """Largest difference in a number of each changed tensor, where it could be measured."""


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
        known: Fingerprints taken before that are to stand for what the tensors hold now.

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
    # hashlib lets other threads run while it hashes
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return dict(zip(tensors, threads.map(fingerprint, tensors.values()), strict=True))


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
    """Return what the proof covers: `frozen`, and all buffers of held modules.

    Of a parameter that is frozen in part, the frozen row slices are covered.
    """
    parameters = [name for name, _ in model.named_parameters() if name in frozen]
    slices = sorted(n for n in frozen if rows_of(n)[1] is not None and rows_of(n)[0] not in frozen)
    buffers = _buffers_of(held_modules(model, frozen, modules))
    return list(dict.fromkeys([*parameters, *slices, *buffers]))


def moving_buffers(model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig) -> list[str]:
    """Return the buffers of wholly frozen modules that move on purpose, so are not proven."""
    held = held_modules(model, frozen, modules)
    free = {n: m for n, m in frozen_modules(model, frozen).items() if n not in held}
    return _buffers_of(free)


def copies_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return copies of the named tensors; none where they hold more than 256 MiB together.

    The proof does without them. They are there for one that fails, to tell how far a tensor moved.
    """
    tensors = _tensors(model)
    named = {name: tensor_of(tensors, name).detach() for name in names}
    size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
    return {n: t.clone() for n, t in named.items()} if size <= _MOST_COPIED_BYTES else {}


def changed_tensors(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names whose fingerprint is another one or missing in `after`."""
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
        model: The model, or what has become of it.
        before: The fingerprints.
        phase: Name of the phase.
        first_step: Step at which they were taken.
        last_step: The present step.
        left_out: Buffers that were meant to move.
        copies: The tensors as they were, as far as they are known.
    """
    after = _fingerprints_present(model, before)
    changed = changed_tensors(before, after)
    tensors = dict(model.named_parameters())
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
    """Return which frozen tensors have changed, and how far."""
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
    """Return what is finite; a copy of other bits than the fingerprint's tells nothing."""
    tensors, found = _tensors(model), dict[str, float]()
    for name in changed:
        now = tensor_of(tensors, name) if rows_of(name)[0] in tensors else None
        then = copies.get(name)
        if now is None or then is None or then.shape != now.shape:
            continue
        distance = float((now.detach().cpu().double() - then.cpu().double()).abs().max())
        if fingerprint(then) == before[name] and math.isfinite(distance):
            found[name] = distance
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _fingerprints_present(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    tensors = _tensors(model)
    present = [name for name in names if rows_of(name)[0] in tensors]
    return hashed({name: tensor_of(tensors, name) for name in present})


def _buffers_of(modules: Mapping[str, nn.Module]) -> list[str]:
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in modules.items()
        for name, _ in module.named_buffers(recurse=False)
    ]
