"""Verbs that run a network: train, eval, predict; and the TensorBoard that shows it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune.cli.options import Config, Json, Overrides, Run, Trust
from finetune.config.loader import load_config


def train_command(
    config: Config,
    override: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="The run's folder.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in the folder.")] = False,
    trust: Trust = None,
) -> None:
    """Train; where the run's folder holds a checkpoint, go on from there."""
    # torch takes seconds to load: only verbs that need it pay
    from finetune.cli.tables import outcome, phases_table
    from finetune.tracking.console import Console
    from finetune.train.setup import build_trainer, located

    loaded = load_config(config, overrides=override or (), trust=trust or ())
    console = Console(sys.stderr)
    trainer = build_trainer(loaded, run, fresh=fresh, tracker=console)
    phases_table(trainer.plan, sys.stderr)
    with located(loaded):
        progress = trainer.fit()
    outcome(progress, trainer.folder.path, sys.stderr)


def eval_command(
    run: Run,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which samples.")
    ] = "test",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained run on one part of its data."""
    from finetune.train.trained import evaluate_run

    figures = evaluate_run(run, split, trust=trust or ())
    if as_json:
        print(json.dumps({"run": str(run), "split": split, "metrics": figures}))
        return
    for name, value in figures.items():
        print(f"{split}/{name:<12} {value:.4f}")


def predict_command(
    run: Run,
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="File, folder, csv, jsonl, or - for standard input."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; .csv or JSON lines.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of one pass.")] = None,
    trust: Trust = None,
) -> None:
    """Run a trained network on new inputs; one line for each."""
    from finetune.predict import as_row, load_predictor, read_inputs, write_rows

    predictor = load_predictor(run, trust=trust or (), batch_size=batch_size)
    columns = read_inputs(source, predictor.run, sys.stdin)
    names = columns.pop("input")
    rows = (as_row(n, p) for n, p in zip(names, predictor.stream(columns), strict=True))
    if out is None:
        write_rows(rows, sys.stdout, as_csv=False)
        return
    with out.open("w", encoding="utf-8", newline="") as file:
        count = write_rows(rows, file, as_csv=out.suffix == ".csv")
    print(f"{count} predictions in {out}", file=sys.stderr)


def tensorboard_command(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.", metavar="RUNS")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 6006,
) -> None:
    """Show the curves of all runs below a folder on http://127.0.0.1."""
    # TensorBoard has no authentication: it is never bound to an address others can reach
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs)]
    raise typer.Exit(subprocess.call([*command, "--host", "127.0.0.1", "--port", str(port)]))
