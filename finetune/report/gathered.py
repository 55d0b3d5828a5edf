"""Collect what the page shows of each run: documents, curves, proof, verdict, as plain data."""

import heapq
import shlex
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.config.flat_keys import Setting
from finetune.errors import CheckpointError
from finetune.redaction import redacted
from finetune.report.curves import Curves, read_curves
from finetune.report.freeze_timeline import TimelineRow, frozen_in_words, timeline_rows
from finetune.report.verdict import Line, VerdictFacts, advice, constant_figure, verdict
from finetune.runs.checkpoint_folder import read_progress
from finetune.runs.kept import Checkpoints
from finetune.runs.kept_pictures import KeptPicture, read_pictures
from finetune.runs.owner import is_run
from finetune.runs.run_record import (
    RunRecord,
    parted_by_samples,
    read_object,
    read_run,
    read_settings,
)
from finetune.runs.saved_proof import SavedProof, read_proof

_MOST_BESIDE = 30
"""Runs beside the one at hand that are looked at, the newest: a folder may hold thousands."""
_FILES_OF_RUNS = (
    "config.yaml",
    "plan.json",
    "data.json",
    "metrics.jsonl",
    "summary.json",
    ".run.lock",
)
"""What lies in the folder of every run that has ended."""
_MOST_CLASSES = 30
"""Names of classes that the page shows; the others are counted."""


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """A phase of the plan, as the page shows it."""

    name: str
    until: str
    trained: int
    frozen: int
    rates: str
    steps: str


@dataclass(frozen=True, slots=True)
class PageOfRun:
    """What the page shows of one run."""

    record: RunRecord
    verdict: tuple[Line, ...]
    advice: tuple[str, ...]
    curves: Curves
    timeline: tuple[TimelineRow, ...]
    frozen: str
    """Which blocks were frozen, and when; empty if that is not known."""
    phases: tuple[PhaseRow, ...]
    policy: str | None
    """What a policy says about how it makes phases."""
    proof: SavedProof | None
    data: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    """Notes on data and weights that the run keeps."""
    before: tuple[str, tuple[tuple[str, str, str], ...]] | None
    """Name of the run before on the same data, and each key with its value there and here."""
    config: str
    """`config.yaml`, with secrets masked."""
    environment: tuple[tuple[str, str], ...]
    repeat: str
    """The command that repeats the run."""
    pictures: tuple[KeptPicture, ...]
    """What the weights in use get wrong of the validation samples."""
    left_out: tuple[str, ...]
    """Names of pictures that are too large for the page."""


def gather(path: Path, name: str | None = None, *, has_ended: bool = False) -> PageOfRun:
    """Return what the page shows of a run.

    Whatever is missing or damaged is left out, so a run can be looked at in any state.

    Args:
        path: The run folder. It is only read, also while a process trains in it.
        name: What to call the run; the name of its folder if left out.
        has_ended: Whether its process is the present one, which holds the lock and is at its end.
    """
    record, curves = read_run(path, name, has_ended=has_ended), read_curves(path)
    plan, data = read_object(path / "plan.json"), read_object(path / "data.json")
    proof, fault = _proof(path)
    earlier = _earlier(record)
    alike, elsewhere = parted_by_samples(record, sorted(earlier, key=lambda run: run.rank))
    counts, timeline = data.get("counts"), _timeline(path, plan, curves)
    is_empty = proof is not None and not proof.tensors
    frozen = frozen_in_words(timeline) or ("nothing" if is_empty else "")
    facts = VerdictFacts(
        record=record,
        curves=curves,
        proof=proof,
        constant=constant_figure(
            record.main, record.settings.get("task.type"), _whole_numbers(counts)
        ),
        earlier=tuple(alike),
        elsewhere=tuple(elsewhere),
        frozen=frozen,
        trained_share=_trained_share(plan, curves),
    )
    # A damaged proof is no missing one: "not proven yet" would hide it.
    lines = verdict(facts)
    if fault is not None:
        lines = [Line("frozen", fault, "bad") if one.label == "frozen" else one for one in lines]
    policy = plan.get("policy")
    pictures, left_out = read_pictures(path)
    return PageOfRun(
        record=record,
        verdict=tuple(lines),
        advice=tuple(advice(facts)),
        curves=curves,
        timeline=timeline,
        frozen=frozen,
        phases=_phases(plan, curves) if policy is None else (),
        policy=str(policy.get("says", "")) if isinstance(policy, dict) else None,
        proof=proof,
        data=tuple(_data_lines(data)),
        notes=tuple(_notes(data, proof)),
        before=_run_before(record, earlier),
        config=_text(path / "config.yaml"),
        environment=_environment(record),
        repeat=redacted(shlex.join(["finetune", "train", str(path / "config.yaml"), "--run"]))
        + " "
        + redacted(shlex.quote(f"{path}-again")),
        pictures=tuple(pictures),
        left_out=tuple(left_out),
    )


