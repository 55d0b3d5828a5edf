"""Read `freeze_proof.json` and compare its fingerprints anew: its verdict may have been edited."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.reading import read_own_json


@dataclass(frozen=True, slots=True)
class ProvenPhase:
    """What the proof of one phase says."""

    phase: str
    tensors: int
    """How many frozen tensors it covers."""
    parameters: int
    """Number of the elements of frozen parameters."""
    changed: frozenset[str]
    """Names whose fingerprints differ, together with those that the proof itself names."""
    loaded: int
    """Frozen tensors whose values come from weights."""
    as_initialised: int
    """Frozen tensors with their first random values."""


@dataclass(frozen=True, slots=True)
class SavedProof:
    """The proofs of all phases of a run."""

    phases: tuple[ProvenPhase, ...]
    said: bool
    """Its own verdict."""

    @property
    def tensors(self) -> int:
        """How many fingerprints were compared."""
        return sum(phase.tensors for phase in self.phases)

    @property
    def is_intact(self) -> bool:
        """Whether no frozen tensor changed, by the fingerprints and by its own verdict."""
        return self.said and not any(phase.changed for phase in self.phases)


def read_proof(run: Path) -> SavedProof | None:
    """Return the proof of a run; None if it has not been taken yet.

    Raises:
        CheckpointError: it is damaged.
    """
    path = run / "freeze_proof.json"
    try:
        found = read_own_json(path)
        return SavedProof(tuple(map(_of_phase, found["phases"])), bool(found["intact"]))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError("freeze_proof.json is damaged", where=str(path)) from error


def empty_proof(verify: object) -> str:
    """Return why a proof covers no tensor, by `freeze.verify` of its run."""
    if verify == "end":
        return "nothing was frozen throughout the run, and freeze.verify: end covers nothing else"
    return "nothing was frozen"


def _of_phase(proof: Mapping[str, Any]) -> ProvenPhase:
    """Return what the proof of a phase says."""
    digests = proof["digests"]
    changed = {name for name, (before, after) in digests.items() if before != after}
    before, after = proof.get("digest_over_all", ("", ""))
    # The proof of a policy's older phase has one digest over all tensors, and tells their number.
    is_short = "digest_over_all" in proof and isinstance(proof["tensors"], int)
    return ProvenPhase(
        str(proof["phase"]),
        proof["tensors"] if is_short else len(digests),
        _count(proof.get("parameters")),
        frozenset({*proof["changed"], *changed, *([] if before == after else ["one of all"])}),
        _count(proof.get("loaded")),
        _count(proof.get("as_initialised")),
    )


def _count(value: Any) -> int:
    return value if type(value) is int else 0
