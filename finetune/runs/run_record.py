"""What a run folder says about its run, read from its small files without torch.

Nothing in a folder is taken for granted: it may come from a stranger, or from an earlier release.
A value that is missing or of another kind is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from finetune import disk
from finetune.config.flat_keys import Setting, flattened
from finetune.config.reader import MAX_BYTES, read_text as parse_yaml
from finetune.errors import FinetuneError
from finetune.reading import parse_json, read_own_json
from finetune.runs.lock import holder_of, read_holder
from finetune.runs.validated_on import ValidationSamples, different_samples, validation_samples

Status = Literal["running", "done", "stopped", "failed", "killed"]
"""How a run is: a killed one neither runs nor has a summary of its last step."""

_TAIL_BYTES = 64 * 1024
"""How much of the end of `metrics.jsonl` is read: the file may hold 100,000 lines."""
_LOSSES = ("validation/loss", "test/loss", "train/loss")
"""Figures by which a run is judged that does not say which one it watches."""
_VARIED = ("optimizer", "schedule", "freeze", "train", "data", "task", "cache", "model")
"""Sections of a config, those first that a person varies most."""
_ABOUT_THE_PLACE = ("name", "folder", "seed")
"""Keys of a config that say nothing about what is trained, and the seed, which is kept apart."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run in a few values."""

    path: Path
    """Its folder."""
    name: str
    """Name of the folder, or its path below the folder that was searched."""
    status: Status
    reason: str | None
    """What ended a run that failed, where it is known."""
    steps: int
    """Optimizer steps done."""
    began: str | None
    """Local date and time at which its last process began; None if it is not known."""
    seconds: float
    """Time of all its activities, over all its processes."""
    main: str
    """Tag of the figure by which the run is judged, such as `validation/accuracy`."""
    falls: bool
    """Whether lower values of it are better."""
    value: float | None
    """The best value of it, or the last one where the best is not known. None before the first."""
    best_step: int | None
    """Step of the best value; None where `value` is the last one."""
    metrics: Mapping[str, float]
    """Figures by tag: at the end those of the weights in use, before that the last ones."""
    settings: Mapping[str, Setting]
    """The config by dotted keys, without name, folder and seed."""
    seed: Setting | None
    summary: Mapping[str, Any]
    """`summary.json`; empty if there is none yet."""
    figures: Mapping[str, bool]
    """For each figure by its name without a part (`loss`) whether lower is better."""

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key by which the best run comes first; runs without a value come last."""
        if self.value is None or math.isnan(self.value):
            return True, 0.0
        return False, self.value if self.falls else -self.value

    def lower_is_better(self, tag: str) -> bool | None:
        """Tell whether lower figures of a tag are better; None if the run does not say."""
        return self.figures.get(tag.partition("/")[2])


def read_run(
    path: Path,
    name: str | None = None,
    *,
    has_ended: bool = False,
    settings: Mapping[str, Setting] | None = None,
) -> RunRecord:
    """Return what a folder says about its run.

    Args:
        path: The folder of a run. It is only read, also while a process trains in it.
        name: What to call it; the folder's own name if left out.
        has_ended: Whether its process is the present one, which holds the lock and is at its end.
        settings: Its `read_settings`, if they were read already.
    """
    settings = read_settings(path) if settings is None else settings
    summary = read_object(path / "summary.json")
    last = _last_figures(path / "metrics.jsonl")
    watched, figures = _figures(path)
    steps = max(_whole(summary.get("steps")), _whole(last.get("step")))
    status = _status(path, summary, steps, has_ended=has_ended)
    ended = status in ("done", "stopped", "failed")
    metrics = _numbers(last)
    if ended:
        # The figures of the weights in use; of the training itself there is only the last loss.
        train = {tag: value for tag, value in metrics.items() if tag == "train/loss"}
        metrics = train | _numbers(summary.get("metrics"))
    # Without a watched figure, as in runs of earlier releases, the best value is of any figure.
    main = watched or next((tag for tag in _LOSSES if tag in metrics), _LOSSES[0])
    value, step = _best(summary) if ended and watched is not None else (None, None)
    said = summary.get("reason")
    holder = read_holder(path)
    return RunRecord(
        path=path,
        name=name or path.resolve().name,
        status=status,
        reason=said if isinstance(said, str) and status == "failed" else None,
        steps=steps,
        began=holder.since if holder is not None else _written_at(path / "config.yaml"),
        seconds=sum(_numbers(summary.get("seconds")).values()),
        main=main,
        falls=figures.get(main.partition("/")[2], True),
        value=metrics.get(main) if value is None else value,
        best_step=step,
        metrics=metrics,
        settings={key: one for key, one in settings.items() if key not in _ABOUT_THE_PLACE},
        seed=settings.get("seed"),
        summary=summary,
        figures=figures,
    )


def read_settings(path: Path) -> dict[str, Setting]:
    """Return the config of a run by dotted keys; empty if there is none that can be read."""
    config = path / "config.yaml"
    try:
        with disk.open_to_read(config) as file:
            text = file.read(MAX_BYTES + 1)[:MAX_BYTES].decode("utf-8-sig")
        # Not by the schema: a run of another release may have keys that this one lacks.
        return flattened(parse_yaml(text, config).root.plain())
    except (OSError, ValueError, FinetuneError):
        return {}


def note_on_samples(runs: Sequence[RunRecord]) -> str | None:
    """Return a line if runs were validated on different samples; None if not, or not known."""
    return different_samples([(run.name, _samples_of(run)) for run in runs])


def note_on_the_end(run: RunRecord) -> str | None:
    """Return a line on the weights of a run that has not reached its end; None if it has."""
    if run.status == "done":
        return None
    how = "still runs" if run.status == "running" else f"was {run.status}"
    how = "has failed" if run.status == "failed" else how
    return (
        f"the run has not reached its end: it {how} at step {run.steps:,}, and this is its "
        "network at a checkpoint on the way"
    )


def parted_by_samples(
    run: RunRecord, others: Sequence[RunRecord]
) -> tuple[list[RunRecord], list[RunRecord]]:
    """Return those of other runs whose figures can be compared with a run's, then the rest.

    The rest was surely validated on other samples. Both lists keep the order.
    """
    own = _samples_of(run)
    alike, rest = list[RunRecord](), list[RunRecord]()
    for other in others:
        theirs = _samples_of(other)
        differs = own is not None and theirs is not None and own.differ_from(theirs)
        (rest if differs else alike).append(other)
    return alike, rest


def _samples_of(run: RunRecord) -> ValidationSamples | None:
    """Return the validation samples of a run, if it says which they are."""
    # No part of the record: the file holds a hash of each sample, and few records are compared.
    return validation_samples(read_object(run.path / "data.json"))


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """Return the keys of the config whose values are not the same in all runs.

    What a person varies most comes first, the layers of the network last.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [key for key in keys if len({str(run.settings.get(key)) for run in runs}) > 1]
    return sorted(differing, key=_place_of_section)


