"""The verb `export`: the network of a run in formats that load without this package."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune.cli.options import Overrides, Run, Trust
from finetune.cli.output import results, size
from finetune.process import loading
from finetune.visible import tell


def export_command(
    run: Run,
    form: Annotated[
        Literal["safetensors", "torch", "onnx", "hf", "timm"],
        typer.Option("--format", help="What is written; `docs/export.md` tells what each holds."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to make; none may be there.")
    ],
    delta: Annotated[
        bool, typer.Option("--delta", help="Only what was trained; needs --format safetensors.")
    ] = False,
    check: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Samples to compare with the predictor; 0 for none."),
    ] = 200,
    override: Overrides = None,
    trust: Trust = None,
) -> None:
    """Write a trained network into a new folder that loads without finetune.

    The folder gets a model card. What was written is loaded anew and compared with the predictor
    on samples of the run's own data: if they disagree, nothing is left.
    """
    with results():
        # torch takes seconds to load: a name that is taken is told before
        from finetune.export.new_folder import refuse_taken

        refuse_taken(out)
        with loading():
            from finetune.export.exporting import export_run

        note = partial(tell, file=sys.stderr)
        done = export_run(
            run,
            form,
            out,
            delta=delta,
            check=check,
            trust=trust or (),
            overrides=override or (),
            tell=note,
        )
        files = f"{len(done.files)} files, {size(done.size_bytes)}"
        note(f"{done.folder}: {form}, {files}{_compared(done.checked)}")


def _compared(checked: object) -> str:
    """Return in words how an export was compared."""
    from finetune.export.source import Checked

    if not isinstance(checked, Checked):
        return ", not compared with the predictor"
    return (
        f"; agrees with the predictor on {checked.samples} samples, largest difference "
        f"{checked.difference:.2g}"
    )
