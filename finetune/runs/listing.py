"""Find the runs below a folder; sort, filter and group them for a table."""

import fnmatch
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from finetune import disk
from finetune.errors import FinetuneError, did_you_mean
from finetune.runs.owner import is_run
from finetune.runs.run_record import RunRecord, read_run

_DEEPEST = 3
"""Levels of folders below the one that is searched; runs usually lie in the first."""
_OWN = ("name", "status", "steps", "began", "seconds", "seed")
"""Fields of a run by which a table may be sorted and filtered, beside figures and config keys."""


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs that differ in their seed alone; most groups hold one run."""

    runs: tuple[RunRecord, ...]
    """The best first."""

    @property
    def mean(self) -> float | None:
        """Mean of the main figure, as far as known; of the runs that are done if any is."""
        values = self._values()
        return fmean(values) if values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the main figure over the runs (n - 1); None below two values."""
        values = self._values()
        return stdev(values) if len(values) > 1 else None

    def _values(self) -> list[float]:
        """Return the figures of the runs that are done, or of all while none is."""
        # A run that was killed at its first evaluation says nothing about the others.
        runs = [run for run in self.runs if run.status == "done"] or self.runs
        return [run.value for run in runs if run.value is not None and math.isfinite(run.value)]


def find_runs(folder: Path) -> list[RunRecord]:
    """Return the runs below a folder, or the run that it is itself. No link is followed.

    Raises:
        FinetuneError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise FinetuneError("no such folder", where=str(folder), hint="train a run first")
    try:
        if is_run(folder):
            return [read_run(folder)]
        return [read_run(path, str(path.relative_to(folder))) for path in _runs_in(folder, 1)]
    except OSError as error:
        where = str(error.filename or folder)
        raise FinetuneError(f"cannot be read: {disk.reason_of(error)}", where=where) from error


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders of runs below a folder, by name."""
    with os.scandir(folder) as entries:
        folders = sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
    for name in folders:
        path = folder / name
        if is_run(path):
            yield path
        # A folder that may not be read is passed over: it is no reason to show no run at all.
        elif depth < _DEEPEST and os.access(path, os.R_OK | os.X_OK):
            yield from _runs_in(path, depth + 1)


def chosen_runs(runs: Sequence[RunRecord], filters: Sequence[str]) -> list[RunRecord]:
    """Return the runs that pass every filter.

    Args:
        runs: The runs.
        filters: `KEY=PATTERN` each: a field (`status=done`), a key of the config
            (`optimizer.lr=0.001`) or a figure. In the pattern `*` matches any text.

    Raises:
        FinetuneError: a filter has another form, or a key that no run has.
    """
    kept = list(runs)
    for text in filters:
        key, equals, pattern = text.partition("=")
        if not equals or not key:
            raise FinetuneError(f"needs the form KEY=VALUE, got {text!r}", where="--filter")
        # Asked of all runs, not of those that are left: else a second filter could be "unknown".
        _refuse_unknown(key, runs, "--filter")
        kept = [run for run in kept if _passes(value_of(run, key), pattern)]
    return kept


def sorted_groups(
    runs: Sequence[RunRecord], key: str | None = None, *, reverse: bool = False
) -> list[SeedGroup]:
    """Return the runs in groups that differ in the seed alone, sorted.

    Args:
        runs: The runs.
        key: A field, a figure or a key of the config; without one the best run comes first, runs
            with the same main figure together.
        reverse: Whether to turn the order round.

    Raises:
        FinetuneError: no run has such a key.
    """
    if key is not None:
        _refuse_unknown(key, runs, "--sort")
    alike: dict[object, list[RunRecord]] = {}
    copies = Counter[object]()
    # Runs that are done first: one that was killed must not take the place of its repetition.
    for run in sorted(runs, key=lambda run: run.status != "done"):
        # Without settings nothing is known: such a run is like no other.
        same = frozenset(run.settings.items()) if run.settings else run.path
        # A copy of a run, or the same run again, is no second seed: a group has each seed once.
        copies[same, run.seed] += 1
        alike.setdefault((same, copies[same, run.seed]), []).append(run)
    groups = [SeedGroup(tuple(sorted(each, key=lambda run: run.rank))) for each in alike.values()]
    groups.sort(key=lambda group: _place(group, key), reverse=reverse)
    return groups


def value_of(run: RunRecord, key: str) -> object:
    """Return a field, a figure or a config value of a run by its name; None if it has none."""
    if key in _OWN:
        return getattr(run, key)
    return run.metrics[key] if key in run.metrics else run.settings.get(key)


def _place(group: SeedGroup, key: str | None) -> tuple[object, ...]:
    """Return the sort key of a group."""
    first = group.runs[0]
    if key is None:
        mean = group.mean
        return first.main, mean is None, (mean or 0.0) * (1 if first.falls else -1), first.name
    value = value_of(first, key)
    # A figure's best value comes first, as in the usual order.
    sign = -1 if key in first.metrics and first.lower_is_better(key) is False else 1
    is_number = isinstance(value, int | float)
    number = sign * float(value) if isinstance(value, int | float) else 0.0
    # Texts and numbers cannot be compared: numbers first, then texts, runs without a value last.
    return value is None, not is_number, number, str(value), first.name


def _passes(value: object, pattern: str) -> bool:
    """Tell whether a value matches the pattern of a filter."""
    # Before numbers: for Python `True` is one, and would match 1 but not true.
    if isinstance(value, bool):
        return str(value).lower() == pattern.lower()
    if isinstance(value, int | float):
        try:
            return float(value) == float(pattern)
        except ValueError:
            pass
    return fnmatch.fnmatchcase("" if value is None else str(value), pattern)


def _refuse_unknown(key: str, runs: Sequence[RunRecord], option: str) -> None:
    """Raise if no run has a field, figure or config key of that name."""
    known: Mapping[str, None] = dict.fromkeys(
        (*_OWN, *(name for run in runs for name in (*run.metrics, *run.settings)))
    )
    if runs and key not in known:
        hint = did_you_mean(key, known) or f"fields: {', '.join(_OWN)}; figures; keys of the config"
        raise FinetuneError(f"no run has {key!r}", where=option, hint=hint)
