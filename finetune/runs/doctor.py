"""Diagnose a run folder: checkpoints, proof, metrics, lock. It is only read.

Neither the network is built nor torch loaded, so a damaged run can be examined on any machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config.loader import load_config
from finetune.errors import CheckpointError, FinetuneError
from finetune.runs.checkpoint_folder import step_of
from finetune.runs.folder import RunFolder
from finetune.runs.headers import SavedPlan
from finetune.runs.kept import Checkpoints, fits_anything
from finetune.runs.lock import holder_of
from finetune.runs.manifest import UNAVERAGED
from finetune.runs.run_record import read_settings
from finetune.runs.saved_proof import empty_proof, read_proof
from finetune.runs.saved_runs import saved_folder
from finetune.tracking.json_lines import has_torn_line, read_metrics

_ENDINGS = ("done", "stopped", "failed")
"""What a summary may say of the end of a run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis, with its label."""

    label: str
    text: str
    is_damage: bool = False
    """Whether something that the run or its results need is damaged."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of one checkpoint: its fault, or None if it is whole."""

    path: Path
    fault: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `examine` found out about a run folder."""

    run: Path
    checkpoints: tuple[State, ...]
    start: Path | None
    """The checkpoint from which the run would resume."""
    chosen: Path | None
    """The checkpoint that predictions would use."""
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, so that resuming and predicting lose nothing."""
        return not any(finding.is_damage for finding in self.findings)


def examine(run: Path) -> Diagnosis:
    """Verify all digests of a run; find the checkpoints that resuming and predicting would use.

    Args:
        run: A run folder. It is only read, also while a process trains in it.

    Raises:
        CheckpointError: it is not a run folder.
    """
    folder = saved_folder(run)
    plan = _plan(folder)
    # A damaged plan is a finding of its own, and must not make every checkpoint look damaged.
    checkpoints = Checkpoints(
        folder.checkpoints, 1, misfit=plan.misfit if plan is not None else fits_anything
    )
    # Every checkpoint, not only the newest: older ones are what a run falls back on.
    states = tuple(State(path, checkpoints.fault(path)) for path in checkpoints.all())
    start, going_on = _going_on(checkpoints)
    chosen, predicting = _predicting(checkpoints)
    findings = (
        *_documents(folder),
        _status(folder, states),
        *(_of_checkpoint(state) for state in states),
        *(
            Finding("orphan", f"{path.name}: the next start removes it")
            for path in _orphans(folder)
        ),
        going_on,
        predicting,
        _proof(folder),
        _metrics(folder),
        Finding("lock", f"held by {holder}" if (holder := holder_of(run)) else "free"),
    )
    return Diagnosis(run, states, start, chosen, findings)


def _plan(folder: RunFolder) -> SavedPlan | None:
    """Return the saved plan, or None if it is missing or damaged."""
    try:
        return SavedPlan.read(folder.read_json("plan.json"))
    except (CheckpointError, ValueError):
        return None


def _documents(folder: RunFolder) -> list[Finding]:
    """Return a finding for each damaged file of `config.yaml`, `data.json` and `plan.json`."""
    # Each document by itself: one that is damaged says nothing about the others.
    found = []
    try:
        load_config(folder.path / "config.yaml")
    except FinetuneError as error:
        found.append(Finding("config", str(error).replace("\n    ", "; "), is_damage=True))
    for name in ("data.json", "plan.json"):
        try:
            document = folder.read_json(name)
            if name == "plan.json":
                SavedPlan.read(document)
        except (CheckpointError, ValueError) as error:
            found.append(Finding(name, getattr(error, "message", str(error)), is_damage=True))
    return found


