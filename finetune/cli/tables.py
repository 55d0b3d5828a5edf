"""How inspections and outcomes look on a terminal, and in a pipe."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import RenderableType
from rich.table import Table

from finetune.cli.output import figure
from finetune.freezing.origins import Origins, sum_of
from finetune.terminal import Terminal
from finetune.train.inspection import Call, Inspection, Leaf
from finetune.train.progress import Progress
from finetune.visible import one_line

STYLES = {"trained": "green", "frozen": "dim", "mixed": "yellow", "unreached": "red"}
_WIDTH_OF_A_PIPE = 400
"""Characters; no table is cut short where no terminal has to show it."""


def console_for(file: TextIO) -> Terminal:
    """Return a console whose tables are not cut short in a pipe."""
    return Terminal(file, width=None if file.isatty() else _WIDTH_OF_A_PIPE)


def print_lines(lines: Sequence[tuple[str, str]], console: Terminal) -> None:
    """Print texts with their labels before them, one below the other."""
    width = max((len(label) for label, _ in lines), default=0)
    for label, text in lines:
        console.tell(f"{label:<{width}}  {text}")


class _Table(Table):
    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row. A string is shown on one line; `Text` may hold several."""
        shown = (one_line(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def new_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table; its figures stand to the right."""
    table = _Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


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


def outcome(progress: Progress, origins: Sequence[Origins], run: Path, file: TextIO) -> None:
    """Print what a run has reached, its proof, and where to look next.

    Args:
        progress: Where the run ended.
        origins: Where the values come from that each of its proofs covers.
        run: Its folder.
        file: Receives the lines.
    """
    lines = [(tag, figure(value)) for tag, value in progress.metrics.items()]
    if progress.stopped_early:
        lines.append(("stopped", f"early, at step {progress.step}"))
    if progress.best_step is not None:
        lines.append(("best", f"step {progress.best_step}"))
    tensors = sum(proof["tensors"] for proof in progress.proofs)
    proof = f"{tensors} frozen tensors are bit-identical" if tensors else "nothing was frozen"
    lines.append(("proof", proof))
    if tensors:
        lines.append(("weights", str(sum_of(origins))))
    lines += [
        ("run", str(run)),
        ("curves", f"finetune tensorboard {run.parent}"),
    ]
    print_lines(lines, console_for(file))


def _leaves_table(leaves: Sequence[Leaf], *, full: bool) -> Table:
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


def _calls_table(calls: Sequence[Call], *, full: bool) -> Table:
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
