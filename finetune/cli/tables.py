"""Print inspections and metrics as tables, on a terminal or into a pipe."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TextIO

from rich.table import Table

from finetune.preview.inspection import CallInGraph, Inspection, ParameterGradient
from finetune.terminal import STYLES, console_for, figure, new_table, print_lines
from finetune.train.after.trained import Evaluated
from finetune.visible import tell_json


def inspection_table(
    inspection: Inspection, file: TextIO, *, activations: bool, full: bool
) -> None:
    """Print parameters, outputs of modules, and the place where the autograd graph is cut.

    What lies outside the graph is folded into one line per block, unless `full`.
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


def print_evaluation(
    run: Path, found: Evaluated, file: TextIO, *, as_json: bool, note: Callable[[str], None]
) -> None:
    """Print the metrics of an evaluation, one per line or as a JSON document.

    Args:
        run: The run folder.
        found: The evaluation.
        file: The stream for the metrics.
        as_json: Whether to print JSON.
        note: Receives a line for each metric that is left out, with the reason.
    """
    data = found.data
    prefix = f"{data.part}/" if data.part else ""
    for name, reason in found.left_out.items():
        note(f"{prefix}{name} is left out: {reason}")
    if as_json:
        named = {"input": data.name, "rows": len(data.samples), "trained_on": data.num_trained}
        about = {"run": str(run), "split": data.part, **(named if data.name else {})}
        errors = found.calibration
        calibration = {} if errors is None else {"calibration_error": errors._asdict()}
        tell_json({**about, "metrics": found.figures, **calibration}, file)
        return
    lines = [(f"{prefix}{name}", figure(value)) for name, value in found.figures.items()]
    if found.calibration is not None:
        before, after = map(figure, found.calibration)
        lines.append((f"{prefix}calibration_error", f"{after}, {before} without the temperature"))
    print_lines(lines, console_for(file))


def _leaves_table(leaves: Sequence[ParameterGradient], *, full: bool) -> Table:
    """Return a table of parameters with their state and gradient norm."""
    table = new_table(["parameter", "shape", "state"], ["gradient norm"])
    for block, together in groupby(leaves, lambda leaf: _fold(leaf.block, leaf.is_frozen, full)):
        group = list(together)
        # Folding a single tensor would save no line, and hide its name.
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
    """Return a table of module outputs with their `grad_fn` and gradient norm."""
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
    """Return the block into whose line a row is folded; None for a row with its own line."""
    return block if is_outside_the_graph and not full else None


def _cut(inspection: Inspection) -> str:
    """Return a text that names the modules on both sides of the cut."""
    before, after = inspection.cut
    if after is None:
        return "no module's output is in the graph: nothing would be learned"
    if before is None:
        return "nowhere: the graph begins at the first module"
    return (
        f"after {before.module} ({before.type}): backward ends at "
        f"{after.module} ({after.type}, {after.grad_fn})"
    )
