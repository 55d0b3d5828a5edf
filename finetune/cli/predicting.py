"""The verb `predict`: a trained network on new inputs."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune.cli.options import Overrides, Run, Trust
from finetune.cli.output import results
from finetune.outfile import check_place, output_form, refuse_replacing
from finetune.outfolder import folder_beside
from finetune.process import loading
from finetune.visible import tell


def predict_command(
    run: Run,
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="File, folder, csv, jsonl, or - for standard input."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write or replace: .csv, .parquet, .jsonl; masks in a folder beside it.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of one pass.")] = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What a sample that cannot be predicted does: it is named either way."),
    ] = "stop",
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Write the K most probable classes: label/1, score/1, ..."),
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Write predictions of a lower probability alone."),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="Write the output of a layer, too: embedding."),
    ] = None,
    without_columns: Annotated[
        bool,
        typer.Option("--without-columns", help="Leave out the columns of the input."),
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Texts in CSV as they are, also where they begin a formula."),
    ] = False,
    override: Overrides = None,
    trust: Trust = None,
) -> None:
    """Run a trained network on new inputs; one line for each, JSON on standard output.

    Columns of a table stay beside its predictions; one that bears the name of a prediction's, such
    as label, becomes input/label. With --out, a prediction that was interrupted goes on when the
    same command is started again.

    In CSV, a text that begins with = + - @ gets an apostrophe before it, since spreadsheets run
    formulas, and hidden characters become escapes; --raw writes all texts as they are.
    """
    if out is not None:
        # before torch is loaded, which takes seconds
        check_place(out)
        output_form(out)
    with results() as stdout:
        with loading():
            from finetune.predict import load_predictor
            from finetune.predict.prediction import Asking, Told
            from finetune.predict.whole_prediction import Input, WholePrediction
            from finetune.runs.saved_runs import saved_folder

        # `--out` with the name of a checkpoint, or of the input, would destroy it.
        own = list(saved_folder(run).files())
        if out is not None:
            # Standard input may be redirected from the very file that `--out` names.
            named = Path("/dev/stdin" if source == "-" else source)
            refuse_replacing(out, (named, *own))
        predictor = load_predictor(
            run, trust=trust or (), batch_size=batch_size, overrides=override or ()
        )
        note = partial(tell, file=sys.stderr)
        told = Told(lambda line: note(f"note: {line}"), note)
        asking = Asking(on_error, not without_columns, top_k, embeddings, below)
        picture = predictor.run.task.picture
        folder = _folder_for(picture, out, told.note)
        with predictor.knowing(told.note) as knowing:
            whole = WholePrediction(knowing, Input(source, sys.stdin), asking, told)
            if out is None:
                whole.to_stream(stdout)
                return
            count = whole.to_file(out, folder, raw=raw)
        beside = "" if folder is None else f", their {picture}s in {folder}"
        note(
            f"{count} {'prediction' if count == 1 else 'predictions'} in {out}{_form(out)}{beside}"
        )


def _folder_for(picture: str | None, out: Path | None, told: Callable[[str], None]) -> Path | None:
    """Return the folder for pictures of predictions, None without any; `told` receives why not."""
    if picture is None:
        return None
    folder = None if out is None else folder_beside(out, picture)
    if folder is None:
        told(f"{picture}s are written as PNG beside the file that --out names; here are none")
    return folder


def _form(out: Path) -> str:
    """Return in which form a file is written, as words, where its ending does not tell."""
    return (
        "" if out.suffix.lower() in (".csv", ".jsonl", ".ndjson", ".parquet") else ", as JSON lines"
    )
