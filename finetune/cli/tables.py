"""How plans, inspections and outcomes look on a terminal."""

from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from finetune.freezing.plan import Plan
from finetune.freezing.report import MapRow, fold, unfold
from finetune.train.inspection import Inspection
from finetune.train.progress import Progress
from finetune.train.setup import Parts

_STYLES = {"trained": "green", "frozen": "dim", "mixed": "yellow", "unreached": "red"}


def plan_table(parts: Parts, file: TextIO, *, full: bool) -> None:
    """Print facts of the data, and every phase with the state of its parameters."""
    console = Console(file=file)
    facts = parts.data.facts
    sizes = ", ".join(f"{count:,} {split}" for split, count in facts.sizes.items())
    console.print(f"data     {sizes}", highlight=False)
    if facts.classes is not None:
        shown = ", ".join(facts.classes[:10]) + (", ..." if len(facts.classes) > 10 else "")
        console.print(f"classes  {len(facts.classes)}: {shown}", highlight=False)
    for note in facts.notes:
        console.print(f"note     {note}", highlight=False)
    for tie in (p for p in parts.plan.inventory if p.aliases):
        console.print(f"tied     {tie.name} is also {', '.join(tie.aliases)}", highlight=False)
    _print_phases(parts.plan, console, full=full)


def phases_table(plan: Plan, file: TextIO) -> None:
    """Print every phase with the state of its parameters, folded by block."""
    _print_phases(plan, Console(file=file), full=False)


def inspection_table(inspection: Inspection, file: TextIO, *, activations: bool) -> None:
    """Print leaves, graph nodes and the place where the graph is cut."""
    console = Console(file=file)
    table = Table(title="leaves: parameters after one backward pass", title_justify="left")
    for heading in ("parameter", "shape", "state"):
        table.add_column(heading)
    table.add_column("gradient norm", justify="right")
    for leaf in inspection.leaves:
        norm = "none" if leaf.norm is None else f"{leaf.norm:.4g}"
        table.add_row(leaf.name, str(leaf.shape), leaf.state, norm, style=_STYLES[leaf.state])
    console.print(table)
    if activations:
        console.print(_calls_table(inspection))
    console.print(f"loss    {inspection.loss:.4f}  grad_fn {inspection.loss_grad_fn}")
    console.print(f"output  grad_fn {inspection.output_grad_fn}")
    before, after = inspection.cut
    if after is None:
        console.print("cut     no module's output is in the graph: nothing would be learned")
    elif before is None:
        console.print("cut     nowhere: the graph begins at the first module")
    else:
        console.print(
            f"cut     after {before.module} ({before.type}): backward ends at "
            f"{after.module} ({after.type}, {after.grad_fn})"
        )


def outcome(progress: Progress, run: Path, file: TextIO) -> None:
    """Print what a run has reached, its proof, and where to look next."""
    console = Console(file=file)
    for tag, value in progress.metrics.items():
        console.print(f"{tag:<22} {value:.4f}", highlight=False)
    tensors = sum(proof["tensors"] for proof in progress.proofs)
    if tensors:
        console.print(f"proof    {tensors} frozen tensors are bit-identical", highlight=False)
    else:
        console.print("proof    nothing was frozen", highlight=False)
    console.print(f"run      {run}", highlight=False)
    console.print(f"curves   finetune tensorboard {run.parent}", highlight=False)


def _print_phases(plan: Plan, console: Console, *, full: bool) -> None:
    for number, phase in enumerate(plan.phases):
        rows = (unfold if full else fold)(plan.inventory, phase.frozen)
        console.print(_phase_table(f"phase {number}: {phase.name}", rows))
        trained = sum(p.numel for p in plan.inventory if p.name not in phase.frozen)
        total = sum(p.numel for p in plan.inventory)
        console.print(
            f"trained {trained:,} of {total:,} parameters ({trained / total:.2%})", highlight=False
        )


def _phase_table(title: str, rows: list[MapRow]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("parameters of", overflow="fold")
    table.add_column("state")
    for heading in ("tensors", "parameters", "MiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        mib = f"{row.size_bytes / 2**20:.2f}"
        table.add_row(
            row.name, row.state, str(row.tensors), f"{row.parameters:,}", mib,
            style=_STYLES[row.state],
        )  # fmt: skip
    return table


def _calls_table(inspection: Inspection) -> Table:
    table = Table(title="activations: outputs of modules, in order", title_justify="left")
    for heading in ("module", "type", "shape", "grad_fn"):
        table.add_column(heading)
    table.add_column("gradient norm", justify="right")
    for call in inspection.calls:
        norm = "none" if call.gradient_norm is None else f"{call.gradient_norm:.4g}"
        table.add_row(call.module, call.type, str(call.shape), call.grad_fn or "none", norm)
    return table
