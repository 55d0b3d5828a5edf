"""The proof of a run: take fingerprints when a phase begins, compare them when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from finetune.errors import FrozenWeightError
from finetune.freezing.origins import Origins, Sources, moved_before
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.proof import (
    PhaseProof,
    copies_of,
    fingerprints,
    frozen_tensors,
    in_words,
    moving_buffers,
    prove,
)
from finetune.runs.folder import RunFolder
from finetune.runs.progress import Progress
from finetune.train.timeline import Timeline


@dataclass(slots=True)
class Prover:
    """Takes fingerprints of frozen tensors, compares them later, and writes the result.

    `Progress.fingerprints` holds those of the present phase, so that a resumed run proves the phase
    from its beginning.
    """

    model: nn.Module
    plan: Plan
    folder: RunFolder
    sources: Sources
    """Which tensors were loaded from weight files."""
    as_built: Mapping[str, str]
    """Fingerprints of parameters that no phase trains and of buffers, before training."""
    never_trained: Mapping[str, str]
    """Fingerprints of such parameters alone. They hold at any step, so none is hashed again."""
    trained_as_built: Mapping[str, str]
    """Fingerprints of the names that train in some phase, before training."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """Copies of the frozen tensors from the phase's first step; empty if they are too large."""

    def begin_phase(self, timeline: Timeline) -> None:
        """Take the fingerprints of what the phase freezes, unless a checkpoint holds them."""
        names, progress = self.names(timeline.phase), timeline.progress
        # After a resume the copies may be of changed tensors. `prove` compares them with the
        # fingerprints before it measures a difference.
        self.copies = copies_of(self.model, names)
        progress.fingerprints = progress.fingerprints or fingerprints(
            self.model, names, known=self.never_trained
        )

    def prove(self, timeline: Timeline) -> None:
        """Compare the frozen tensors with their fingerprints, and write `freeze_proof.json`.

        Raises:
            FrozenWeightError: a tensor has changed.
        """
        if self.plan.verify == "off":
            return
        progress, phase = timeline.progress, timeline.phase
        moving = [
            moving_buffers(self.model, one.frozen, one.modules) for one in self._phases(phase)
        ]
        is_whole = self.plan.verify == "end"
        proof = prove(
            self.model,
            progress.fingerprints,
            copies=self.copies,
            phase="whole run" if is_whole else phase.name,
            first_step=0 if is_whole else progress.phase_began,
            last_step=progress.step,
            left_out=tuple(dict.fromkeys(name for names in moving for name in names)),
        )
        self._record(timeline, proof)

    def end_phase(self, progress: Progress) -> None:
        """Drop the fingerprints of the phase; with `verify: end` they serve the whole run."""
        if self.plan.verify != "end":
            progress.fingerprints = {}

    def origins(self, timeline: Timeline) -> list[Origins]:
        """Return for each proof so far where the values of its tensors come from."""
        begun = timeline.begun
        return [self._origins(proof, begun) for proof in timeline.progress.proofs]

    def never_moved(self, timeline: Timeline) -> list[str]:
        """Return the names that have been trained and still have their first bits."""
        progress = timeline.progress
        # A phase that has begun and taken no step has trained nothing.
        had_steps = progress.step > progress.phase_began
        trained = {
            param.name
            for param in self.plan.inventory
            for phase in timeline.begun[: progress.phase + had_steps]
            if param.name not in phase.frozen
        }
        now = fingerprints(self.model, trained)
        return sorted(name for name in trained if now[name] == self.trained_as_built[name])

    def names(self, phase: Phase) -> list[str]:
        """Return the names of the tensors that stay frozen during the phases of a proof.

        Args:
            phase: The phase to prove; not used if one proof covers the whole run.
        """
        if self.plan.verify == "off":
            return []
        first, *others = (
            frozen_tensors(self.model, one.frozen, one.modules) for one in self._phases(phase)
        )
        return [name for name in first if all(name in other for other in map(set, others))]

    def _phases(self, phase: Phase) -> tuple[Phase, ...]:
        """Return the phases of a proof. For a whole run of a policy: the one that freezes least."""
        return self.plan.phases if self.plan.verify == "end" else (phase,)

    def _record(self, timeline: Timeline, proof: PhaseProof) -> None:
        """Store a proof in the progress, write all proofs, then raise if this one failed."""
        progress = timeline.progress
        # With `verify: checkpoint` a phase is proven several times: the last proof counts.
        earlier = [old for old in progress.proofs if old["phase"] != proof.phase]
        progress.proofs = [*earlier, asdict(proof)]
        counts = map(asdict, self.origins(timeline))
        self.folder.write_proof(
            [proof | count for proof, count in zip(progress.proofs, counts, strict=True)]
        )
        # Raised after writing: the file must show the proof that failed.
        if proof.changed:
            raise FrozenWeightError(in_words(proof))

    def _origins(self, proof: Mapping[str, Any], begun: Sequence[Phase]) -> Origins:
        """Return where the values of one proof's tensors come from."""
        numbers = {phase.name: number for number, phase in enumerate(begun)}
        # A proof of the whole run has no phase before it that could have moved a tensor.
        number = 0 if self.plan.verify == "end" else numbers.get(proof["phase"], 0)
        before = {name: digest for name, (digest, _) in proof["digests"].items()}
        moved = moved_before(before, begun[:number], self.plan.inventory, self.as_built)
        return self.sources.count(before, moved)
