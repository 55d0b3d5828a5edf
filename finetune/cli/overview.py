"""The verb `runs`: a table of runs, and the removal of one."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from finetune.cli.options import Json
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.visible import one_line, tell, tell_json

if TYPE_CHECKING:
    from finetune.runs.listing import SeedGroup
    from finetune.runs.run_record import RunRecord

_LONGEST = 40
"""Letters of a value in the last column; `--json` has all of it."""
_MOST_KEYS = 6
"""Config keys that the last column of the table names; `--json` and `finetune diff` name all."""


def runs_command(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder of runs, searched three levels deep.")
    ] = Path("runs"),
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Sort by name, status, steps, began, seconds, a figure or a key of the config.",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Only runs with this value, as in status=done or optimizer.lr=0.1; * is any text.",
        ),
    ] = None,
    rm: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Remove the run in this folder, after a question."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without a question.")] = False,
    as_json: Json = False,
) -> None:
    """Show a table of runs, the best first; runs that differ in the seed alone are one group."""
    if rm is not None:
        given = {"--sort": sort, "--reverse": reverse, "--filter": only, "--json": as_json}
        if name := next((name for name, value in given.items() if value), None):
            raise FinetuneError("has no effect with --rm", where=name)
        _remove(rm, asks=not yes)
        return
    if yes:
        raise FinetuneError("has an effect only with --rm", where="--yes")
    # pydantic and PyYAML take a while to load: `--help` must not wait for them
    from finetune.runs.listing import chosen_runs, find_runs, sorted_groups
    from finetune.runs.run_record import differing_keys, note_on_samples

    with results() as out:
        runs = chosen_runs(find_runs(folder), only or ())
        groups = sorted_groups(runs, sort, reverse=reverse)
        differing, note = differing_keys(runs), note_on_samples(runs)
        if as_json:
            plain = [_as_json(one) for one in groups]
            tell_json({"folder": str(folder), "groups": plain, "note": note}, out)
        elif not runs:
            tell(f"{folder}: no runs" + (" that pass the filter" if only else ""), out)
        else:
            _print_table(groups, differing, out)
            if note is not None:
                tell(note, out)


def _remove(path: Path, *, asks: bool) -> None:
    """Remove a run; on a terminal after a question.

    Raises:
        FinetuneError: it is no run, is in use, or nobody can be asked.
    """
    from finetune.runs.folder import RunFolder
    from finetune.runs.listing import find_runs
    from finetune.runs.lock import refuse_if_held
    from finetune.runs.owner import is_run
    from finetune.runs.removing import remove_run
    from finetune.runs.saved_runs import saved_folder

    if path.is_symlink() or not is_run(path):
        what = "is a link, which is not followed here" if path.is_symlink() else "holds no run"
        raise FinetuneError(what, where=str(path), hint="`finetune runs` lists the runs")
    # A process that trains in it would go on in a folder that is gone.
    refuse_if_held(path)
    # A run that ended before it saved its config can be removed as well.
    folder = saved_folder(path) if (path / "config.yaml").exists() else RunFolder(path)
    folder.refuse_links()
    if asks:
        if not sys.stdin.isatty():
            raise FinetuneError(
                "asks before it removes a run, and standard input is no terminal",
                where="--rm",
                hint="--yes removes without a question",
            )
        run = find_runs(path)[0]
        told = f"{run.status} at step {run.steps}, began {run.began or 'at an unknown time'}"
        question = one_line(f"Remove the run {path} ({told}) with its checkpoints?")
        if not typer.confirm(question, default=False, err=True):
            tell(f"{path}: kept", sys.stderr)
            return
    is_gone = remove_run(folder)
    stay = "" if is_gone else "; files in it that no run has written stay"
    tell(f"{path}: removed{stay}", sys.stderr)


def _as_json(group: "SeedGroup") -> dict[str, Any]:
    """Return a group as plain data."""
    first = group.runs[0]
    return {
        "figure": first.main,
        "lower_is_better": first.falls,
        "mean": group.mean,
        "spread": group.spread,
        "runs": [_run_as_json(run) for run in group.runs],
    }


def _run_as_json(run: "RunRecord") -> dict[str, Any]:
    """Return a run as plain data; JSON has neither infinity nor NaN, which become null."""
    return {
        "run": str(run.path),
        "name": run.name,
        "status": run.status,
        "reason": run.reason,
        "steps": run.steps,
        "began": run.began,
        "seconds": round(run.seconds, 3),
        "value": _finite(run.value),
        "best_step": run.best_step,
        "seed": run.seed,
        "metrics": {tag: _finite(value) for tag, value in run.metrics.items()},
        "config": dict(run.settings),
    }


def _finite(value: float | None) -> float | None:
    # Infinity and NaN minus themselves are NaN.
    return value if value is not None and value - value == 0 else None


def _print_table(groups: "Sequence[SeedGroup]", differing: Sequence[str], out: TextIO) -> None:
    """Print a line per run; before the runs of a group of several, a line with mean and spread."""
    # rich takes a while to load, and `--json` does without
    from finetune.terminal import console_for, new_table

    console = console_for(out)
    mains = list(dict.fromkeys(group.runs[0].main for group in groups))
    figure_name = mains[0] if len(mains) == 1 else "figure"
    table = new_table(["run", "status"], [figure_name, "steps", "seconds"])
    table.add_column("began", no_wrap=True)
    table.add_column("what differs", overflow="fold")
    for group in groups:
        first = group.runs[0]
        several = len(group.runs) > 1
        differs = _differs(first, differing)
        if several:
            text = f"{len(group.runs)} seeds"
            table.add_row(text, "", _mean(group, len(mains) > 1), "", "", "", differs)
        for run in group.runs:
            named = f"  {run.name}" if several else run.name
            own = f"seed={run.seed}" if several else differs
            value = _value(run, several=len(mains) > 1)
            began = (run.began or "").partition("+")[0][:16]
            row = (named, run.status, value, f"{run.steps:,}", _seconds(run.seconds), began, own)
            table.add_row(*row, style=None if run.status == "done" else "dim")
    console.print(table)


def _mean(group: "SeedGroup", named: bool) -> str:
    """Return mean and spread of a group as text."""
    from finetune.terminal import figure

    mean, spread = group.mean, group.spread
    if mean is None:
        return "none"
    text = figure(mean) if spread is None else f"{figure(mean)} ± {figure(spread)}"
    return f"{group.runs[0].main} {text}" if named else text


def _value(run: "RunRecord", *, several: bool) -> str:
    """Return the main figure of a run as text, with its tag where runs have several of them."""
    from finetune.terminal import figure

    if run.value is None:
        return "none"
    # The best one is only known from a summary; of a run without one it is the last.
    text = figure(run.value) + ("" if run.summary else " (last)")
    return f"{run.main} {text}" if several else text


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _differs(run: "RunRecord", keys: Sequence[str]) -> str:
    """Return the values of the keys in which runs differ, as `key=value` pairs."""
    pairs = [f"{key}={_cut(str(run.settings[key]))}" for key in keys if key in run.settings]
    more = f" and {len(pairs) - _MOST_KEYS} more" if len(pairs) > _MOST_KEYS else ""
    return " ".join(pairs[:_MOST_KEYS]) + more
