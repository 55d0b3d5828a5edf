"""The proof of a run: take fingerprints when a phase begins, compare them when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

from finetune.errors import FrozenWeightError
from finetune.freezing.origins import Origins, Sources, moved_before, trained_in
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
from finetune.freezing.proof_records import as_record, origins_of, with_bounded_digests
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
        # An earlier release saved no counts: they are made now, from the fingerprints.
        return [
            origins_of(record) or self._origins(record["phase"], record["digests"], timeline.begun)
            for record in timeline.progress.proofs
        ]

    def never_moved(self, timeline: Timeline) -> list[str]:
        """Return the names that have been trained and still have their first bits."""
        progress = timeline.progress
        # A phase that has begun and taken no step has trained nothing.
        had_steps = progress.step > progress.phase_began
        trained = trained_in(timeline.begun[: progress.phase + had_steps], self.plan.inventory)
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
        # One proof of the whole run compares its two ends: only what all phases freeze is the same.
        return [name for name in first if all(name in other for other in map(set, others))]

    def _phases(self, phase: Phase) -> tuple[Phase, ...]:
        """Return the phases of a proof. For a whole run of a policy: the one that freezes least."""
        return self.plan.phases if self.plan.verify == "end" else (phase,)

    def _record(self, timeline: Timeline, proof: PhaseProof) -> None:
        """Store a proof in the progress, write all proofs, then raise if this one failed."""
        progress, origins = timeline.progress, self.origins(timeline)
        records = [
            record | asdict(counts)
            for record, counts in zip(progress.proofs, origins, strict=True)
            # With `verify: checkpoint` a phase is proven several times: the last proof counts.
            if record["phase"] != proof.phase
        ]
        counts = self._origins(proof.phase, proof.digests, timeline.begun)
        records.append(as_record(proof, counts))
        # Phases of a list are few, and each one names all its tensors.
        progress.proofs = records if self.plan.policy is None else with_bounded_digests(records)
        self.folder.write_proof(progress.proofs)
        # Raised after writing: the file must show the proof that failed.
        if proof.changed:
            raise FrozenWeightError(in_words(proof))

    def _origins(
        self, phase: str, digests: Mapping[str, Sequence[str]], begun: Sequence[Phase]
    ) -> Origins:
        """Return where the values of a proof's tensors come from.

        Args:
            phase: Name of the phase that the proof is of.
            digests: Fingerprint of each of its tensors before and after.
            begun: The phases that have begun, in order.
        """
        numbers = {one.name: number for number, one in enumerate(begun)}
        # A proof of the whole run has no phase before it that could have moved a tensor.
        number = 0 if self.plan.verify == "end" else numbers.get(phase, 0)
        before = {name: pair[0] for name, pair in digests.items()}
        moved = moved_before(before, begun[:number], self.plan.inventory, self.as_built)
        return self.sources.count(before, moved)
