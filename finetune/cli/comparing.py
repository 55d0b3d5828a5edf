"""The verb `diff`: what differs between two runs."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options import Json, Run
from finetune.cli.output import results
from finetune.visible import json_text, tell_json

if TYPE_CHECKING:
    from finetune.runs.comparison import Comparison, Pair
    from finetune.runs.weight_distances import BlockDistance
    from finetune.terminal import Terminal

_LONGEST = 60
"""Letters of a value in the table; a longer one is cut. `--json` has all of it."""


def diff_command(
    run: Run,
    other: Annotated[Path, typer.Argument(help="Folder of another run.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Show what differs between two runs: config, data, weights by block, figures, environment."""
    # numpy takes a while to load: `--help` must not wait for it
    from finetune.runs.comparison import compare_runs

    with results() as out:
        found = compare_runs(run, other)
        if as_json:
            tell_json({"runs": [str(run), str(other)]} | _as_json(found), out)
            return
        from finetune.terminal import console_for

        console = console_for(out)
        for name, pairs in (
            ("config", found.config),
            ("data", found.data),
            ("figures", found.metrics),
            ("environment", found.environment),
        ):
            _print_pairs(name, pairs, (str(run), str(other)), console)
            if name == "figures" and found.note is not None:
                console.tell(found.note)
        _print_weights(found, console)


def _as_json(found: "Comparison") -> dict[str, Any]:
    """Return a comparison as plain data; infinite distances become null, which JSON has."""
    plain = asdict(found)
    for block in (plain["weights"] or {"blocks": ()})["blocks"]:
        block["relative"] = block["relative"] if block["relative"] < float("inf") else None
    return plain


def _print_pairs(
    name: str, pairs: "Mapping[str, Pair]", runs: tuple[str, str], console: "Terminal"
) -> None:
    """Print a table of values that differ, or that none does."""
    from finetune.terminal import new_table

    if not pairs:
        console.tell(f"{name}: equal")
        return
    table = new_table([name, *runs], ["difference"])
    for key, (first, second) in pairs.items():
        table.add_row(key, _shown(first), _shown(second), _difference(first, second))
    console.print(table)
    console.tell()


def _print_weights(found: "Comparison", console: "Terminal") -> None:
    """Print a table of distances by block."""
    from finetune.terminal import new_table

    if found.weights is None:
        console.tell(f"weights: not compared: {found.no_weights}")
        return
    base = "bit-identical" if found.weights.same_base else "different"
    console.tell(f"weights that neither run has trained: {base}")
    table = new_table(["weights in use"], ["tensors", "equal", "distance", "relative", "note"])
    for block in found.weights.blocks:
        row = (str(block.tensors), str(block.equal), f"{block.distance:.4g}")
        table.add_row(block.block, *row, f"{block.relative:.4g}", _note(block))
    console.print(table)


def _note(block: "BlockDistance") -> str:
    """Return the numbers of tensors of a block that cannot be compared, with the reasons."""
    notes = {
        "trained in the first run alone": block.only_first,
        "trained in the second run alone": block.only_second,
        "of whole numbers or another shape left out": block.left_out,
    }
    return ", ".join(f"{count} {what}" for what, count in notes.items() if count)


def _shown(value: Any) -> str:
    """Return a value as text, cut where it is long."""
    if value is None:
        return "none"
    from finetune.terminal import figure

    if isinstance(value, float):
        return figure(value)
    text = value if isinstance(value, str) else json_text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _difference(first: Any, second: Any) -> str:
    """Return the difference of two figures; empty for other values."""
    # Whole numbers, such as a seed, are no figures: their difference says nothing.
    is_figure = isinstance(first, float) and isinstance(second, float)
    return f"{second - first:+.4g}" if is_figure else ""
