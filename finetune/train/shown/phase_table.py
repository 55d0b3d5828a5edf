"""Print phases on a terminal: what trains in each, at which rates, and what ends it."""

import re
from collections.abc import Sequence
from typing import assert_never

from rich.table import Table
from rich.text import Text

from finetune.config.triggers import AfterEpochs, AfterSteps, AtFraction, OnPlateau, Trigger
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.report import PlanRow, changed_rows, joined_rows, plan_rows
from finetune.optim.rates import PeakRate
from finetune.terminal import STYLES, Terminal, new_table
from finetune.train.spans import Span
from finetune.visible import one_line


def print_phases(
    plan: Plan,
    console: Terminal,
    *,
    full: bool,
    decay: float | None,
    spans: Sequence[Span] | None,
) -> None:
    """Print all rows of the first phase, and the changed rows of each later one.

    Args:
        plan: The phases.
        console: Where to print.
        full: Whether to print a row per parameter in place of one per block.
        decay: Weight decay of the optimizer, for a column of its own; None for no such column.
        spans: Span of each phase in steps; None if not known.
    """
    total, before = sum(param.numel for param in plan.inventory), None
    for number, phase in enumerate(plan.phases):
        rows = plan_rows(plan, number, full=full)
        changed = rows if before is None else changed_rows(before, rows)
        span = spans[number] if spans is not None else None
        console.tell()
        console.tell(f"phase {number}: {phase.name}")
        console.tell(_about(phase, number, span))
        if plan.policy is not None:
            console.tell(plan.policy.says)
        if changed:
            shown = changed if full else joined_rows(changed)
            console.print(_phase_table(shown, decay, console.width))
        if not changed or len(changed) < len(rows):
            console.print(f"all else as in phase {number - 1}" if changed else "all as before")
        trained = sum(row.trained for row in rows)
        word = "trained" if plan.policy is None else "trained at some time"
        console.print(f"{word} {trained:,} of {total:,} parameters ({trained / total:.2%})")
        before = rows


def _phase_table(rows: Sequence[PlanRow], decay: float | None, width: int) -> Table:
    """Lay out the rows of a phase; leave out the count of tensors if `width` is too small."""
    left = ["state", "rate", *(["decay"] if decay is not None else []), "modules"]
    right = ["tensors", "parameters"]
    cells = [_cells(row, decay) for row in rows]
    longest = max(len(row.name) for row in rows)
    # The one column that a reader can do without: parameters say more.
    if longest > width - _taken([*left, *right], cells):
        right.remove("tensors")
        cells = [[*row[:-2], row[-1]] for row in cells]
    # Only names may be broken into lines: a broken number would be misread.
    room = max(_FEWEST, width - _taken([*left, *right], cells))
    table = new_table(["parameters of", *left], right)
    for row, others in zip(rows, cells, strict=True):
        table.add_row(_broken(row.name, room), *others, style=STYLES[row.state])
    return table


_GAP, _FEWEST = 3, 13
"""Characters: gap between columns, and least width of the column of names."""


def _cells(row: PlanRow, decay: float | None) -> list[str]:
    """Return the cells of a row without its name."""
    count = f"{row.parameters:,}"
    if row.state == "mixed":
        count = f"{row.trained:,} of {count}"
    cells = [row.state, _rates(row.rates)]
    if decay is not None:
        shown = {"yes": f"{decay:g}", "mixed": f"{decay:g} or none"}
        cells.append(shown.get(row.decay, row.decay))
    return [*cells, row.modules, str(row.tensors), count]


def _taken(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width of columns in characters, with the gaps before them."""
    columns = zip(headings, *rows, strict=True)
    return sum(_GAP + max(map(len, column)) for column in columns)


def _broken(name: str, room: int) -> Text:
    """Break a name before dots into lines of at most `room` characters, where that is possible."""
    lines = [""]
    # Looked ahead, not consumed: the dot stays at the beginning of the next line.
    for part in re.split(r"(?=\.)", one_line(name)):
        if lines[-1] and len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return Text("\n".join(lines))


def _rates(rates: Sequence[PeakRate]) -> str:
    """Return the text of a peak rate with its schedule, or of the range of several."""
    if not rates:
        return ""
    if len(rates) > 1:
        return f"{rates[0].lr:.3g} to {rates[-1].lr:.3g}"
    rate = rates[0]
    if rate.schedule is None:
        return f"{rate.lr:.3g}"
    return f"{rate.lr:.3g} ({rate.schedule.type} over {rate.over:.0%})"


def _about(phase: Phase, number: int, span: Span | None) -> str:
    """Return a line on the end of a phase, its schedule, and the momentum that it keeps."""
    ends = f"lasts {_until(phase.until)}"
    if span is not None and span.is_certain:
        ends = f"steps {span.began:,} to {span.ends:,}: {ends}"
    elif span is not None:
        ends = f"over by step {span.ends:,}: {ends}"
    said = [ends, "schedule anew" if phase.restarts_schedule else "schedule of the whole run"]
    # The first phase has no momentum to keep or lose.
    if number:
        said.append(_MOMENTUM[phase.optimizer_state])
    if phase.restores_best:
        said.append("goes back to its best weights")
    return "; ".join(said)


_MOMENTUM = {
    "reset": "momentum of what is thawed begins anew",
    "keep": "momentum kept",
    "fresh": "all momentum begins anew",
}


def _until(until: Trigger | None) -> str:
    """Return the words for the trigger of a phase."""
    match until:
        case None:
            return "to the end of the run"
        case AfterEpochs(epochs=epochs):
            return f"{epochs} {'epoch' if epochs == 1 else 'epochs'}"
        case AfterSteps(steps=steps):
            return f"{steps:,} {'step' if steps == 1 else 'steps'}"
        case AtFraction(fraction=fraction):
            return f"until {fraction:.3g} of the run is done"
        case OnPlateau(plateau=metric, patience=patience, min_delta=delta, at_most=at_most):
            gain = f" by {delta:g}" if delta else ""
            text = f"until {metric} has not improved{gain} in {patience} evaluations"
            return text if at_most is None else f"{text}, at most {_until(at_most)}"
        case _:
            assert_never(until)
