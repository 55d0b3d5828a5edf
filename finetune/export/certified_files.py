"""Compare files of weights with a certificate; names each tensor that fails. Without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.export.statement import (
    Certificate,
    CertifiedTensor,
    faults_within,
    parse_certificate,
)
from finetune.export.tensor_files import TensorFiles
from finetune.reading import read_raw_json


@dataclass(frozen=True, slots=True)
class CertificateCheck:
    """What a check has found.

    Args:
        faults: The name of each part or tensor that fails, with what is wrong.
        tensors: How many tensors are certified.
        frozen: How many of them are certified as frozen.
        compared: By `base` and `weights`, how many tensors were compared with a file.
        raw: The bytes of the certificate: a signature must be of what was checked, though the
            file may be another one by then.
    """

    faults: tuple[tuple[str, str], ...]
    tensors: int
    frozen: int
    compared: dict[str, int]
    raw: bytes


def check_certificate(
    path: Path, *, base: Path | None = None, weights: Path | None = None
) -> CertificateCheck:
    """Check a certificate, and compare the files that are given with it.

    Args:
        path: The certificate.
        base: The weights that the run began with: a safetensors file, or a folder of some.
        weights: The trained network as `finetune export --format safetensors` writes it.

    Raises:
        FinetuneError: a file is missing, or the certificate cannot be read.
    """
    raw = read_raw_json(path)
    certificate = parse_certificate(raw, str(path))
    faults, compared = [*faults_within(certificate)], dict[str, int]()
    tensors = certificate.tensors
    if base is not None:
        loaded = [one for one in tensors if one.is_loaded and one.same_as is None]
        told, compared["base"] = _against("base", base, loaded)
        faults += told
    if weights is not None:
        held = [one for one in tensors if one.same_as is None]
        told, compared["weights"] = _against("weights", weights, held)
        faults += told
        # Of a file of another network all would be strange, and are told in one line.
        if compared["weights"]:
            faults += _strange(weights, certificate)
    frozen = sum(not one.is_trained for one in tensors)
    return CertificateCheck(tuple(dict.fromkeys(faults)), len(tensors), frozen, compared, raw)


def _against(
    side: str, path: Path, tensors: Sequence[CertifiedTensor]
) -> tuple[list[tuple[str, str]], int]:
    """Compare the tensors of a file with those that were certified.

    Returns:
        The tensors whose contents differ, with what is wrong; and how many were compared.
    """
    try:
        files = TensorFiles(path)
    except FinetuneError as error:
        if not path.exists():
            raise
        return [(side, f"cannot be read: {error.message}")], 0
    by_name, lost = _by_name(side, files, tensors)
    # Most likely another file was given: a line for each tensor would hide that.
    if lost and not by_name:
        return [(side, f"{path.name!r} has none of the {len(lost)} tensors by name")], 0
    faults = [(f"tensor {one.name}", f"is not in {path.name!r} ({side})") for one in lost]
    for both, found in files.digests(by_name):
        what = "is cut off" if found is None else "differs"
        faults += [
            (f"tensor {one.name}", f"{what} in {path.name!r} ({side})")
            for one in by_name[both]
            if found != (one.base if side == "base" else one.final)
        ]
    return faults, len(tensors) - len(lost)


def _by_name(
    side: str, files: TensorFiles, tensors: Sequence[CertifiedTensor]
) -> tuple[dict[tuple[str, str], list[CertifiedTensor]], list[CertifiedTensor]]:
    """Return tensors by their name in the files and their type, and those that are not there."""
    # Two layers may begin with the same tensor of a file: each of them is compared.
    by_name = dict[tuple[str, str], list[CertifiedTensor]]()
    lost: list[CertifiedTensor] = []
    for one in tensors:
        name = _name_in_base(one, files.names) if side == "base" else _name_in_weights(one, files)
        if name is None:
            lost.append(one)
        else:
            by_name.setdefault((name, one.dtype), []).append(one)
    return by_name, lost


def _strange(path: Path, certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Yield the tensors of a file of weights that are not certified."""
    try:
        names = TensorFiles(path).names
    except FinetuneError:
        return  # told already
    for name in sorted(names - {one.exported for one in certificate.tensors}):
        yield f"tensor {name}", f"of {path.name!r} (weights) is not certified"


def _name_in_weights(one: CertifiedTensor, files: TensorFiles) -> str | None:
    """Return the name of a tensor in exported weights; None if it is not there."""
    return one.exported if one.exported in files.names else None


def _name_in_base(one: CertifiedTensor, names: frozenset[str]) -> str | None:
    """Return the name of a tensor in the file that it was loaded from; None if it is not there.

    That is the name that was found by contents as the certificate was made; else its own one, the
    one without its layer, or the only one that differs at its beginning alone.
    """
    inner = one.name.partition(".")[2]
    for name in (one.base_name, one.exported, inner):
        if name is not None and name in names:
            return name
    alike = [n for n in names if n.endswith(f".{inner}") or (n and inner.endswith(f".{n}"))]
    return alike[0] if len(alike) == 1 else None
