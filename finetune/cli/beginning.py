"""The verb that begins a project: init writes a config from a look at the data."""

import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import Json
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.outfile import check_place
from finetune.process import loading
from finetune.visible import one_line, tell, tell_json

Several = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Columns to learn from; several, or one with commas."),
]


def init_command(
    path: Annotated[
        Path | None, typer.Argument(help="File or folder of your data; asked for if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Config to write; never one that is there.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to learn; repeatable.")
    ] = None,
    inputs: Several = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Such as classification or regression.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="minilm, convnet, timm:resnet18, a folder, a hub id."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Of a pretrained network: head, top or all."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Passes over the data.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Samples of a step.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="In place of a look at data: a config to fill in."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented config for your data, and say what to do next."""
    # Questions go to standard error and answers come from standard input: both need a person.
    asks = not (yes or as_json) and sys.stdin.isatty() and sys.stderr.isatty()
    with results() as output:
        if template is not None:
            given = [path, target, inputs, task, model, train, epochs, batch_size]
            _refuse_beside_template(given)
            _begin_with_template(template, out, output, as_json=as_json)
            return
        with loading():
            from finetune.starting.wishes import Wishes

        wishes = Wishes(
            tuple(target or ()), tuple(inputs or ()), task, model, train, epochs, batch_size
        )
        _begin_with_data(path, wishes, out, output, asks=asks, as_json=as_json)


def _refuse_beside_template(given: Sequence[object]) -> None:
    """Raise `FinetuneError` if data is described beside a template, which looks at none."""
    if any(one is not None for one in given):
        raise FinetuneError(
            "--template looks at no data, so only --out and --json go with it",
            hint="finetune init PATH looks at your data",
        )


def _begin_with_template(task: str, out: Path | None, output: Any, *, as_json: bool) -> None:
    """Write the template of a task."""
    from finetune.starting.templates_of_tasks import template_text

    text, used = template_text(task), out or Path(f"{task}.yaml")
    _write(used, text)
    following = _following(used, (), None)
    if as_json:
        tell_json({"config": str(used), "task": task, "next": following}, output, indent=1)
        return
    tell(f"wrote {used}: fill in the lines that say CHANGE", output)
    _tell_next(following, output)


def _begin_with_data(
    path: Path | None, wishes: Any, out: Path | None, output: Any, *, asks: bool, as_json: bool
) -> None:
    """Look at data, and write a config for it."""
    from finetune.config.loader import load_config
    from finetune.starting.config_text import SCHEMA_FILE, config_text
    from finetune.starting.found_folders import find_data
    from finetune.starting.proposal import columns_judged, proposed
    from finetune.starting.questions import ask_path, asked_wishes

    if path is None:
        path = ask_path() if asks else Path()
    used = out or _name_for(path)
    # Before the look at the data and the questions, which would be for nothing.
    _refuse_existing(used)
    found = find_data(path)
    by_name = columns_judged(found)
    if asks:
        wishes = asked_wishes(wishes, found, by_name)
    proposal = proposed(path, found, by_name, wishes, used)
    first = f"Made by finetune init from {one_line(str(path))}; every line is yours to change."
    _write(used, config_text(proposal.config, proposal.comments, first))
    # A config that does not load would be a mistake of ours, and is better told here.
    load_config(used, trust=proposal.trust)
    choices = [{"about": one.about, "what": one.what, "why": one.why} for one in proposal.choices]
    following = _following(used, proposal.trust, proposal.new_input)
    if as_json:
        document: dict[str, Any] = {"config": str(used), "schema": SCHEMA_FILE, "choices": choices}
        document |= {"next": following, "content": proposal.config}
        tell_json(document, output, indent=1)
        return
    width = max(len(one.about) for one in proposal.choices)
    for one in proposal.choices:
        tell(f"{one.about:<{width}}  {one}", output)
    tell(f"{'wrote':<{width}}  {used}, and {SCHEMA_FILE} for completion in editors", output)
    _tell_next(following, output)


def _name_for(path: Path) -> Path:
    """Return the name of the config for data: that of the file or folder."""
    name = path.absolute().name.partition(".")[0]
    return Path(f"{name or 'config'}.yaml")


def _refuse_existing(path: Path) -> None:
    """Raise `FinetuneError` if a config is there already, before the data is looked at."""
    check_place(path)
    if path.exists():
        raise FinetuneError(
            "is there already, and init replaces nothing",
            where=str(path),
            hint="--out FILE writes to another file",
        )


def _write(path: Path, text: str) -> None:
    """Write a config, and the schema for editors beside it unless that is there."""
    from finetune.outfile import write_new
    from finetune.starting.config_text import SCHEMA_FILE

    _refuse_existing(path)
    write_new(path, text)
    beside = path.parent / SCHEMA_FILE
    # `init` replaces nothing, and all configs of a folder share one schema.
    if not beside.exists():
        write_new(beside, _schema_text())


@cache
def _schema_text() -> str:
    """Return the schema of a config as JSON; to make it takes a second."""
    from finetune.config.editor_schema import editor_schema
    from finetune.visible import json_text

    return json_text(editor_schema()) + "\n"


def _following(config: Path, trust: Sequence[str], new_input: str | None) -> list[str]:
    """Return the next three commands."""
    trusted = "".join(f" --trust {package}" for package in trust)
    shown = shlex.quote(str(config))
    run = shlex.quote(f"runs/{config.stem}")
    return [
        f"finetune plan {shown}{trusted}",
        f"finetune train {shown}{trusted}",
        f"finetune predict {run} {new_input or 'new.csv'}{trusted}",
    ]


def _tell_next(commands: Sequence[str], output: Any) -> None:
    """Print the next commands, each with what it does."""
    does = ("what it will do, before a step", "trains; may be stopped and continued", "uses it")
    tell("", output)
    tell("next:", output)
    width = max(map(len, commands))
    for command, purpose in zip(commands, does, strict=True):
        tell(f"  {command:<{width}}  # {purpose}", output)
