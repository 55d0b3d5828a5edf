"""The verb `report`: one HTML page about one run or several."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.outfile import check_place, output_file, refuse_foreign, refuse_replacing
from finetune.visible import tell


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN...")],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Page to write; one that is there is replaced."),
    ] = Path("report.html"),
) -> None:
    """Write one HTML page about runs that needs no network: verdict, curves, what was frozen.

    A run writes such a page about itself into its folder when it ends, unless `tracking: {report:
    false}` is set.
    """
    check_place(out)
    # Jinja and numpy take a while to load: `--help` must not wait for them
    from finetune.report.page import render_page
    from finetune.runs.own_files import REPORT_MARK
    from finetune.runs.saved_runs import saved_folder

    with results():
        twice = [path for path in runs if sum(path.resolve() == one.resolve() for one in runs) > 1]
        if twice:
            raise FinetuneError("is named twice", where=str(twice[0]))
        folders = [saved_folder(path) for path in runs]
        for folder in folders:
            # `report.html` of a run may be replaced; no other file of it may.
            refuse_replacing(out, folder.files())
        refuse_foreign(out, REPORT_MARK, "page about runs")
        names = [path.resolve().name for path in runs]
        # Runs of the same name in different folders are told apart by their paths.
        named = names if len({*names}) == len(names) else [str(path) for path in runs]
        page = render_page(runs, named)
        with output_file(out) as file:
            file.write(page)
        noun = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        tell(f"{out}: page about {noun}", sys.stderr)
