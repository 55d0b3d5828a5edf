"""The only writer of checkpoints: weights delta, optimizer state by name, progress, manifest."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import CheckpointError
from finetune.freezing.plan import Plan
from finetune.freezing.proof import fingerprint, hashed
from finetune.freezing.rows import rows_of, tensor_of
from finetune.optim.groups import load_state_by_name, state_by_name
from finetune.train.progress import Progress

FORMAT_VERSION = 1
_FILES = ("weights.safetensors", "optimizer.safetensors", "progress.json")
_SEPARATOR = "//"
"""Stands between a parameter's name and the name of its state: names have no slash."""


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
class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: `runs/<name>/checkpoints`.
        keep_last: How many of the newest survive.
    """

    folder: Path
    keep_last: int

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        base: Base,
        *,
        scaler: Mapping[str, float],
    ) -> Path:
        """Write one checkpoint beside the others, under its own name only when it is whole.

        Order: temporary folder, files, fsync of each, manifest, fsync, rename, fsync of the
        parent; only then are older ones pruned. A kill at any point leaves the older ones usable.

        Raises:
            CheckpointError: the disk refuses.
        """
        final = self.path_of(progress.step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _written_aside(final) as temporary:
                moved = _write_weights(temporary, model, base)
                plain = _write_optimizer(temporary, optimizer)
                document = {
                    "progress": progress.to_json(),
                    "optimizer": plain,
                    "scaler": dict(scaler),
                }
                _write_json(temporary / "progress.json", document)
                _write_manifest(temporary, progress, base.fingerprint(moved), moved)
        except OSError as error:
            raise CheckpointError(
                f"cannot save: {error.strerror or error}", where=str(final)
            ) from error
        self._prune(progress)
        return final

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first."""
        return sorted(self.folder.glob("step-[0-9]*"), key=lambda p: int(p.name[5:]))

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that is whole, and a line for each damaged one passed."""
        damaged: list[str] = []
        for path in reversed(self.all()):
            if (fault := find_fault(path)) is None:
                return path, damaged
            damaged.append(f"{path}: {fault}; passed over")
        return None, damaged

    def sweep(self) -> None:
        """Remove what killed saves have left."""
        for orphan in self.folder.glob(".tmp-*"):
            shutil.rmtree(orphan, ignore_errors=True)

    def _prune(self, progress: Progress) -> None:
        whole = [path for path in self.all() if (path / "MANIFEST.json").is_file()]
        kept = set(whole[-self.keep_last :])
        for step in (progress.best_step, progress.phase_best_step):
            if step is not None:
                kept.add(self.path_of(step))
        for path in set(whole) - kept:
            shutil.rmtree(path, ignore_errors=True)


def find_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "no readable MANIFEST.json"
    if manifest.get("version") != FORMAT_VERSION:
        return f"format version {manifest.get('version')!r}, this release reads {FORMAT_VERSION}"
    for name in _FILES:
        expected, file = manifest.get("files", {}).get(name, {}), path / name
        if not file.is_file() or file.is_symlink():
            return f"{name} is missing"
        if file.stat().st_size != expected.get("size_bytes"):
            return f"{name} has {file.stat().st_size} bytes, needs {expected.get('size_bytes')}"
        if _digest(file) != expected.get("blake2b"):
            return f"{name} does not match its digest"
    return None


def load_weights_delta(path: Path, model: nn.Module, base: Base) -> None:
    """Put the delta of a checkpoint into a freshly built model.

    Raises:
        CheckpointError: the model is built on another base than the checkpoint was, or the
            delta does not fit it.
    """
    manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    if base.fingerprint(frozenset(manifest["moved_buffers"])) != manifest["base"]:
        raise CheckpointError(
            "the pretrained weights are not those that this run began with",
            hint="restore the files that `model:` names, or start afresh with --fresh",
            where=str(path),
        )
    tensors = _tensors(model)
    delta = load_file(path / "weights.safetensors")
    wrong = [name for name, tensor in delta.items() if not _fits(tensors, name, tensor)]
    if wrong:
        raise CheckpointError(f"does not fit the model: {', '.join(wrong)}", where=str(path))
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
    document = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    state: dict[str, dict[str, Any]] = {n: dict(v) for n, v in document["optimizer"].items()}
    for label, tensor in load_file(path / "optimizer.safetensors").items():
        name, _, entry = label.partition(_SEPARATOR)
        state.setdefault(name, {})[entry] = tensor
    device = next(model.parameters()).device
    for name, entries in state.items():
        state[name] = {k: _placed(v, device) for k, v in entries.items()}
    load_state_by_name(optimizer, state)
    return Progress.from_json(document["progress"]), document["scaler"]


def _fits(tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    return rows_of(name)[0] in tensors and tensor_of(tensors, name).shape == tensor.shape


def _placed(value: Any, device: torch.device) -> Any:
    """Move a state tensor to its parameter; scalars such as Adam's `step` stay on the CPU."""
    return value.to(device) if isinstance(value, Tensor) and value.ndim else value


@contextmanager
def _written_aside(final: Path) -> Iterator[Path]:
    """Give a temporary folder; when the block is done, make it durable and rename it."""
    temporary = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_weights(folder: Path, model: nn.Module, base: Base) -> frozenset[str]:
    """Write the delta; return the names of the buffers in it."""
    moved = frozenset(
        n for n, b in _buffers(model).items() if fingerprint(b) != base.digests.get(n)
    )
    tensors = _tensors(model)
    names = (*base.trained, *sorted(moved))
    delta = {name: _portable(tensor_of(tensors, name)) for name in names}
    _save_tensors(folder / "weights.safetensors", delta)
    return moved


def _write_optimizer(folder: Path, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Write the tensors of the optimizer's state; return its plain numbers by name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, entries in state_by_name(optimizer).items():
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}{_SEPARATOR}{entry}"] = _portable(value)
            else:
                plain.setdefault(name, {})[entry] = value
    _save_tensors(folder / "optimizer.safetensors", tensors)
    return plain


def _write_manifest(folder: Path, progress: Progress, base: str, moved: frozenset[str]) -> None:
    files = {
        name: {"size_bytes": (folder / name).stat().st_size, "blake2b": _digest(folder / name)}
        for name in _FILES
    }
    document = {
        "version": FORMAT_VERSION,
        "step": progress.step,
        "phase": progress.phase,
        "base": base,
        "moved_buffers": sorted(moved),
        "files": files,
    }
    _write_json(folder / "MANIFEST.json", document)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _sync(path)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path)
    # safetensors makes files that only their owner may read
    path.chmod(0o644)
    _sync(path)


def _portable(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | _buffers(model)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers(remove_duplicate=False))


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
