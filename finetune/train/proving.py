"""The proof of a run: fingerprints as a phase begins, compared when the plan says so."""

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
    """Takes the fingerprints of what is frozen, compares them, and writes down how it came out.

    `Progress.fingerprints` holds those of the present phase, so that a run that goes on after a
    stop proves the phase from its beginning.
    """

    model: nn.Module
    plan: Plan
    folder: RunFolder
    sources: Sources
    """Which tensors come from files of weights."""
    as_built: Mapping[str, str]
    """Fingerprints of what no phase trains and of buffers, taken as the run was built."""
    never_trained: Mapping[str, str]
    """Those of parameters alone, which are what the parameters hold at any time."""
    trained_as_built: Mapping[str, str]
    """Fingerprints of what ever trains, taken as the run was built."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """Frozen tensors as they were when the phase began, where they are not too large to keep."""

    def begin_phase(self, timeline: Timeline) -> None:
        """Take the fingerprints of what the phase freezes, unless a checkpoint brought them."""
        names, progress = self.names(timeline.phase), timeline.progress
        self.copies = copies_of(self.model, names)
        progress.fingerprints = progress.fingerprints or fingerprints(
            self.model, names, known=self.never_trained
        )

    def prove(self, timeline: Timeline) -> None:
        """Compare what is frozen with its fingerprints, and write `freeze_proof.json`.

        Raises:
            FrozenWeightError: something has changed.
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
        """Forget the fingerprints of the phase; the next one begins with its own."""
        if self.plan.verify != "end":
            progress.fingerprints = {}

    def origins(self, timeline: Timeline) -> list[Origins]:
        """Count, for each proof so far, where the values that it covers come from."""
        begun = timeline.begun
        return [self._origins(proof, begun) for proof in timeline.progress.proofs]

    def never_moved(self, timeline: Timeline) -> list[str]:
        """Return what was trained in a phase so far and is bit by bit as it was built."""
        progress = timeline.progress
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
        """Return the tensors that stay frozen for as long as a proof spans.

        Args:
            phase: The phase that is proven, unless the proof is one of the whole run.
        """
        if self.plan.verify == "off":
            return []
        first, *others = (
            frozen_tensors(self.model, one.frozen, one.modules) for one in self._phases(phase)
        )
        return [name for name in first if all(name in other for other in map(set, others))]

    def _phases(self, phase: Phase) -> tuple[Phase, ...]:
        """Return the phases that a proof spans: of a policy, the one that freezes least."""
        return self.plan.phases if self.plan.verify == "end" else (phase,)

    def _record(self, timeline: Timeline, proof: PhaseProof) -> None:
        progress = timeline.progress
        earlier = [old for old in progress.proofs if old["phase"] != proof.phase]
        progress.proofs = [*earlier, asdict(proof)]
        counts = map(asdict, self.origins(timeline))
        self.folder.write_proof(
            [proof | count for proof, count in zip(progress.proofs, counts, strict=True)]
        )
        if proof.changed:
            raise FrozenWeightError(in_words(proof))

    def _origins(self, proof: Mapping[str, Any], begun: Sequence[Phase]) -> Origins:
        numbers = {phase.name: number for number, phase in enumerate(begun)}
        number = 0 if self.plan.verify == "end" else numbers.get(proof["phase"], 0)
        before = {name: digest for name, (digest, _) in proof["digests"].items()}
        moved = moved_before(before, begun[:number], self.plan.inventory, self.as_built)
        return self.sources.count(before, moved)
