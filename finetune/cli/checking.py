"""The verbs that check a config without training: validate, schema, plan, inspect."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import Config, Json, Overrides, Trust
from finetune.cli.output import results
from finetune.errors import FinetuneError
from finetune.outfile import check_place
from finetune.process import loading
from finetune.visible import tell, tell_error, tell_json


def validate_command(
    configs: Annotated[list[Path], typer.Argument(help="YAML files.", metavar="CONFIG...")],
    override: Overrides = None,
) -> None:
    """Check configs against the schema alone, without loading torch, data or weights."""
    # the schema takes longer to load than `--help` may take, and torch takes seconds: each verb
    # imports only what it needs
    from finetune.config.loader import load_config

    faults = 0
    for path in configs:
        try:
            load_config(path, overrides=override or ())
        except FinetuneError as error:
            faults += 1
            tell_error(error)
        else:
            tell(f"{path}: valid", sys.stdout)
    # After all files: each one's problems are told in one call.
    raise typer.Exit(2 if faults else 0)


def schema_command() -> None:
    """Print the JSON Schema of a config, for editors."""
    from finetune.config.editor_schema import editor_schema

    tell_json(editor_schema(), sys.stdout, indent=1)


def plan_command(
    config: Config,
    override: Overrides = None,
    trust: Trust = None,
    full: Annotated[bool, typer.Option("--full", help="One line per parameter.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the config, its phases written out, to edit."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what trains, what is frozen and what it costs, before a step is taken."""
    from finetune.config.loader import load_config

    if write is not None:
        check_place(write)
    loaded = load_config(config, overrides=override or (), trust=trust or ())
    with results() as out:
        # torch takes seconds to load: a config that is wrong fails before that
        with loading():
            from finetune.cli.plans import plan_table, preview, preview_as_data, write_long_form

        seen = preview(loaded)
        # First the file: a reader of the table that leaves early must not prevent it.
        if write is not None:
            write_long_form(loaded, seen.parts, write)
            tell(f"{write}: the config with its phases written out", sys.stderr)
        if as_json:
            tell_json(preview_as_data(seen), out, indent=1)
        else:
            plan_table(seen, out, full=full)


def inspect_command(
    config: Config,
    override: Overrides = None,
    trust: Trust = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples in the batch.")] = 8,
    phase: Annotated[int, typer.Option(min=0, help="Number of the phase, as in the plan.")] = 0,
    activations: Annotated[
        bool, typer.Option("--activations", help="Gradients of the outputs of modules, too.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Every frozen parameter, too.")] = False,
) -> None:
    """Show the autograd side for one batch: leaves, grad_fn, where the graph is cut, norms."""
    from finetune.config.loader import load_config

    loaded = load_config(config, overrides=override or (), trust=trust or ())
    with results() as out:
        with loading():
            from finetune.cli.tables import inspection_table
            from finetune.preview.inspection import inspect_batch
            from finetune.train.build import build_parts, located

        parts = build_parts(loaded)
        with located(loaded):
            inspection = inspect_batch(parts, samples=samples, activations=activations, phase=phase)
        inspection_table(inspection, out, activations=activations, full=full)
