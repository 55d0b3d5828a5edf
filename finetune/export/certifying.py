"""Make the certificate of a run: its network before training and after, tensor by tensor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.config.dumping import as_plain
from finetune.config.loader import load_saved
from finetune.errors import CheckpointError, FinetuneError
from finetune.export.layer_names import exported_prefix
from finetune.export.statement import CertifiedTensor, digest_of_json, statement_of
from finetune.export.tensor_files import TensorDigest, TensorFiles, digest_of
from finetune.freezing.origins import Sources
from finetune.freezing.rows import rows_of
from finetune.models.declared import Network
from finetune.runs.kept import Checkpoints
from finetune.runs.manifest import read_manifest
from finetune.runs.saved_runs import saved_config
from finetune.train.after.inference import PLAIN_CALLS
from finetune.train.after.trained import TrainedRun, load_run
from finetune.train.build import build_model_and_task, located


def certificate_of(
    run_dir: str | Path, *, trust: Sequence[str] = (), overrides: Sequence[str] = ()
) -> str:
    """Return the text of the certificate of a run.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import.
        overrides: `key=value` each, for secrets that the saved config masks.

    Raises:
        FinetuneError: the folder holds no usable run, or the run has taken no proof.
    """
    run = load_run(run_dir, trust=trust, overrides=(*overrides, "train.device=cpu", *PLAIN_CALLS))
    with located(run.config):
        base, _ = build_model_and_task(run.config, run.facts, run.specs, run.device)
    plan = run.folder.read_json("plan.json")
    summary = run.folder.read_json("summary.json")
    sections = {
        # As saved: what was overridden above is not of the run.
        "config": as_plain(load_saved(saved_config(run.folder.path))),
        "data": _data(run),
        "plan": plan,
        "proof": _proof(run),
        "figures": summary.get("metrics", {}),
        "versions": summary.get("versions", {}),
    }
    return statement_of(sections, _tensors(run, base, plan))


def _proof(run: TrainedRun) -> Any:
    """Return the proof of a run.

    Raises:
        FinetuneError: it has taken none.
    """
    try:
        return run.folder.read_json("freeze_proof.json")
    except CheckpointError as error:
        raise FinetuneError(
            "the run has no proof that could be certified",
            where=str(run.folder.path),
            hint="it is taken as a phase ends: let the run end, with freeze.verify other than off",
        ) from error


def _data(run: TrainedRun) -> dict[str, Any]:
    """Return what is known of the data: names, sizes, hashes of its columns and rows."""
    identity = run.folder.read_json("data.json")["identity"]
    parts = identity.get("parts", {})
    return {
        "inputs": list(run.facts.inputs),
        "target": run.facts.target,
        "classes": None if run.facts.classes is None else list(run.facts.classes),
        "sizes": dict(run.facts.sizes),
        "columns": identity.get("columns", {}),
        # The hashes of all rows are long, and one over them tells as much here.
        "parts": {name: digest_of_json(part) for name, part in parts.items()},
        "sha256": digest_of_json(identity),
    }


def _tensors(
    run: TrainedRun, base: Network, plan: Mapping[str, Any]
) -> tuple[CertifiedTensor, ...]:
    """Return all tensors of a network with their digests before training and after."""
    before, after = base.state_dict(), run.model.state_dict()
    moved = read_manifest(Checkpoints(run.folder.checkpoints, keep_last=1).chosen()).moved_buffers
    trained = {rows_of(name)[0] for name in plan["ever_trained"]} | set(moved)
    sources = Sources.of(base, base.weights_reports)
    prefix = exported_prefix(run.model)
    started = {name: _digest(before[name]) for name in after}
    names_in_files = _names_in_files(base, started)
    first: dict[tuple[int, int, tuple[int, ...]], str] = {}
    found = []
    for name, tensor in after.items():
        exported = name.removeprefix(prefix)
        # Tied tensors are one in memory; exports hold them once, under the first name.
        place = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.stride()))
        # Empty tensors share the address 0 without being tied.
        other = first.setdefault(place, exported) if tensor.numel() else exported
        found.append(
            CertifiedTensor(
                name=name,
                exported=exported,
                dtype=str(tensor.dtype),
                shape=tuple(tensor.shape),
                is_trained=name in trained,
                is_loaded=name in sources.loaded,
                base_name=names_in_files.get(name),
                same_as=None if other == exported else other,
                base=started[name],
                final=_digest(tensor),
            )
        )
    return tuple(found)


def _digest(tensor: Tensor) -> TensorDigest:
    """Return the digest of a tensor on the CPU."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return digest_of(str(tensor.dtype), tuple(tensor.shape), raw)


def _names_in_files(base: Network, digests: Mapping[str, TensorDigest]) -> dict[str, str]:
    """Return the name that each loaded tensor has in its safetensors file, found by contents."""
    found: dict[str, str] = {}
    for report in base.weights_reports:
        own = {digests[n]: n for n in report.full_names(report.loaded) if n in digests}
        path = Path(report.path)
        if not path.exists():
            continue
        try:
            files = TensorFiles(path)
        except FinetuneError:
            continue  # another format; the check then goes by the tensor's own name
        wanted = [(name, "torch.float32") for name in sorted(files.names)]
        for (name, _), digest in files.digests(wanted):
            if digest is not None and digest in own:
                found[own[digest]] = name
    return found