def _proof(path: Path) -> tuple[SavedProof | None, str | None]:
    """Return the proof of a run, or why there is none."""
    try:
        return read_proof(path), None
    except CheckpointError as error:
        return None, error.message


def _earlier(record: RunRecord) -> list[RunRecord]:
    """Return the runs beside this one, on the same data and task, that began before it."""
    home = record.path.resolve()
    try:
        beside = [path for path in home.parent.iterdir() if path != home and disk.is_folder(path)]
        # By the time of the folder: reading when each run began would open thousands of files.
        newest = heapq.nlargest(_MOST_BESIDE, beside, key=lambda path: path.lstat().st_mtime)
        ours = _about_data(record.settings)
        # The settings first: they are small, and most neighbours are about something else.
        plain = [path for path in newest if _has_own_files(path) and is_run(path)]
        known = {path: read_settings(path) for path in plain}
        runs = [
            read_run(path, settings=settings)
            for path, settings in known.items()
            if _is_on(settings, ours)
        ]
    # Somebody may remove a neighbour meanwhile; the page does without them.
    except OSError:
        return []
    return [run for run in runs if (run.began or "") < (record.began or "")]


def _has_own_files(folder: Path) -> bool:
    """Tell whether a folder has the files of a run, each of them a file with this one name.

    Nobody has named this folder: a stranger's is not even opened, and what a link or a second name
    leads to is not read.
    """
    for name in _FILES_OF_RUNS:
        try:
            state = (folder / name).lstat()
        except OSError:
            return False
        if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
            return False
    return True


def _is_on(settings: Mapping[str, Setting], data: Mapping[str, Setting]) -> bool:
    """Tell whether a run with these settings learned the same of the same data."""
    return bool(data) and _about_data(settings) == data


