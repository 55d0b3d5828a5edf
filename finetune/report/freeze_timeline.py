"""The freeze timeline of a run as plain data: a row per block, bars over the steps."""

from collections.abc import Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from finetune.block_names import by_block
from finetune.errors import named
from finetune.report.curves import PhaseSpan

_MOST_ROWS = 40
"""With more blocks than this, neighbours with the same states share a row."""
_MOST_STRETCHES = 3
"""Stretches of neighbouring blocks that are named; the blocks of the others are counted."""


class Bar(NamedTuple):
    """A stretch of steps in which a block keeps its state."""

    state: str
    """`frozen`, `trained` or `mixed`."""
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """A block, or neighbouring blocks with the same states."""

    name: str
    bars: tuple[Bar, ...]


class _Parameter(NamedTuple):
    name: str
    depth: int | None


def timeline_rows(
    plan: Mapping[str, Any], phases: Sequence[PhaseSpan], masks: Sequence[Sequence[int]]
) -> list[TimelineRow]:
    """Return the rows of a timeline over the phases that have begun.

    Args:
        plan: `plan.json` of the run.
        phases: The phases that have begun.
        masks: With a policy, the depths of the blocks that train in each of these; else empty.

    Raises:
        KeyError, TypeError, IndexError, AttributeError: the plan is not what a run writes.
    """
    states = plan["phases"][0]["states"]
    depths = [(str(one["name"]), one["depth"]) for one in states]
    blocks = by_block(_Parameter(name, depth) for name, depth in depths)
    frozen = [_frozen_in(plan, phase.number, masks) for phase in phases]
    rows: dict[str, tuple[str, ...]] = {
        block: tuple(_state({each.name for each in group}, names) for names in frozen)
        for block, group in blocks.items()
    }
    return [
        TimelineRow(name, _bars(cells, phases))
        for name, cells in (_joined(rows) if len(rows) > _MOST_ROWS else list(rows.items()))
    ]


def _frozen_in(
    plan: Mapping[str, Any], number: int, masks: Sequence[Sequence[int]]
) -> AbstractSet[str]:
    """Return the names that are frozen in a phase."""
    policy = plan.get("policy")
    # A policy's plan holds one phase, with all that may ever train.
    phase = plan["phases"][min(number, len(plan["phases"]) - 1)]
    frozen = {str(one["name"]) for one in phase["states"] if one["state"] == "frozen"}
    # Masks are read from a checkpoint; without one, all that may ever train counts as trained.
    if policy is None or number >= len(masks):
        return frozen
    drawn = {str(depth) for depth in masks[number]}
    for depth, names in policy["blocks"].items():
        (frozen.difference_update if depth in drawn else frozen.update)(map(str, names))
    return frozen


def _state(names: AbstractSet[str], frozen: AbstractSet[str]) -> str:
    """Return the state of a block."""
    held = len(names & frozen)
    return "trained" if not held else "frozen" if held == len(names) else "mixed"


def _joined(rows: Mapping[str, tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Join neighbouring rows with the same states."""
    joined = []
    for cells, group in groupby(rows.items(), key=lambda row: row[1]):
        names = [name for name, _ in group]
        joined.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", cells))
    return joined


def _bars(cells: Sequence[str], phases: Sequence[PhaseSpan]) -> tuple[Bar, ...]:
    """Join neighbouring phases with the same state to one bar."""
    bars: list[Bar] = []
    for state, phase in zip(cells, phases, strict=True):
        # A phase that has only just begun has no width to draw.
        if phase.steps == 0:
            continue
        if bars and bars[-1].state == state and bars[-1].ends == phase.begins:
            bars[-1] = bars[-1]._replace(ends=phase.ends)
        else:
            bars.append(Bar(state, phase.begins, phase.ends))
    return tuple(bars)


def frozen_in_words(rows: Sequence[TimelineRow]) -> str:
    """Return which blocks were frozen and when, such as `'conv1' to 'norm2' until step 80`.

    Empty before the first step.
    """
    if not any(row.bars for row in rows):
        return ""
    stretches: dict[str, list[list[str]]] = {}
    for when, group in groupby(rows, key=lambda row: _frozen_when(row.bars)):
        if when is not None:
            stretches.setdefault(when, []).append([row.name for row in group])
    return "; ".join(f"{_in_short(one)} {when}" for when, one in stretches.items()) or "nothing"


def _in_short(stretches: Sequence[Sequence[str]]) -> str:
    """Return names of blocks; of three neighbours or more only the first and the last."""
    parts = [
        named(names) if len(names) < 3 else f"{named(names[:1])} to {named(names[-1:])}"
        for names in stretches[:_MOST_STRETCHES]
    ]
    more = sum(len(names) for names in stretches[_MOST_STRETCHES:])
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _frozen_when(bars: Sequence[Bar]) -> str | None:
    """Return when a block was frozen; None if it never was, not even in part."""
    stretches = _frozen_stretches(bars)
    if not stretches:
        return None
    part = "" if all(one.state == "frozen" for one in stretches) else "in part "
    if len(stretches) > 1:
        return f"{part}in {len(stretches)} stretches"
    (one,) = stretches
    if one.ends == bars[-1].ends:
        return part + ("throughout" if one.begins == bars[0].begins else f"from step {one.begins}")
    if one.begins == bars[0].begins:
        return f"{part}until step {one.ends}"
    return f"{part}from step {one.begins} to {one.ends}"


def _frozen_stretches(bars: Sequence[Bar]) -> list[Bar]:
    """Join neighbouring bars that are frozen, some of them in part, and leave the others out."""
    stretches: list[Bar] = []
    for bar in bars:
        if bar.state == "trained":
            continue
        if stretches and stretches[-1].ends == bar.begins:
            state = bar.state if bar.state == stretches[-1].state else "mixed"
            stretches[-1] = Bar(state, stretches[-1].begins, bar.ends)
        else:
            stretches.append(bar)
    return stretches