def _place_of_section(key: str) -> int:
    """Return the place of a key's section among those that a person varies."""
    section = key.partition(".")[0]
    return _VARIED.index(section) if section in _VARIED else len(_VARIED) - 1


def _status(path: Path, summary: Mapping[str, Any], steps: int, *, has_ended: bool) -> Status:
    """Return how a run is, by its lock and its summary."""
    holder = None if has_ended else holder_of(path)
    if holder is not None and not holder.is_dead():
        return "running"
    # A run that went on after its summary, and was then killed, is further than the summary says.
    if _whole(summary.get("steps")) < steps:
        return "killed"
    for known in ("done", "stopped", "failed"):
        if summary.get("status") == known:
            return known
    return "killed"


def _figures(path: Path) -> tuple[str | None, dict[str, bool]]:
    """Return the tag of the watched figure, if any, and for each known figure whether it falls."""
    said = read_object(path / "plan.json").get("figures")
    said = said if isinstance(said, dict) else {}
    better = said.get("better")
    falls = {"loss": True}
    if isinstance(better, dict):
        known = {name: way for name, way in better.items() if way in ("lower", "higher")}
        falls |= {str(name): way == "lower" for name, way in known.items()}
    main = said.get("main")
    return main if isinstance(main, str) else None, falls


def _best(summary: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """Return the best value of the main figure and its step, as far as a summary has them."""
    best = summary.get("best")
    value = _numbers(best).get("value") if isinstance(best, dict) else None
    if value is None or not isinstance(best, dict):
        return None, None
    step = best.get("step")
    return value, step if type(step) is int else None


def _last_figures(path: Path) -> dict[str, Any]:
    """Return the last value of each tag in the last lines of `metrics.jsonl`, and the step."""
    try:
        with disk.open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return {}
    # The first may be cut by where the tail begins, the last one by a kill.
    whole = lines[:-1] if size <= _TAIL_BYTES else lines[1:-1]
    last: dict[str, Any] = {}
    for line in whole:
        try:
            entry = parse_json(line, str(path))
        except FinetuneError:
            continue
        last |= entry if isinstance(entry, dict) else {}
    return last


def _numbers(values: Any) -> dict[str, float]:
    """Return the entries of an object that are numbers."""
    if not isinstance(values, dict):
        return {}
    found = {str(key): as_number(one) for key, one in values.items()}
    return {key: number for key, number in found.items() if number is not None}


def as_number(value: Any) -> float | None:
    """Return a number of JSON as a float; None for anything else, also for one beyond a float."""
    if type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _whole(value: Any) -> int:
    """Return a whole number from JSON, or 0 for anything else."""
    return value if type(value) is int and value >= 0 else 0


def _written_at(path: Path) -> str | None:
    """Return local date and time at which a file was written; None if there is none."""
    try:
        written = datetime.fromtimestamp(path.lstat().st_mtime)
    except (OSError, ValueError, OverflowError):
        return None
    return written.astimezone().isoformat(" ", "seconds")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a run wrote; empty if it is missing or something else."""
    try:
        found = read_own_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
