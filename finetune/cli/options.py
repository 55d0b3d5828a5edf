"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the run.", metavar="CONFIG")]
Run = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Set a key of the config."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="PKG", help="Let the config import code of this package."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
