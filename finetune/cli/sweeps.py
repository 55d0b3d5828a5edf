"""The verb `sweep`: many runs of one config over values of some of its keys."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from finetune.cli.options import Config, Json, Overrides, Trust
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.process import loading
from finetune.visible import tell, tell_json

if TYPE_CHECKING:
    from finetune.sweep.outcome import TrialRecord
    from finetune.sweep.sweeping import Sweeping

_CUT = 40
"""Letters of a value in the table; `--json` has all."""


def sweep_command(
    config: Config,
    override: Overrides = None,
    trials: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Trials of the whole sweep.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option("--dir", "--run-dir", metavar="DIR", help="The sweep's folder.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The study: sqlite:///FILE, journal:FILE, postgresql..."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=1024, help="Trials that run at the same time.")
    ] = 1,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Try values of config keys, as its section `sweep` says; the same command goes on.

    Each trial is a run of its own below the sweep's folder. Several processes, also on several
    machines, may work on one study: start the same command again.
    """
    # Optuna and the schema take a while to load: `--help` must not wait for them
    from finetune.importing import require

    say = partial(tell, file=sys.stderr)
    with results() as out:
        require("optuna", extra="sweep")
        with loading():
            from finetune.sweep.asked import AskedSweep
            from finetune.sweep.prepared import prepare
            from finetune.sweep.search_space import check_space

        asked = AskedSweep.of(config, override or (), trust or ())
        try:
            for note in check_space(asked):
                say(f"note: {note}")
            sweeping = prepare(asked, say, home=home, url=storage, trials=trials, jobs=jobs)
            sweeping.run()
            _show(sweeping, out, as_json=as_json)
        except FinetuneError as error:
            # The same error, which now names file and line; it must not become its own cause.
            raise asked.config.located(error) from error.__cause__


def _show(sweeping: "Sweeping", out: TextIO, *, as_json: bool) -> None:
    """Print the trials; write the best config and the page about all runs.

    Raises:
        FinetuneError: no trial has ended well.
    """
    from finetune.runs.run_record import note_on_samples, read_run
    from finetune.sweep.outcome import MOST_ON_A_PAGE, trial_records, write_best, write_report

    home = sweeping.home
    records = trial_records(sweeping.claims.study.get_trials(), home, sweeping.judged)
    best = records[0] if records and records[0].state == "done" else None
    config = None if best is None else write_best(sweeping.asked, best, home)
    page = write_report(records, home)
    judged = [one.run for one in records if one.run is not None and one.state == "done"]
    # The best alone: each has the hashes of all its samples.
    note = note_on_samples([read_run(run) for run in judged[:MOST_ON_A_PAGE]])
    if as_json:
        about = {"sweep": str(home), "metric": sweeping.judged.metric}
        about |= {"direction": sweeping.judged.direction}
        files = {"best": _text(config), "report": _text(page)}
        trials = [_as_json(one) for one in records]
        tell_json({**about, **files, "note": note, "trials": trials}, out)
    else:
        _print_table(sweeping, records, out)
    if note is not None:
        tell(f"note: {note}", sys.stderr)
    num_here = sum(one.run is not None for one in records)
    if num_here > MOST_ON_A_PAGE:
        tell(f"note: the page shows the best {MOST_ON_A_PAGE} of {num_here} runs", sys.stderr)
    if best is None or config is None:
        raise FinetuneError("no trial has ended well", where=str(home))
    tell(f"best: trial {best.number}, {config}", sys.stderr)
    if page is not None:
        tell(f"page: {page}", sys.stderr)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _as_json(record: "TrialRecord") -> dict[str, Any]:
    """Return a trial as plain data."""
    return {
        "number": record.number,
        "state": record.state,
        "value": record.value,
        "evaluations": record.evaluations,
        "params": dict(record.params),
        "seconds": None if record.seconds is None else round(record.seconds, 3),
        "reason": record.reason,
        "run": _text(record.run),
    }


def _print_table(sweeping: "Sweeping", records: "Sequence[TrialRecord]", out: TextIO) -> None:
    """Print a line per trial, the best first."""
    # rich takes a while to load, and `--json` does without
    from finetune.terminal import console_for, figure, new_table

    keys = list(sweeping.asked.sweep.search)
    columns = [sweeping.judged.metric, "evaluations", "seconds"]
    table = new_table(["trial", "state"], columns)
    for key in keys:
        table.add_column(key, overflow="fold")
    for one in records:
        value = "none" if one.value is None else figure(one.value)
        seconds = "none" if one.seconds is None else f"{one.seconds:.1f}"
        params = [_cut(one.params.get(key)) for key in keys]
        row = (str(one.number), one.state, value, str(one.evaluations), seconds, *params)
        table.add_row(*row, style=None if one.state == "done" else "dim")
    console_for(out).print(table)


def _cut(value: object) -> str:
    """Return a value as a short text."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CUT else f"{text[: _CUT - 3]}..."
