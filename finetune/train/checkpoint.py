"""The only writer of checkpoints: weights delta, optimizer state by name, progress, manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.bits import fingerprint
from finetune.disk import sync, write_new
from finetune.errors import CheckpointError, FinetuneError, NonFiniteError
from finetune.freezing.plan import Plan
from finetune.freezing.proof import hashed
from finetune.freezing.rows import rows_of, tensor_of
from finetune.optim.groups import load_state_by_name, state_by_name
from finetune.reading import check_safetensors
from finetune.train.kept import Checkpoints, read_document
from finetune.train.manifest import MANIFEST, Manifest, read_manifest
from finetune.train.progress import Progress

_SEPARATOR = "//"
"""Stands between a parameter's name and the name of its state: names have no slash."""
_HINT_BASE = "restore the files that `model:` names, or start afresh with --fresh"


@dataclass(frozen=True, slots=True)
class Base:
    """What a model was before training: a checkpoint holds only what differs from it."""

    trained: tuple[str, ...]
    """Parameters that ever train. They are in every delta."""
    digests: dict[str, str]
    """Fingerprints of all other parameters and of all buffers."""
    buffers: dict[str, Tensor]
    """Copies of all buffers, for deltas from before a buffer moved."""

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> Self:
        """Take fingerprints and copies from a freshly built model."""
        trained, names = plan.ever_trained, [param.name for param in plan.inventory]
        tensors = _tensors(model)
        rest = (set(tensors) | set(names)) - set(trained) - {rows_of(n)[0] for n in trained}
        return cls(
            trained=trained,
            digests=hashed({name: tensor_of(tensors, name) for name in sorted(rest)}),
            buffers={name: buffer.clone() for name, buffer in _buffers(model).items()},
        )

    @property
    def never_trained(self) -> dict[str, str]:
        """Fingerprints of parameters that no phase trains; buffers may move on purpose."""
        return {name: one for name, one in self.digests.items() if name not in self.buffers}

    def fingerprint(self, moved: frozenset[str]) -> str:
        """Hash every tensor of the base that a delta with the buffers `moved` leaves out."""
        digest = blake2b(digest_size=16)
        for name, value in sorted(self.digests.items()):
            if name not in moved:
                digest.update(f"{name}={value};".encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that one checkpoint holds, copied: what trains on cannot change it."""

    step: int
    phase: int
    base: str
    """Fingerprint of what the delta leaves out."""
    moved: frozenset[str]
    """Buffers in the delta."""
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    document: str
    """Text of `progress.json`."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        base: Base,
        scaler: Mapping[str, float],
    ) -> Self:
        """Copy a run as it stands.

        Raises:
            NonFiniteError: a weight or a buffer of the delta is infinite or NaN.
        """
        moved, delta = _delta(model, base)
        tensors, plain = _optimizer_state(optimizer)
        document = {"progress": progress.to_json(), "optimizer": plain, "scaler": dict(scaler)}
        return cls(
            step=progress.step,
            phase=progress.phase,
            base=base.fingerprint(moved),
            moved=moved,
            weights=delta,
            optimizer=tensors,
            document=json.dumps(document, indent=1) + "\n",
        )

    def write(self, folder: Path) -> None:
        """Write the files of the checkpoint, each durably, the manifest after all others.

        Raises:
            OSError: the disk refuses.
        """
        _save_tensors(folder / "weights.safetensors", self.weights)
        _save_tensors(folder / "optimizer.safetensors", self.optimizer)
        write_new(folder / "progress.json", self.document.encode())
        manifest = Manifest.of(folder, self.step, self.phase, self.base, self.moved)
        write_new(folder / MANIFEST, manifest.to_json().encode())


def save_checkpoint(
    checkpoints: Checkpoints,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Progress,
    base: Base,
    *,
    scaler: Mapping[str, float],
) -> Path:
    """Add one checkpoint to the others, under its own name only when it is whole.

    Order: copies, temporary folder, files, fsync of each, manifest, fsync, rename, fsync of the
    parent; only then are older ones pruned. A kill at any point leaves the older ones usable. In
    the background all but the copies happens later.

    Raises:
        CheckpointError: the disk refuses, now or for the save before.
        NonFiniteError: a weight or a buffer is infinite or NaN. Nothing is written.
    """
    snapshot = Snapshot.of(model, optimizer, progress, base, scaler)
    return checkpoints.add(
        snapshot.step, partial(Snapshot.write, snapshot), progress.wanted_steps()
    )


