"""Proofs as plain data: what a run saves of each one, and how many fingerprints it keeps.

A policy may make hundreds of phases, and each is proven. The newest of its proofs name every tensor
with its fingerprints. An older one keeps all its numbers, and one digest over all its fingerprints
before and one after: whoever has the tensors of that phase can compute the digest again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import blake2b
from typing import Any

from finetune.freezing.origins import Origins
from finetune.freezing.proof import PhaseProof

Record = dict[str, Any]
"""A proof as it stands in `progress.json` and in `freeze_proof.json`."""

_MOST_FINGERPRINTS = 4000
"""Tensors that the proofs of a policy name together: about 600 KB in each of the two files."""
_COUNTS = tuple(field.name for field in fields(Origins))


def as_record(proof: PhaseProof, origins: Origins) -> Record:
    """Return a proof as plain data, with the counts of where its tensors come from."""
    return asdict(proof) | asdict(origins)


def origins_of(record: Mapping[str, Any]) -> Origins | None:
    """Return the counts that a record holds; None if an earlier release wrote it without them."""
    return Origins(*(record[name] for name in _COUNTS)) if _COUNTS[0] in record else None


def with_bounded_digests(records: Sequence[Record], most: int = _MOST_FINGERPRINTS) -> list[Record]:
    """Return the records, where the newest name at most `most` tensors and the rest name none.

    Args:
        records: The proofs of a policy's phases, in order.
        most: The limit. The last record names its tensors however many they are.
    """
    kept, count = list[Record](), 0
    for record in reversed(records):
        count += len(record["digests"])
        kept.append(record if count <= most or not kept else _shortened(record))
    return kept[::-1]


def digest_over(fingerprints: Mapping[str, str]) -> str:
    """Return one digest over fingerprints and their names, in whatever order they are given.

    It is the BLAKE2b hash, of 16 bytes, of a line `fingerprint name` for each tensor, sorted by
    name.
    """
    lines = (f"{fingerprint} {name}\n" for name, fingerprint in sorted(fingerprints.items()))
    return blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def _shortened(record: Record) -> Record:
    """Return a record without the fingerprint of each tensor, and with one digest over all."""
    if not record["digests"]:
        return record
    pairs = record["digests"].items()
    sides = ({name: pair[side] for name, pair in pairs} for side in (0, 1))
    return record | {"digests": {}, "digest_over_all": list(map(digest_over, sides))}
