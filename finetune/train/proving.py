"""The proof of a run: fingerprints as a phase begins, compared when the plan says so."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

from finetune.errors import FrozenWeightError
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
from finetune.train.folder import RunFolder
from finetune.train.progress import Progress


@dataclass(slots=True)
class Prover:
    """Takes the fingerprints of what is frozen, compares them, and writes down how it came out.

    `Progress.fingerprints` holds those of the present phase, so that a run that goes on after a
    stop proves the phase from its beginning.
    """

    model: nn.Module
    plan: Plan
    folder: RunFolder
    never_trained: Mapping[str, str]
    """Fingerprints of what no phase trains, taken as the run was built."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """Frozen tensors as they were when the phase began, where they are not too large to keep."""

    def begin_phase(self, progress: Progress) -> None:
        """Take the fingerprints of what the phase freezes, unless a checkpoint brought them."""
        names = self.names(progress)
        self.copies = copies_of(self.model, names)
        progress.fingerprints = progress.fingerprints or fingerprints(
            self.model, names, known=self.never_trained
        )

    def prove(self, progress: Progress) -> None:
        """Compare what is frozen with its fingerprints, and write `freeze_proof.json`.

        Raises:
            FrozenWeightError: something has changed.
        """
        if self.plan.verify == "off":
            return
        moving = [
            moving_buffers(self.model, phase.frozen, phase.modules)
            for phase in self._phases(progress)
        ]
        is_whole = self.plan.verify == "end"
        proof = prove(
            self.model,
            progress.fingerprints,
            copies=self.copies,
            phase="whole run" if is_whole else self.plan.phases[progress.phase].name,
            first_step=0 if is_whole else progress.phase_began,
            last_step=progress.step,
            left_out=tuple(dict.fromkeys(name for names in moving for name in names)),
        )
        self._record(progress, proof)

    def end_phase(self, progress: Progress) -> None:
        """Forget the fingerprints of the phase; the next one begins with its own."""
        if self.plan.verify != "end":
            progress.fingerprints = {}

    def names(self, progress: Progress) -> list[str]:
        """Return the tensors that stay frozen for as long as a proof spans."""
        if self.plan.verify == "off":
            return []
        first, *others = (
            frozen_tensors(self.model, phase.frozen, phase.modules)
            for phase in self._phases(progress)
        )
        return [name for name in first if all(name in other for other in map(set, others))]

    def _phases(self, progress: Progress) -> tuple[Phase, ...]:
        is_whole = self.plan.verify == "end"
        return self.plan.phases if is_whole else (self.plan.phases[progress.phase],)

    def _record(self, progress: Progress, proof: PhaseProof) -> None:
        earlier = [old for old in progress.proofs if old["phase"] != proof.phase]
        progress.proofs = [*earlier, asdict(proof)]
        self.folder.write_proof(progress.proofs)
        if proof.changed:
            raise FrozenWeightError(in_words(proof))
