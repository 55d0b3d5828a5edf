"""The weights delta of a checkpoint: the base it differs from, and checks that it fits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import torch
from torch import Tensor, nn

from finetune.bits import fingerprint
from finetune.distributed import own_part
from finetune.errors import CheckpointError, named
from finetune.freezing.plan import Plan
from finetune.freezing.proof import frozen_tensors, hashed
from finetune.freezing.rows import rows_of, tensor_of

_HINT_BASE = "restore the files that `model:` names, or start afresh with --fresh"


@dataclass(frozen=True, slots=True)
class Base:
    """State of a model before training. A checkpoint holds only the difference to it."""

    trained: tuple[str, ...]
    """Names that train in some phase. They are in every delta."""
    digests: dict[str, str]
    """Fingerprints of all other parameters and of all buffers."""
    buffers: dict[str, Tensor]
    """Copies of all buffers: a delta holds a buffer only after it has moved."""
    movable: frozenset[str]
    """Names of buffers that may change in a run: not all phases prove them constant."""

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> Self:
        """Take fingerprints and copies from a freshly built model."""
        trained, names = plan.ever_trained, [param.name for param in plan.inventory]
        tensors = tensors_of(model)
        # Of a parameter that trains in part the frozen row slices are in the base, not the whole.
        rest = (set(tensors) | set(names)) - set(trained) - {rows_of(n)[0] for n in trained}
        return cls(
            trained=trained,
            digests=hashed({name: tensor_of(tensors, name) for name in sorted(rest)}),
            buffers={name: buffer.clone() for name, buffer in buffers_of(model).items()},
            movable=_movable(model, plan),
        )

    @property
    def never_trained(self) -> dict[str, str]:
        """Fingerprints of parameters that no phase trains; buffers may move on purpose."""
        return {name: one for name, one in self.digests.items() if name not in self.buffers}

    def fingerprint(self, moved: frozenset[str]) -> str:
        """Hash every tensor of the base that a delta with the buffers `moved` leaves out."""
        digest = blake2b(digest_size=16)
        # Sorted: in which order a network lists its tensors says nothing of what they hold.
        for name, value in sorted(self.digests.items()):
            if name not in moved:
                digest.update(f"{name}={value};".encode())
        return digest.hexdigest()

    def refuse_another(self, other: str, moved: frozenset[str], *, where: str) -> None:
        """Refuse a delta that was made over another base.

        Args:
            other: Fingerprint of the base of the delta.
            moved: Buffers in the delta.
            where: The checkpoint, for the message.

        Raises:
            CheckpointError: the model was built from other weights than the run began with.
        """
        if self.fingerprint(moved) != other:
            message = "the pretrained weights are not those that this run began with"
            raise CheckpointError(message, hint=_HINT_BASE, where=where)


def fault_of_delta(
    delta: Mapping[str, Tensor], moved: frozenset[str], model: nn.Module, base: Base
) -> str | None:
    """Return why a delta may not be put into a model, or None if it may.

    A delta must hold every name that ever trains and every moved buffer, with the shape and dtype
    of the model, without NaN and infinity, and nothing else. So it cannot change a tensor that
    never trains. The model is not changed.

    Args:
        delta: The tensors of a checkpoint, by name.
        moved: Buffers that its manifest names as moved; each must be one that this run may move.
        model: The model that the delta is compared with.
        base: State of the model before training.
    """
    if fixed := sorted(moved - base.movable):
        return f"{named(fixed)} is no buffer that this run moves"
    wanted = {*base.trained, *moved}
    if lacking := sorted(wanted - delta.keys()):
        return f"weights.safetensors lacks {named(lacking)}"
    if strange := sorted(delta.keys() - wanted):
        return f"weights.safetensors has {named(strange)}, which never trains"
    return _fault_of_values(delta, model)


def fault_of_trained(found: Mapping[str, Tensor], model: nn.Module, base: Base) -> str | None:
    """Return why tensors cannot be values of parameters that train, or None if they can."""
    if strange := sorted(found.keys() - set(base.trained)):
        return f"{named(strange)} never trains"
    return _fault_of_values(found, model)


def _fault_of_values(found: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Return what is wrong with shape, dtype or values of tensors that the model has, or None."""
    tensors = tensors_of(model)
    for name, tensor in found.items():
        own = tensor_of(tensors, name)
        if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
            return (
                f"{named([name])} does not fit the model: it has {_kind_of(tensor)}, "
                f"the model {_kind_of(own)}"
            )
        if not bool(tensor.isfinite().all()):
            return f"{named([name])} is infinite or NaN"
    return None


def fingerprint_with(
    delta: Mapping[str, Tensor], name: str, model: nn.Module, base: Base
) -> str | None:
    """Return what the fingerprint of a tensor would be with a delta in the model.

    Args:
        delta: A delta that fits the model.
        name: A parameter, rows of one, or a buffer. None is returned if there is no such tensor.
        model: The model. It is not changed.
        base: State of the model before training.
    """
    if name in delta:
        return fingerprint(delta[name])
    parameter = rows_of(name)[0]
    parts = {one: tensor for one, tensor in delta.items() if rows_of(one)[0] == parameter}
    if not parts:
        return base.digests.get(name)
    # The name's rows may lie partly in the delta and partly in the base: they are put together.
    whole = {parameter: tensors_of(model)[parameter].detach().clone()}
    for one, tensor in parts.items():
        tensor_of(whole, one).copy_(tensor)
    return fingerprint(tensor_of(whole, name))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return dict(model.named_parameters()) | buffers_of(model)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Return buffers by name, one that has several names under each of them."""
    return dict(model.named_buffers(remove_duplicate=False))


def _movable(model: nn.Module, plan: Plan) -> frozenset[str]:
    """Return the names of buffers that share no memory with a tensor frozen in the whole run.

    With `verify: off` only parameters count as frozen: nothing proves that a buffer stays.
    """
    tensors = tensors_of(model)
    fixed = {param.name for param in plan.inventory} - set(plan.ever_trained)
    if plan.verify != "off":
        first, *others = (
            set(frozen_tensors(model, phase.frozen, phase.modules)) for phase in plan.phases
        )
        fixed |= first.intersection(*others)
    # A buffer may be a view of a frozen tensor: a delta that wrote the one would change the other.
    places = [place for name in fixed if (place := _place(tensor_of(tensors, name)))]
    return frozenset(
        name
        for name, buffer in buffers_of(model).items()
        if name not in fixed and not _overlaps(_place(buffer), places)
    )


def _place(tensor: Tensor) -> tuple[int, int] | None:
    """Return where a tensor begins and ends in memory; None if it is sparse or empty."""
    tensor = own_part(tensor)
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    # Addresses, not storages: row slices share a storage and do not overlap.
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    begins = tensor.data_ptr()
    return begins, begins + (reach + 1) * tensor.element_size()


def _overlaps(place: tuple[int, int] | None, others: Iterable[tuple[int, int]]) -> bool:
    """Tell whether a range of addresses overlaps one of `others`."""
    if place is None:
        return False
    return any(begins < place[1] and place[0] < ends for begins, ends in others)


def _kind_of(tensor: Tensor) -> str:
    """Describe dtype and shape of a tensor, such as `float32[3, 4]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
