"""How inspections and metrics look on a terminal, and in a pipe."""

from collections.abc import Sequence
from itertools import groupby
from typing import TextIO

from rich.table import Table

from finetune.preview.inspection import CallInGraph, Inspection, ParameterGradient
from finetune.terminal import STYLES, console_for, figure, new_table, print_lines


def inspection_table(
    inspection: Inspection, file: TextIO, *, activations: bool, full: bool
) -> None:
    """Print leaves, graph nodes and the place where the graph is cut.

    What lies outside the graph is folded into one line per block unless `full`.
    """
    console = console_for(file)
    console.print("leaves: parameters after one forward and backward pass")
    console.print(_leaves_table(inspection.leaves, full=full))
    if activations:
        console.print("activations: outputs of modules, in the order of the forward pass")
        console.print(_calls_table(inspection.calls, full=full))
    print_lines(
        [
            ("batch", "1 sample" if inspection.samples == 1 else f"{inspection.samples} samples"),
            ("loss", f"{figure(inspection.loss)}, grad_fn {inspection.loss_grad_fn}"),
            ("output", f"grad_fn {inspection.output_grad_fn}"),
            ("cut", _cut(inspection)),
        ],
        console,
    )


def metrics_table(figures: dict[str, float], file: TextIO) -> None:
    """Print one figure a line."""
    print_lines([(tag, figure(value)) for tag, value in figures.items()], console_for(file))


def _leaves_table(leaves: Sequence[ParameterGradient], *, full: bool) -> Table:
    table = new_table(["parameter", "shape", "state"], ["gradient norm"])
    for block, together in groupby(leaves, lambda leaf: _fold(leaf.block, leaf.is_frozen, full)):
        group = list(together)
        if block is None or len(group) == 1:
            for leaf in group:
                norm = "none" if leaf.norm is None else f"{leaf.norm:.4g}"
                row = (leaf.name, str(leaf.shape), leaf.state, norm)
                table.add_row(*row, style=STYLES[leaf.state])
        else:
            row = (block, f"{len(group)} tensors", "frozen", "none")
            table.add_row(*row, style=STYLES["frozen"])
    return table


def _calls_table(calls: Sequence[CallInGraph], *, full: bool) -> Table:
    table = new_table(["module", "type", "shape", "grad_fn"], ["gradient norm"])
    for block, together in groupby(calls, lambda call: _fold(call.block, call.is_outside, full)):
        group = list(together)
        if block is None or len(group) == 1:
            for call in group:
                norm = "none" if call.gradient_norm is None else f"{call.gradient_norm:.4g}"
                row = (call.module, call.type, str(call.shape), call.grad_fn or "none", norm)
                table.add_row(*row, style=STYLES["frozen"] if call.is_outside else None)
        else:
            row = (block, f"{len(group)} calls", str(group[-1].shape), "none", "none")
            table.add_row(*row, style=STYLES["frozen"])
    return table


def _fold(block: str, is_outside_the_graph: bool, full: bool) -> str | None:
    """Return the block to fold a row into; None for a row that stands for itself."""
    return block if is_outside_the_graph and not full else None


def _cut(inspection: Inspection) -> str:
    before, after = inspection.cut
    if after is None:
        return "no module's output is in the graph: nothing would be learned"
    if before is None:
        return "nowhere: the graph begins at the first module"
    return (
        f"after {before.module} ({before.type}): backward ends at "
        f"{after.module} ({after.type}, {after.grad_fn})"
    )
