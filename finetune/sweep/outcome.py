"""What a sweep leaves: a record of each trial, the best config, a page about all runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from finetune import disk
from finetune.config.dumping import as_plain, dump_config
from finetune.config.places import keep_places
from finetune.config.run import RunConfig
from finetune.errors import FinetuneError
from finetune.report.page import render_page
from finetune.runs.owner import is_run
from finetune.runs.run_record import read_run
from finetune.sweep.asked import AskedSweep
from finetune.sweep.claims import NUMBER, REASON, RUN, latest
from finetune.sweep.judging import SweepFigure
from finetune.sweep.search_space import Param, SearchSpace
from finetune.visible import json_text

MARK, BEST, PAGE = "sweep.json", "best.yaml", "report.html"
"""Files in the folder of a sweep."""
MOST_ON_A_PAGE = 50
"""Most runs on the page; the best are taken."""

_STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial in a few values."""

    number: int
    state: str
    """`done`, `pruned`, `failed`, `running` or `waiting`."""
    value: float | None
    """Its figure; of a pruned one that of its last evaluation."""
    evaluations: int
    params: Mapping[str, Param]
    reason: str | None
    """Why it failed."""
    run: Path | None
    """Its run folder; None if it ran on another machine, or never began."""
    seconds: float | None
    """Time of its run over all its processes; None without a run folder here."""


def trial_records(
    trials: Sequence[FrozenTrial], home: Path, judged: SweepFigure
) -> list[TrialRecord]:
    """Return the trials of a sweep, the best first, those that failed last."""
    records = [_record(one, home) for one in latest(trials)]
    sign = 1 if judged.falls else -1

    def place(one: TrialRecord) -> tuple[int, float, int]:
        rank = ("done", "pruned").index(one.state) if one.state in ("done", "pruned") else 2
        return rank + (one.value is None), sign * (one.value or 0.0), one.number

    return sorted(records, key=place)


def _record(trial: FrozenTrial, home: Path) -> TrialRecord:
    """Return the record of a trial."""
    name = trial.user_attrs.get(RUN)
    # Others may write to a shared study: a name must not lead out of the folder.
    run = home / name if isinstance(name, str) and Path(name).name == name else None
    run = run if run is not None and is_run(run) else None
    return TrialRecord(
        number=trial.user_attrs[NUMBER],
        state=_STATES[trial.state],
        value=trial.value,
        evaluations=len(trial.intermediate_values),
        params=trial.params,
        reason=trial.user_attrs.get(REASON),
        run=run,
        seconds=None if run is None else read_run(run).seconds,
    )


def write_best(asked: AskedSweep, best: TrialRecord, home: Path) -> Path:
    """Write the config of the best trial, complete and without the section `sweep`."""
    config = asked.config_with(SearchSpace(asked.sweep.search).overrides(best.params))
    text = f"# trial {best.number} of the sweep in this folder\n{dump_config(config, home)}"
    disk.replace_file(home / BEST, text.encode(), tag=_tag())
    return home / BEST


def write_report(records: Sequence[TrialRecord], home: Path) -> Path | None:
    """Write the page about the runs of all trials that ran here; None if none did."""
    runs = [one.run for one in records if one.run is not None][:MOST_ON_A_PAGE]
    if not runs:
        return None
    page = render_page(runs, [run.name for run in runs])
    disk.replace_file(home / PAGE, page.encode(), tag=_tag())
    return home / PAGE


def make_home(home: Path, study: str) -> None:
    """Make the folder of a sweep, or find that it is one, or that another process makes it now.

    Raises:
        FinetuneError: it holds something else.
    """
    mark = home / MARK
    there = [one.name for one in home.iterdir()] if home.is_dir() else []
    # The mark is the first file of a sweep, and until it is in its place it has another name.
    # Looked for after the rest: another process may have begun in between.
    is_foreign = any(not name.startswith(f".{MARK}.tmp") for name in there)
    if disk.is_file(mark):
        return
    if is_foreign:
        what = "is the folder of a run" if is_run(home) else "holds something, and no sweep"
        raise FinetuneError(what, where=str(home), hint="--dir names another folder")
    disk.make_folder(home)
    disk.replace_file(mark, f"{json_text({'study': study})}\n".encode(), tag=_tag())


def digest_of_config(config: RunConfig, judged: SweepFigure) -> str:
    """Return a digest of what all trials have in common, and of what is searched.

    Paths count as written, so that machines with other folders can share a study.
    """
    plain = as_plain(config)
    if config.path is not None:
        keep_places(plain, config.places, config.path.parent)
    searched = plain.pop("sweep")["search"]
    told = json_text([plain, searched, judged.metric, judged.direction])
    return blake2b(told.encode(), digest_size=16).hexdigest()


def _tag() -> str:
    """Return what tells apart the temporary files of processes that end at the same time."""
    return str(os.getpid())