def load_weights_delta(path: Path, model: nn.Module, base: Base) -> None:
    """Put the delta of a checkpoint into a freshly built model.

    Args:
        path: A checkpoint that was found whole.
        model: The model.
        base: What it was when it was built.

    Raises:
        CheckpointError: the model is built on another base than the checkpoint was, or the
            delta does not fit it.
    """
    manifest = read_manifest(path)
    moved = frozenset(manifest.moved_buffers)
    if base.fingerprint(moved) != manifest.base:
        message = "the pretrained weights are not those that this run began with"
        raise CheckpointError(message, hint=_HINT_BASE, where=str(path))
    tensors, delta = _tensors(model), _load_tensors(path / "weights.safetensors")
    wrong = [name for name, tensor in delta.items() if not _fits(tensors, name, tensor)]
    if wrong:
        raise CheckpointError(f"does not fit the model: {', '.join(wrong)}", where=str(path))
    if lacking := {*base.trained, *moved} - delta.keys():
        raise CheckpointError(f"lacks {', '.join(sorted(lacking))}", where=str(path))
    with torch.no_grad():
        for name, tensor in (base.buffers | delta).items():
            tensor_of(tensors, name).copy_(tensor)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, base: Base
) -> tuple[Progress, dict[str, float]]:
    """Take up a checkpoint: weights and optimizer state in place; progress and loss scale back.

    Raises:
        CheckpointError: it does not fit the model that the config builds.
    """
    load_weights_delta(path, model, base)
    document: dict[str, dict[str, Any]] = read_document(path)
    state: dict[str, dict[str, Any]] = {n: dict(v) for n, v in document["optimizer"].items()}
    for label, tensor in _load_tensors(path / "optimizer.safetensors").items():
        name, _, entry = label.partition(_SEPARATOR)
        state.setdefault(name, {})[entry] = tensor
    device = next(model.parameters()).device
    for name, entries in state.items():
        state[name] = {k: _placed(v, device) for k, v in entries.items()}
    try:
        load_state_by_name(optimizer, state)
    except KeyError as error:
        message = f"has optimizer state of {error}, which never trains"
        raise CheckpointError(message, where=str(path)) from error
    return Progress.from_json(document["progress"]), document["scaler"]


def _delta(model: nn.Module, base: Base) -> tuple[frozenset[str], dict[str, Tensor]]:
    """Return the names of the buffers that have moved, and copies of all that differs."""
    moved = frozenset(
        n for n, b in _buffers(model).items() if fingerprint(b) != base.digests.get(n)
    )
    tensors = _tensors(model)
    names = (*base.trained, *sorted(moved))
    delta = {name: _portable(tensor_of(tensors, name)) for name in names}
    broken = [name for name, tensor in delta.items() if not bool(tensor.isfinite().all())]
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if broken[5:] else "")
        raise NonFiniteError(
            f"not saved: infinite or NaN in {shown}",
            hint="the last checkpoint is good; try a lower optimizer.lr or train.max_grad_norm",
        )
    return moved, delta


def _optimizer_state(
    optimizer: Optimizer,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return copies of the tensors of the optimizer's state, and its plain numbers by name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, entries in state_by_name(optimizer).items():
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}{_SEPARATOR}{entry}"] = _portable(value)
            else:
                plain.setdefault(name, {})[entry] = value
    return tensors, plain


def _fits(tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    return rows_of(name)[0] in tensors and tensor_of(tensors, name).shape == tensor.shape


def _placed(value: Any, device: torch.device) -> Any:
    """Move a state tensor to its parameter; scalars such as Adam's `step` stay on the CPU."""
    return value.to(device) if isinstance(value, Tensor) and value.ndim else value


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # It tells a full disk by an error of its own.
        raise OSError(str(error)) from error
    # safetensors makes files that only their owner may read
    path.chmod(0o644)
    sync(path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        check_safetensors(path)
        tensors: dict[str, Tensor] = load_file(path)
    except FinetuneError as error:
        raise CheckpointError(error.message, where=str(path)) from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(path)) from error
    return tensors


def _portable(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | _buffers(model)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers(remove_duplicate=False))