def _about_data(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings by which figures of two runs can be compared."""
    kept = ("data.source.", "data.split.", "data.inputs", "data.target", "task.")
    return {key: value for key, value in settings.items() if key.startswith(kept)}


def _run_before(
    record: RunRecord, earlier: Sequence[RunRecord]
) -> tuple[str, tuple[tuple[str, str, str], ...]] | None:
    """Return the newest earlier run, and what differs from it."""
    if not earlier:
        return None
    before = max(earlier, key=lambda run: run.began or "")
    there = {**before.settings, "seed": before.seed}
    here = {**record.settings, "seed": record.seed}
    keys = dict.fromkeys((*there, *here))
    differing = tuple(
        (key, str(there.get(key, "not set")), str(here.get(key, "not set")))
        for key in keys
        if there.get(key) != here.get(key)
    )
    return before.name, differing


def _timeline(path: Path, plan: Mapping[str, Any], curves: Curves) -> tuple[TimelineRow, ...]:
    """Return the rows of the freeze timeline; none where the plan cannot be read."""
    if not curves.phases:
        return ()
    try:
        masks = _masks(path) if "policy" in plan else []
        return tuple(timeline_rows(plan, curves.phases, masks))
    except (KeyError, TypeError, IndexError, AttributeError):
        return ()


def _masks(path: Path) -> list[list[int]]:
    """Return the blocks that train in each phase of a policy, from the newest checkpoint."""
    # The newest has all masks so far; an older one lacks the last ones, and is better than none.
    for checkpoint in reversed(Checkpoints(path / "checkpoints", keep_last=1).all()):
        try:
            return read_progress(checkpoint).masks
        except CheckpointError:
            continue
    return []


def _phases(plan: Mapping[str, Any], curves: Curves) -> tuple[PhaseRow, ...]:
    """Return the phases of the plan with the steps that they took."""
    spans = {span.number: span for span in curves.phases}
    try:
        return tuple(
            PhaseRow(
                name=str(phase["name"]),
                until=_until(phase["until"]),
                trained=int(phase["trained_parameters"]),
                frozen=int(phase["frozen_parameters"]),
                rates=_rates(phase["states"]),
                steps=f"{spans[number].begins:,} to {spans[number].ends:,}"
                if number in spans
                else "not begun",
            )
            for number, phase in enumerate(plan["phases"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _until(until: Any) -> str:
    """Return what ends a phase as words."""
    if not isinstance(until, dict):
        return "the end of the run"
    return ", ".join(f"{key}: {value}" for key, value in until.items())


def _rates(states: Sequence[Mapping[str, Any]]) -> str:
    """Return the different rates of a phase, the lowest and the highest."""
    rates = sorted({one["rate"]["lr"] for one in states if one["rate"]})
    if not rates:
        return "none"
    return f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"


def _trained_share(plan: Mapping[str, Any], curves: Curves) -> float | None:
    """Return the share of parameters that the last phase so far trains."""
    trained, total = curves.of("freeze/trained_parameters"), plan.get("parameters")
    return trained[-1][1] / total if trained and type(total) is int and total > 0 else None


def _data_lines(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known about the data, as label and text."""
    lines = []
    sizes = data.get("sizes")
    if isinstance(sizes, dict):
        lines.append(("samples", ", ".join(f"{part} {size}" for part, size in sizes.items())))
    if isinstance(data.get("inputs"), list):
        kinds = data.get("kinds") if isinstance(data.get("kinds"), dict) else {}
        named = [f"{one} ({kinds.get(one, 'unknown')})" for one in data["inputs"]]  # type: ignore[union-attr]
        lines.append(("inputs", ", ".join(named)))
    if data.get("target") is not None:
        lines.append(("target", str(data["target"])))
    classes = data.get("classes")
    if isinstance(classes, list):
        shown = ", ".join(map(str, classes[:_MOST_CLASSES]))
        more = f" and {len(classes) - _MOST_CLASSES:,} more" if len(classes) > _MOST_CLASSES else ""
        lines.append(("classes", f"{len(classes):,}: {shown}{more}"))
    counts = _whole_numbers(data.get("counts"))
    if counts:
        text = f"{min(counts):,} to {max(counts):,} training samples in a class"
        lines.append(("balance", text))
    return lines


def _notes(data: Mapping[str, Any], proof: SavedProof | None) -> list[str]:
    """Return notes on data and weights."""
    notes = data.get("notes")
    kept = [str(note) for note in notes] if isinstance(notes, list) else []
    if proof is not None and proof.tensors:
        loaded = sum(phase.loaded for phase in proof.phases)
        random = sum(phase.as_initialised for phase in proof.phases)
        kept.append(
            f"Of the frozen tensors, counted in each phase, {loaded:,} were loaded from weights "
            f"and {random:,} have their first random values."
        )
    return kept


def _environment(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return versions and device of the process that ended the run."""
    versions = record.summary.get("versions")
    pairs = list(versions.items()) if isinstance(versions, dict) else []
    if "device" in record.summary:
        pairs.append(("device", record.summary["device"]))
    return tuple((str(name), str(one)) for name, one in pairs)


def _whole_numbers(values: Any) -> list[int] | None:
    """Return a list of whole numbers from JSON; None for anything else."""
    is_list = isinstance(values, list) and all(type(value) is int for value in values)
    return values if is_list else None


def _text(path: Path) -> str:
    """Return the text of a file of a run; empty if it cannot be read."""
    try:
        with disk.open_to_read(path) as file:
            # Bounded: the folder may come from somebody else, and the page holds the whole text.
            return file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""
