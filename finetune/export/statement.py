"""The certificate of a run: an in-toto statement, what it says, and whether it agrees with itself.

`docs/certificate.md` tells its form. Nothing here needs torch: who checks may have none.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from finetune.errors import FinetuneError
from finetune.export.tensor_files import TensorDigest
from finetune.reading import parse_json_object

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:finetune:certificate:v1"
BEGINNING = f'{{\n "_type": "{STATEMENT}"'.encode()
"""First bytes of each certificate that is written here."""
SECTIONS = ("config", "data", "plan", "proof", "figures", "versions", "tensors")
"""Parts of the predicate, each with a digest."""
_WEIGHTS, _CERTIFICATE = "weights", "certificate"


@dataclass(frozen=True, slots=True)
class CertifiedTensor:
    """One tensor of the network, before training and after."""

    name: str
    """Its name in the run, in the plan and in the proof."""
    exported: str
    """Its name in exported files."""
    dtype: str
    shape: tuple[int, ...]
    is_trained: bool
    """Whether the plan trains it or rows of it, or lets it move as a buffer."""
    is_loaded: bool
    """Whether its values before training come from a file."""
    base_name: str | None
    """Its name in that file, where that was found by its contents."""
    same_as: str | None
    """Another exported name of the same tensor, which comes before; files hold one of them."""
    base: TensorDigest
    final: TensorDigest


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it was read."""

    sections: Mapping[str, Any]
    said: Mapping[str, Any]
    """The digest of each section, as it says."""
    subject: Mapping[str, Any]
    """The digest of each subject by its name."""
    tensors: tuple[CertifiedTensor, ...]


def statement_of(sections: Mapping[str, Any], tensors: tuple[CertifiedTensor, ...]) -> str:
    """Return the text of a certificate.

    Args:
        sections: Config, data, plan, proof, figures and versions as plain data.
        tensors: All tensors of the network.
    """
    whole = {**sections, "tensors": [asdict(one) for one in tensors]}
    # Before the digests: who checks them has lists for tuples, as they come out of the file.
    whole = {name: _strict(whole[name]) for name in SECTIONS}
    digests = {name: digest_of_json(whole[name]) for name in SECTIONS}
    document = {
        "_type": STATEMENT,
        "subject": [
            {"name": _WEIGHTS, "digest": {"finetuneTensorsV1": digest_of_weights(tensors)}},
            {"name": _CERTIFICATE, "digest": {"sha256": digest_of_json(digests)}},
        ],
        "predicateType": PREDICATE,
        "predicate": {**whole, "digests": digests},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def parse_certificate(raw: bytes, where: str) -> Certificate:
    """Return the certificate that a file holds.

    Args:
        raw: The bytes of the file.
        where: Its name, for messages.

    Raises:
        FinetuneError: it is cut, or is no certificate of this form.
    """
    document = parse_json_object(raw, where)
    if document.get("_type") != STATEMENT or document.get("predicateType") != PREDICATE:
        raise FinetuneError(f"is no statement of type {PREDICATE}", where=where)
    try:
        predicate = document["predicate"]
        subject = {str(one["name"]): one["digest"] for one in document["subject"]}
        return Certificate(
            {name: predicate[name] for name in SECTIONS},
            dict(predicate["digests"]),
            subject,
            tuple(map(_tensor, predicate["tensors"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FinetuneError(
            f"is not what a certificate holds: {type(error).__name__}: {str(error)[:100]}",
            where=where,
        ) from error


def faults_within(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Yield what does not agree within a certificate: the part's name, and what is wrong with it.

    That finds accidents and careless changes. Who writes all digests anew is found only by the
    files (`--base`, `--weights`) and by a signature.
    """
    for name in SECTIONS:
        if digest_of_json(certificate.sections[name]) != certificate.said.get(name):
            yield name, "is not as it was certified"
    for name, digest in (
        (_WEIGHTS, {"finetuneTensorsV1": digest_of_weights(certificate.tensors)}),
        (_CERTIFICATE, {"sha256": digest_of_json(dict(certificate.said))}),
    ):
        if certificate.subject.get(name) != digest:
            yield f"subject {name}", "is not that of this statement"
    for name, faults in (("plan", _faults_of_plan), ("proof", _faults_of_proof)):
        try:
            yield from faults(certificate)
        # The digests may fit whatever a stranger wrote there; it must not end in a traceback.
        except (KeyError, TypeError, ValueError, AttributeError):
            yield name, "is not what a run writes"


def digest_of_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys, without blanks, in ASCII."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_weights(tensors: tuple[CertifiedTensor, ...]) -> str:
    """Return the SHA-256 of a line `sha256 name` for each tensor, sorted by exported name."""
    # Sorted, since formats write tensors in orders of their own; a name holds no NUL.
    lines = sorted(f"{one.exported}\0{one.final.sha256}" for one in tensors)
    text = "".join("{1} {0}\n".format(*line.split("\0")) for line in lines)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _faults_of_plan(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Yield where plan and tensors disagree."""
    try:
        trained = {
            # Of a tensor that trains in rows alone the plan names these rows: `weight[:32]`.
            str(name).partition("[")[0]
            for name in certificate.sections["plan"]["ever_trained"]
        }
    except (KeyError, TypeError):
        yield "plan", "does not say what is trained"
        return
    for one in certificate.tensors:
        if one.name in trained and not one.is_trained:
            yield f"tensor {one.name}", "is trained by the plan, and certified as frozen"
        if not one.is_trained and one.base != one.final:
            yield f"tensor {one.name}", "is certified as frozen, and differs from its base"


def _faults_of_proof(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Yield where the proof fails, or disagrees with the tensors."""
    proof = certificate.sections["proof"]
    tensors = {one.name: one for one in certificate.tensors}
    phases = proof.get("phases", ()) if isinstance(proof, dict) else ()
    for phase in phases:
        for name, (before, after) in phase.get("digests", {}).items():
            one = tensors.get(name)
            if before != after:
                yield (
                    f"tensor {name}",
                    f"changed in phase {phase.get('phase')!r} while it was frozen",
                )
            elif one is not None and not one.is_trained and before != one.final.fingerprint:
                yield f"tensor {name}", "is not the one that the proof is about"


def _tensor(entry: Mapping[str, Any]) -> CertifiedTensor:
    """Return a tensor from JSON; raise `TypeError` or `KeyError` for anything else."""
    digests = {side: TensorDigest(**entry[side]) for side in ("base", "final")}
    shape = tuple(entry["shape"])
    found = CertifiedTensor(**{**entry, **digests, "shape": shape})
    texts = [found.name, found.exported, found.dtype]
    texts += [text for one in digests.values() for text in (one.sha256, one.fingerprint)]
    maybe = (one for one in (found.base_name, found.same_as) if one is not None)
    if not all(isinstance(text, str) for text in (*texts, *maybe)):
        raise TypeError("a name, type or digest of a tensor is no text")
    if not isinstance(entry["shape"], list) or any(type(size) is not int for size in shape):
        raise TypeError("the shape of a tensor is no list of whole numbers")
    # 1 equals True, and would pass as it; the certificate would then be read in two ways.
    if type(found.is_trained) is not bool or type(found.is_loaded) is not bool:
        raise TypeError("a tensor does not say whether it is trained and loaded")
    return found


def _strict(value: Any) -> Any:
    """Return plain data as strict JSON has it: no NaN, no infinity, lists for tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
