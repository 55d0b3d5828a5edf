"""Arguments and options that several verbs share."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

from finetune.visible import tell

Config = Annotated[Path, typer.Argument(help="YAML file of the run.", metavar="CONFIG")]
Run = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
# None, not a list: typer would share one mutable default between calls.
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Set a key of the config."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="PKG", help="Let the config import code of this package."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def _tell_version(asked: bool) -> None:
    """Print the version and exit, if `--version` is given."""
    if asked:
        tell(f"finetune {version_of('finetune')}", sys.stdout)
        raise typer.Exit


def main_options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Fine-tune a PyTorch network from one YAML file."""
