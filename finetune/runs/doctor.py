"""What state a run folder is in: checkpoints, proof, metrics, lock. All is read, nothing loaded.

No network is built and no torch loaded, so a sick run can be looked at anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.loader import load_config
from finetune.errors import CheckpointError, FinetuneError
from finetune.tracking.json_lines import has_torn_line, read_metrics
from finetune.runs.folder import RunFolder, saved_folder
from finetune.runs.headers import SavedPlan
from finetune.runs.kept import Checkpoints, fits_anything, step_of
from finetune.runs.lock import holder_of


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis."""

    label: str
    text: str
    is_damage: bool = False
    """Whether something that a run or its results need is not as it should be."""


@dataclass(frozen=True, slots=True)
class State:
    """How one checkpoint is."""

    path: Path
    fault: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `examine` has found out about a run folder."""

    run: Path
    checkpoints: tuple[State, ...]
    start: Path | None
    """The checkpoint that a run would go on from."""
    chosen: Path | None
    """The checkpoint that predictions come from."""
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged: going on and predicting lose nothing."""
        return not any(finding.is_damage for finding in self.findings)


def examine(run: Path) -> Diagnosis:
    """Verify every digest of a run, and tell what going on and predicting would start from.

    Args:
        run: A run folder. It is only read; a process may be at work in it.

    Raises:
        CheckpointError: it is no run folder.
    """
    folder = saved_folder(run)
    plan = _plan(folder)
    checkpoints = Checkpoints(
        folder.checkpoints, 1, misfit=plan.misfit if plan is not None else fits_anything
    )
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
    try:
        return SavedPlan.read(folder.read_json("plan.json"))
    except (CheckpointError, ValueError):
        return None


def _documents(folder: RunFolder) -> list[Finding]:
    """Look at what describes the run."""
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
    """Tell how the run has ended, or how far it had come; a summary may be older than that."""
    whole = [state.path for state in states if state.fault is None]
    newest = whole[-1] if whole else None
    if not (folder.path / "summary.json").is_file():
        so_far = "" if newest is None else f"; {_name(newest)} is its newest whole checkpoint"
        return Finding("status", f"not at its end{so_far}")
    try:
        summary = folder.read_json("summary.json")
        status, steps = summary["status"], summary["steps"]
        is_ours = status in ("done", "stopped") and type(steps) is int and steps >= 0
    except (CheckpointError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        return Finding("status", "summary.json is damaged", is_damage=True)
    ended = f"{status} at step {steps}"
    if newest is None or (step_of(newest) or 0) <= steps:
        return Finding("status", ended)
    text = f"not at its end; {_name(newest)} is its newest whole checkpoint, and newer than"
    return Finding("status", f"{text} summary.json ({ended})")


def _name(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(".old-")


def _of_checkpoint(state: State) -> Finding:
    label = _name(state.path)
    return Finding(label, state.fault or "whole", is_damage=state.fault is not None)


def _orphans(folder: RunFolder) -> list[Path]:
    return Checkpoints(folder.checkpoints, keep_last=1).orphans()


def _going_on(checkpoints: Checkpoints) -> tuple[Path | None, Finding]:
    """Tell where a run would go on, and why there."""
    start, passed = checkpoints.start()
    if start is None and not passed:
        return None, Finding("go on", "from the beginning: nothing was saved yet")
    if start is None:
        why = "from the beginning: no checkpoint is whole"
        return None, Finding("go on", why, is_damage=True)
    newer = "1 newer one is" if len(passed) == 1 else f"{len(passed)} newer ones are"
    why = f"{newer} passed over" if passed else "the newest one, and all that it needs is whole"
    lost = checkpoints.lost_with(start)
    if lost:
        why = f"the newest whole one, without its best weights: {lost[0]}"
    text = f"from {_name(start)}: {why}"
    return start, Finding("go on", text, is_damage=bool(passed or lost))


def _predicting(checkpoints: Checkpoints) -> tuple[Path | None, Finding]:
    """Tell which weights predictions come from."""
    if not checkpoints.all():
        return None, Finding("predict", "not yet: nothing was saved")
    try:
        chosen = checkpoints.chosen()
    except CheckpointError as error:
        where = Path(error.where or "").name
        return None, Finding("predict", f"refused: {where}: {error.message}", is_damage=True)
    return chosen, Finding("predict", f"with {_name(chosen)}")


def _proof(folder: RunFolder) -> Finding:
    if not (folder.path / "freeze_proof.json").is_file():
        return Finding("proof", "not taken yet")
    try:
        proof = folder.read_json("freeze_proof.json")
        phases = [(phase["phase"], phase["digests"], phase["changed"]) for phase in proof["phases"]]
        changed = {name: _changed(digests, told) for name, digests, told in phases}
        said = bool(proof["intact"])
    except (CheckpointError, TypeError, KeyError, ValueError, AttributeError):
        return Finding("proof", "freeze_proof.json is damaged", is_damage=True)
    moved = [f"{len(names)} in phase {phase!r}" for phase, names in changed.items() if names]
    if moved:
        return Finding(
            "proof", f"failed: frozen tensors changed, {', '.join(moved)}", is_damage=True
        )
    if not said:
        return Finding("proof", "says that it failed, of nothing that it lists", is_damage=True)
    tensors = sum(len(digests) for _, digests, _ in phases)
    over = "1 phase" if len(phases) == 1 else f"{len(phases)} phases"
    return Finding("proof", f"intact: {tensors} fingerprints equal over {over}")


def _changed(digests: Mapping[str, Any], told: list[str]) -> set[str]:
    """Return the tensors whose fingerprints differ, whatever the verdict says."""
    return {*told, *(name for name, (before, after) in digests.items() if before != after)}


def _metrics(folder: RunFolder) -> Finding:
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
