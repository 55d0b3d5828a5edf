"""The only writer of checkpoints: weights delta, optimizer state by name, progress, manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.bits import fingerprint
from finetune.disk import sync, write_new
from finetune.errors import CheckpointError, FinetuneError, NonFiniteError, named
from finetune.freezing.rows import tensor_of
from finetune.optim.groups import load_state_by_name, state_by_name
from finetune.reading import check_safetensors
from finetune.runs.kept import Checkpoints, read_document, read_progress
from finetune.runs.manifest import MANIFEST, Manifest, read_manifest
from finetune.runs.progress import Progress
from finetune.train.delta import Base, buffers_of, fault_of_delta, tensors_of

SEPARATOR = "//"
"""Stands between a parameter's name and the name of its state: names have no slash."""
_UNREADABLE = (SafetensorError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
"""Exceptions that safetensors and torch raise for headers of odd types, shapes and offsets."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
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
    snapshot = CheckpointState.of(model, optimizer, progress, base, scaler)
    return checkpoints.add(
        snapshot.step, partial(CheckpointState.write, snapshot), progress.wanted_steps()
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
    _put_in_place(read_weights(path, model, base), model, base)


def read_weights(path: Path, model: nn.Module, base: Base) -> dict[str, Tensor]:
    """Return the delta of a checkpoint, judged by the model that it is meant for.

    Raises:
        CheckpointError: as `load_weights_delta`.
    """
    manifest, delta = read_manifest(path), read_tensors(path / "weights.safetensors")
    moved = frozenset(manifest.moved_buffers)
    if (fault := fault_of_delta(delta, moved, model, base)) is not None:
        raise CheckpointError(fault, where=str(path))
    base.refuse_another(manifest.base, moved, where=str(path))
    return delta


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, base: Base
) -> tuple[Progress, dict[str, Any]]:
    """Take up a checkpoint: weights and optimizer state in place; progress and loss scale back.

    Raises:
        CheckpointError: it does not fit the model that the config builds.
    """
    delta, state = read_weights(path, model, base), read_state(path)
    if strange := sorted(state.keys() - set(base.trained)):
        message = f"has optimizer state of {named(strange)}, which never trains"
        raise CheckpointError(message, where=str(path))
    progress, scaler = read_progress(path), dict(read_document(path)["scaler"])
    _put_in_place(delta, model, base)
    device = next(model.parameters()).device
    load_state_by_name(
        optimizer,
        {n: {k: _placed(v, device) for k, v in entries.items()} for n, entries in state.items()},
    )
    return progress, scaler


def read_state(path: Path) -> dict[str, dict[str, Any]]:
    """Return the optimizer state of a checkpoint by parameter and by the state's own name.

    Raises:
        CheckpointError: it is not what this release writes.
    """
    state: dict[str, dict[str, Any]] = {}
    for name, entries in read_document(path)["optimizer"].items():
        if not isinstance(entries, dict):
            message = f"progress.json: optimizer state of {named([name])} is no object"
            raise CheckpointError(message, where=str(path))
        state[name] = dict(entries)
    for label, tensor in read_tensors(path / "optimizer.safetensors").items():
        name, _, entry = label.partition(SEPARATOR)
        if entry in state.setdefault(name, {}):
            message = f"optimizer state {named([label])} is a tensor and a plain number"
            raise CheckpointError(message, where=str(path))
        state[name][entry] = tensor
    return state


def _put_in_place(delta: Mapping[str, Tensor], model: nn.Module, base: Base) -> None:
    """Write a delta that fits into a model; buffers that it leaves out are as they began."""
    tensors = tensors_of(model)
    with torch.no_grad():
        for name, tensor in (base.buffers | dict(delta)).items():
            tensor_of(tensors, name).copy_(tensor)


def _delta(model: nn.Module, base: Base) -> tuple[frozenset[str], dict[str, Tensor]]:
    """Return the names of the buffers that have moved, and copies of all that differs."""
    moved = frozenset(
        n for n, b in buffers_of(model).items() if fingerprint(b) != base.digests.get(n)
    )
    tensors = tensors_of(model)
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
                tensors[f"{name}{SEPARATOR}{entry}"] = _portable(value)
            else:
                plain.setdefault(name, {})[entry] = value
    return tensors, plain


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file whose header is of moderate length.

    Raises:
        CheckpointError: it is not what safetensors writes.
    """
    try:
        check_safetensors(path)
        tensors: dict[str, Tensor] = load_file(path)
    except FinetuneError as error:
        raise CheckpointError(error.message, where=str(path)) from error
    except _UNREADABLE as error:
        message = f"{path.name} cannot be read: {type(error).__name__}: {error}"
        raise CheckpointError(message, where=str(path)) from error
    return tensors


def _portable(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()