def _status(folder: RunFolder, states: Sequence[State]) -> Finding:
    """Return how the run ended, or how far it is.

    `summary.json` may be older than the newest checkpoint, if a finished run was made longer.
    """
    whole = [state.path for state in states if state.fault is None]
    newest = whole[-1] if whole else None
    if not (folder.path / "summary.json").is_file():
        so_far = "" if newest is None else f"; {_name(newest)} is its newest whole checkpoint"
        return Finding("status", f"not at its end{so_far}")
    try:
        summary = folder.read_json("summary.json")
        status, steps = summary["status"], summary["steps"]
        # `type`, not `isinstance`: True is an int, too, and no number of steps.
        is_ours = status in _ENDINGS and type(steps) is int and steps >= 0
    except (CheckpointError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        return Finding("status", "summary.json is damaged", is_damage=True)
    ended = f"{status} at step {steps}"
    # Of equal age is usual: the summary is written after the last checkpoint.
    if newest is None or (step_of(newest) or 0) <= steps:
        return Finding("status", ended)
    text = f"not at its end; {_name(newest)} is its newest whole checkpoint, and newer than"
    return Finding("status", f"{text} summary.json ({ended})")


def _name(checkpoint: Path) -> str:
    """Return a checkpoint's name, also where a killed save has left it renamed."""
    return checkpoint.name.removeprefix(".old-")


def _of_checkpoint(state: State) -> Finding:
    """Return the finding about one checkpoint: whole, or its fault."""
    label = _name(state.path)
    return Finding(label, state.fault or "whole", is_damage=state.fault is not None)


def _orphans(folder: RunFolder) -> list[Path]:
    """Return the folders that killed saves have left."""
    return Checkpoints(folder.checkpoints, keep_last=1).orphans()


def _going_on(checkpoints: Checkpoints) -> tuple[Path | None, Finding]:
    """Return the checkpoint to resume from, or None, and a finding that tells why that one."""
    start, passed = checkpoints.start()
    if start is None and not passed:
        return None, Finding("go on", "from the beginning: nothing was saved yet")
    if start is None:
        why = "from the beginning: no checkpoint is whole"
        return None, Finding("go on", why, is_damage=True)
    newer = "1 newer one is" if len(passed) == 1 else f"{len(passed)} newer ones are"
    why = f"{newer} passed over" if passed else "the newest one, and all that it needs is whole"
    # A checkpoint may name an older one as its best: whole itself, it may have lost that one.
    lost = checkpoints.lost_with(start)
    if lost:
        why = f"the newest whole one, without its best weights: {lost[0]}"
    text = f"from {_name(start)}: {why}"
    return start, Finding("go on", text, is_damage=bool(passed or lost))


def _predicting(checkpoints: Checkpoints) -> tuple[Path | None, Finding]:
    """Return the checkpoint that predictions use, or None, with a finding about it."""
    if not checkpoints.all():
        return None, Finding("predict", "not yet: nothing was saved")
    try:
        chosen = checkpoints.chosen()
    except CheckpointError as error:
        where = Path(error.where or "").name
        return None, Finding("predict", f"refused: {where}: {error.message}", is_damage=True)
    kind = ", averaged weights" if (chosen / UNAVERAGED).is_file() else ""
    return chosen, Finding("predict", f"with {_name(chosen)}{kind}")


def _proof(folder: RunFolder) -> Finding:
    """Return whether the saved proof shows that no frozen tensor changed."""
    try:
        proof = read_proof(folder.path)
    except CheckpointError as error:
        return Finding("proof", error.message, is_damage=True)
    if proof is None:
        is_off = read_settings(folder.path).get("freeze.verify") == "off"
        return Finding("proof", "off, by freeze.verify" if is_off else "not taken yet")
    changed = {phase.phase: phase.changed for phase in proof.phases}
    moved = [f"{len(names)} in phase {phase!r}" for phase, names in changed.items() if names]
    if moved:
        return Finding(
            "proof", f"failed: frozen tensors changed, {', '.join(moved)}", is_damage=True
        )
    # The proof lists no changed tensor, and its own verdict is "failed": somebody changed one of
    # the two.
    if not proof.said:
        return Finding("proof", "says that it failed, of nothing that it lists", is_damage=True)
    if not proof.tensors:
        verify = read_settings(folder.path).get("freeze.verify")
        return Finding("proof", f"intact: {empty_proof(verify)}")
    over = "1 phase" if len(proof.phases) == 1 else f"{len(proof.phases)} phases"
    return Finding("proof", f"intact: {proof.tensors} fingerprints equal over {over}")


def _metrics(folder: RunFolder) -> Finding:
    """Return how many whole lines `metrics.jsonl` has, and whether the last one is cut."""
    path = folder.metrics
    if not path.is_file():
        return Finding("metrics", "none yet")
    try:
        lines = read_metrics(path)
        is_torn = has_torn_line(path)
    except FinetuneError as error:
        text = str(error).replace("\n    ", "; ")
        return Finding("metrics", text, is_damage=True)
    torn = ", the last one torn: the next start drops it" if is_torn else ""
    last = f", up to step {lines[-1]['step']}" if lines else ""
    return Finding("metrics", f"{len(lines)} whole lines{last}{torn}")
