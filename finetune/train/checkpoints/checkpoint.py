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
from finetune.distributed import own_part, part_like, whole
from finetune.errors import CheckpointError, FinetuneError, NonFiniteError, named
from finetune.freezing.rows import tensor_of
from finetune.optim.groups import load_state_by_name, state_by_name
from finetune.reading import check_safetensors
from finetune.runs.checkpoint_folder import read_document, read_progress
from finetune.runs.kept import Checkpoints
from finetune.runs.manifest import MANIFEST, UNAVERAGED, Manifest, read_manifest
from finetune.runs.progress import Progress
from finetune.train.average import Average
from finetune.train.checkpoints.delta import (
    Base,
    buffers_of,
    fault_of_delta,
    fault_of_trained,
    tensors_of,
)
from finetune.train.ranks.shards import NO_SHARDS, Shards

SEPARATOR = "//"
"""Separator of parameter name and state name in a label; parameter names have no slash."""
_UNREADABLE = (SafetensorError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
"""Exceptions that safetensors and torch raise for headers of odd types, shapes and offsets."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """Contents of one checkpoint, copied so that further training does not change them."""

    step: int
    phase: int
    base: str
    """Fingerprint of the tensors that the delta leaves out."""
    moved: frozenset[str]
    """Names of the buffers in the delta."""
    weights: dict[str, Tensor]
    """The delta. It holds the average of a parameter that has one."""
    unaveraged: dict[str, Tensor]
    """Each parameter that has an average, as it was trained."""
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
        average: Average,
        shards: Shards = NO_SHARDS,
    ) -> Self:
        """Copy the present state of a run; of sharded tensors all, on the rank that writes.

        Raises:
            NonFiniteError: a weight or a buffer of the delta is infinite or NaN.
        """
        moved, delta = _delta(model, base, shards)
        averages = {n: shards.kept(shards.whole(n, t)) for n, t in average.tensors.items()}
        _refuse_non_finite(averages)
        tensors, plain = _optimizer_state(optimizer, shards)
        # As text already: the progress changes while a thread writes.
        document = {"progress": progress.to_json(), "optimizer": plain, "scaler": dict(scaler)}
        return cls(
            step=progress.step,
            phase=progress.phase,
            base=base.fingerprint(moved),
            moved=moved,
            # Whoever loads the delta wants what was evaluated, and evaluated are the averages.
            weights=delta | averages,
            unaveraged={name: delta[name] for name in averages},
            optimizer=tensors,
            document=json.dumps(document, indent=1) + "\n",
        )

    def write(self, folder: Path) -> None:
        """Write the files of the checkpoint, each durably, the manifest after all others.

        Raises:
            OSError: the disk refuses.
        """
        # The delta itself says what it holds, to any reader.
        about = {"holds": "averages of the trained parameters"} if self.unaveraged else None
        _save_tensors(folder / "weights.safetensors", self.weights, about)
        if self.unaveraged:
            _save_tensors(folder / UNAVERAGED, self.unaveraged)
        _save_tensors(folder / "optimizer.safetensors", self.optimizer)
        write_new(folder / "progress.json", self.document.encode())
        # Last: it holds digests of the other files, and a folder without it is no checkpoint.
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
    average: Average,
    shards: Shards = NO_SHARDS,
) -> Path | None:
    """Add one checkpoint to the others, under its own name only when it is whole.

    Order: copies, temporary folder, files, fsync of each, manifest, fsync, rename, fsync of the
    parent; only then are older ones pruned. A kill at any point leaves the older ones usable. In
    the background all but the copies happens later.

    With shards every rank calls it, and gives its parts; the first one writes, others return None.

    Raises:
        CheckpointError: the disk refuses, now or for the save before.
        NonFiniteError: a weight or a buffer is infinite or NaN. Nothing is written.
    """
    snapshot = CheckpointState.of(model, optimizer, progress, base, scaler, average, shards)
    # Only after the copies: to put sharded tensors together takes all ranks.
    if not shards.is_writer:
        return None
    return checkpoints.add(
        snapshot.step, partial(CheckpointState.write, snapshot), progress.wanted_steps()
    )


def load_weights_delta(path: Path, model: nn.Module, base: Base) -> None:
    """Write the delta of a checkpoint into a model, in place.

    Args:
        path: A checkpoint that was found whole.
        model: The model, built from the config of the run.
        base: State of the model before training.

    Raises:
        CheckpointError: the checkpoint was made over another base, or its delta does not fit the
            model.
    """
    _put_in_place(read_weights(path, model, base), model, base)


def read_weights(path: Path, model: nn.Module, base: Base) -> dict[str, Tensor]:
    """Read the delta of a checkpoint and check that it fits the model, which is not changed.

    Raises:
        CheckpointError: as `load_weights_delta`.
    """
    manifest, delta = read_manifest(path), read_tensors(path / "weights.safetensors")
    # Any module may write to its buffers in a forward pass, so they are compared one by one.
    moved = frozenset(manifest.moved_buffers)
    # Checked first: only buffers that a run may move can be left out of the base's fingerprint.
    if (fault := fault_of_delta(delta, moved, model, base)) is not None:
        raise CheckpointError(fault, where=str(path))
    base.refuse_another(manifest.base, moved, where=str(path))
    return delta


def read_unaveraged(path: Path, model: nn.Module, base: Base) -> dict[str, Tensor]:
    """Read the weights as trained of a checkpoint, of parameters that have an average.

    Raises:
        CheckpointError: they do not fit the model, which is not changed.
    """
    if UNAVERAGED not in read_manifest(path).files:
        return {}
    tensors = read_tensors(path / UNAVERAGED)
    if (fault := fault_of_trained(tensors, model, base)) is not None:
        raise CheckpointError(f"{UNAVERAGED}: {fault}", where=str(path))
    return tensors


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    base: Base,
    average: Average,
    shards: Shards = NO_SHARDS,
) -> tuple[Progress, dict[str, Any]]:
    """Load weights, averages and optimizer state in place; return progress and loss scale.

    Raises:
        CheckpointError: the checkpoint does not fit the model that the config builds.
    """
    delta, state = read_weights(path, model, base), read_state(path)
    unaveraged = read_unaveraged(path, model, base)
    if strange := sorted(state.keys() - set(base.trained)):
        message = f"has optimizer state of {named(strange)}, which never trains"
        raise CheckpointError(message, where=str(path))
    progress, scaler = read_progress(path), dict(read_document(path)["scaler"])
    # Only now, when all is read and checked: an error before leaves model and optimizer unchanged.
    _put_in_place(delta | unaveraged, model, base)
    average.load({name: shards.part(name, delta[name]) for name in unaveraged})
    # Files hold tensors of the CPU; the optimizer keeps its own where the parameters are.
    device = next(model.parameters()).device
    placed = {
        name: {key: _placed(shards.part(name, value), device) for key, value in entries.items()}
        for name, entries in state.items()
    }
    load_state_by_name(optimizer, placed)
    return progress, scaler


def read_state(path: Path) -> dict[str, dict[str, Any]]:
    """Return the optimizer state of a checkpoint by parameter and by the state's own name.

    Raises:
        CheckpointError: the files are not what this release writes.
    """
    state: dict[str, dict[str, Any]] = {}
    # A safetensors file holds tensors only: plain numbers of the state are in progress.json.
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
    """Write a fitting delta into a model; buffers that it lacks get their first values."""
    tensors = tensors_of(model)
    with torch.no_grad():
        # When a run goes back, a buffer may have moved that had not moved at the checkpoint's step.
        for name, tensor in (base.buffers | dict(delta)).items():
            own = tensor_of(tensors, name)
            own_part(own).copy_(part_like(tensor, own))


def _delta(
    model: nn.Module, base: Base, shards: Shards
) -> tuple[frozenset[str], dict[str, Tensor]]:
    """Return the names of the buffers that have moved, and copies of the delta's tensors."""
    # By their bits, not by who may have written to them: any module may, in a forward pass.
    moved = frozenset(
        n for n, b in buffers_of(model).items() if fingerprint(b) != base.digests.get(n)
    )
    tensors = tensors_of(model)
    names = (*base.trained, *sorted(moved))
    delta = {name: shards.kept(whole(tensor_of(tensors, name))) for name in names}
    _refuse_non_finite(delta)
    return moved, delta


def _refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteError` if a tensor that is to be saved is infinite or NaN."""
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    # Saved, it would be the newest checkpoint, from which the run resumes, and push out a good one.
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if broken[5:] else "")
        raise NonFiniteError(
            f"not saved: infinite or NaN in {shown}",
            hint="the last checkpoint is good; try a lower optimizer.lr or train.max_grad_norm",
        )


def _optimizer_state(
    optimizer: Optimizer, shards: Shards
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return copies of the tensors of the optimizer's state, and its plain numbers by name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, entries in state_by_name(optimizer).items():
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}{SEPARATOR}{entry}"] = shards.kept(shards.whole(name, value))
            else:
                plain.setdefault(name, {})[entry] = value
    return tensors, plain


def _placed(value: Any, device: torch.device) -> Any:
    """Move a state tensor to its parameter; scalars such as Adam's `step` stay on the CPU."""
    return value.to(device) if isinstance(value, Tensor) and value.ndim else value


def _save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, durably; raise OSError if the disk refuses."""
    try:
        save_file(dict(tensors), path, metadata=about)
    except SafetensorError as error:
        # safetensors reports a full disk by its own exception, not by OSError.
        raise OSError(str(error)) from error
    # safetensors makes files that only their owner may read
    path.chmod(0o644)
    sync(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file whose header is of moderate length.

    Raises:
        CheckpointError: the file is not what safetensors writes.
    """
    try:
        # `load_file` reads a header of any length and depth, so its limits are checked before.
        check_safetensors(path)
        tensors: dict[str, Tensor] = load_file(path)
    except FinetuneError as error:
        raise CheckpointError(error.message, where=str(path)) from error
    except _UNREADABLE as error:
        message = f"{path.name} cannot be read: {type(error).__name__}: {error}"
        raise CheckpointError(message, where=str(path)) from error
    return tensors
