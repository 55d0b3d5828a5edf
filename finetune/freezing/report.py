"""The freeze map: rows that fold parameters by block, with state and rates, and as text."""

from collections.abc import Callable, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from finetune.block_names import by_block
from finetune.freezing.apply import frozen_now
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.policies.policy import Policy
from finetune.models.inventory import ParamInfo, take_inventory
from finetune.optim.rates import PeakRate
from finetune.visible import one_line


@dataclass(frozen=True, slots=True)
class MapRow:
    """Neighbouring parameters of one module that share a state."""

    name: str
    state: str
    """`frozen`, `trained`, or `mixed` where a folded module holds both."""
    tensors: int
    parameters: int
    """Number of their elements."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PlanRow:
    """State of a parameter, a block, or several equal blocks in one phase."""

    name: str
    state: str
    """`frozen`, `trained`, `mixed`, or `drawn` if a policy decides during training."""
    rates: tuple[PeakRate, ...]
    """The different rates of trained parameters, the lowest first; empty if none trains."""
    decay: str
    """Weight decay of trained parameters: `yes`, `none` or `mixed`; empty if none trains."""
    modules: str
    """Mode of its modules, with the exceptions that the phase makes for wholly frozen ones."""
    tensors: int
    trained: int
    """Number of trained elements."""
    parameters: int
    """Number of all elements."""


def freeze_map(model: nn.Module) -> str:
    """Return which parameters of `model` are frozen now, as a text with one line per block."""
    return mask_as_text(take_inventory(model), frozen_now(model))


def mask_as_text(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> str:
    """Return a mask as a text with one line per block and a line of totals."""
    rows = fold(inventory, frozen)
    # Names may come from somebody else's network: characters that steer a terminal are escaped.
    names = [one_line(row.name) for row in rows]
    width = max(map(len, names))
    lines = [
        f"{_SIGNS[row.state]} {name:<{width}}  {row.state:<7}  {row.parameters:>13,}"
        for name, row in zip(names, rows, strict=True)
    ]
    trained = sum(param.numel for param in inventory if param.name not in frozen)
    total = sum(param.numel for param in inventory)
    share = trained / total if total else 0.0
    return "\n".join([*lines, f"trained {trained:,} of {total:,} parameters ({share:.2%})"])


def fold(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> list[MapRow]:
    """Fold parameters into one row per block, or per child module outside the blocks.

    A row whose parameters differ in state is `mixed`.
    """
    folded = by_block(inventory)
    return [_row(name, params, frozen) for name, params in folded.items()]


def unfold(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> list[MapRow]:
    """Return one row per parameter."""
    return [_row(param.name, [param], frozen) for param in inventory]


def states_over_phases(
    inventory: Sequence[ParamInfo], phases: Sequence[Phase], *, at_most: int = 40
) -> dict[str, list[str]]:
    """Return for each block its state in every given phase.

    Args:
        inventory: The parameters.
        phases: The phases, in order.
        at_most: With more rows than this, neighbouring blocks with equal states share one.
    """
    maps = [fold(inventory, phase.frozen) for phase in phases]
    states = {cells[0].name: [cell.state for cell in cells] for cells in zip(*maps, strict=True)}
    if len(states) <= at_most:
        return states
    alike = _runs_of_blocks(list(states), lambda one, other: states[one] == states[other])
    return {_name_of_run(run): states[run[0]] for run in alike}


def plan_rows(plan: Plan, number: int, *, full: bool = False) -> list[PlanRow]:
    """Return the rows of a phase: one per block, or one per parameter if `full`."""
    groups = {p.name: [p] for p in plan.inventory} if full else by_block(plan.inventory)
    phase = plan.phases[number]
    rows = [_plan_row(name, params, phase, plan.undecayed) for name, params in groups.items()]
    is_drawn = [any(p.name in plan.drawn for p in params) for params in groups.values()]
    return [
        # The policy decides on these blocks, so state and mode of the widest phase mean nothing.
        replace(row, state="drawn", modules="as drawn") if drawn else row
        for row, drawn in zip(rows, is_drawn, strict=True)
    ]


def changed_rows(before: Sequence[PlanRow], after: Sequence[PlanRow]) -> list[PlanRow]:
    """Return the rows of `after` that differ from those of `before`."""
    return [new for old, new in zip(before, after, strict=True) if old != new]


def joined_rows(rows: Sequence[PlanRow]) -> list[PlanRow]:
    """Join neighbouring blocks with equal values into one row, named `encoder.layer.0 to 5`."""
    by_name = {row.name: row for row in rows}
    runs = _runs_of_blocks(
        list(by_name), lambda one, other: _fate(by_name[one]) == _fate(by_name[other])
    )
    return [_joined([by_name[name] for name in run]) for run in runs]


def _runs_of_blocks(names: Sequence[str], alike: Callable[[str, str], bool]) -> list[list[str]]:
    """Group the names of blocks that follow one another in one list and are alike."""
    runs: list[list[str]] = []
    for name in names:
        if runs and next_block(runs[-1][-1], name) and alike(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _name_of_run(names: Sequence[str]) -> str:
    """Return `encoder.layer.0 to 5` for the blocks of a run."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"


def next_block(before: str, name: str) -> bool:
    """Tell whether `name` is the block that follows `before` in the same list."""
    stem, _, index = name.rpartition(".")
    stem_before, _, index_before = before.rpartition(".")
    if stem != stem_before or not (index.isdigit() and index_before.isdigit()):
        return False
    return int(index) == int(index_before) + 1


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """Return every phase with every parameter's state and rate, and the totals, as plain data."""
    total = sum(param.numel for param in plan.inventory)
    return {
        "parameters": total,
        "ever_trained": list(plan.ever_trained),
        "phases": [_phase_as_data(plan, phase) for phase in plan.phases],
    } | (policy_as_data(plan.policy) if plan.policy is not None else {})


def policy_as_data(policy: Policy) -> dict[str, Any]:
    """Return name, words and blocks of a policy as plain data."""
    blocks = {str(depth): sorted(names) for depth, names in policy.blocks.items()}
    return {"policy": {"name": policy.name, "says": policy.says, "blocks": blocks}}


_SIGNS = {"frozen": "░", "trained": "█", "mixed": "▒"}


def _phase_as_data(plan: Plan, phase: Phase) -> dict[str, Any]:
    """Return a phase with the state of every parameter as plain data."""
    counts = dict.fromkeys(("trained", "frozen"), 0)
    for param in plan.inventory:
        counts["frozen" if param.name in phase.frozen else "trained"] += param.numel
    until = phase.until and phase.until.model_dump(mode="json", exclude_none=True)
    return {
        "name": phase.name,
        "until": until,
        "modules": phase.modules.model_dump(mode="json"),
        "schedule": "per_phase" if phase.restarts_schedule else "whole_run",
        "optimizer_state": phase.optimizer_state,
        "restore_best": phase.restores_best,
        "trained_parameters": counts["trained"],
        "frozen_parameters": counts["frozen"],
        "states": [_state_as_data(param, phase, plan.undecayed) for param in plan.inventory],
    }


def _state_as_data(param: ParamInfo, phase: Phase, undecayed: AbstractSet[str]) -> dict[str, Any]:
    """Return state, rate and size of one parameter in a phase as plain data."""
    rate = phase.rates.get(param.name)
    return {
        "name": param.name,
        "state": "frozen" if param.name in phase.frozen else "trained",
        "rate": rate and _rate_as_data(rate),
        "decays": None if rate is None else param.name not in undecayed,
        "shape": list(param.shape),
        "parameters": param.numel,
        "size_bytes": param.size_bytes,
        "depth": param.depth,
        "aliases": list(param.aliases),
    }


def _rate_as_data(rate: PeakRate) -> dict[str, Any]:
    """Return a rate as plain data, without defaults."""
    own: dict[str, Any] = {"lr": rate.lr}
    if rate.schedule is not None:
        dumped = rate.schedule.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        own["schedule"] = dumped
    return own if rate.over == 1.0 else own | {"over": rate.over}


def _row(name: str, params: Sequence[ParamInfo], frozen: AbstractSet[str]) -> MapRow:
    """Fold parameters into a row of the freeze map."""
    states = {"frozen" if param.name in frozen else "trained" for param in params}
    return MapRow(
        name=name,
        state=states.pop() if len(states) == 1 else "mixed",
        tensors=len(params),
        parameters=sum(param.numel for param in params),
        size_bytes=sum(param.size_bytes for param in params),
    )


def _plan_row(
    name: str, params: Sequence[ParamInfo], phase: Phase, undecayed: AbstractSet[str]
) -> PlanRow:
    """Fold parameters into a row of a plan."""
    row = _row(name, params, phase.frozen)
    trained = [param for param in params if param.name not in phase.frozen]
    # By their text, so that equal rates are shown once.
    rates = {repr(phase.rates[param.name]): phase.rates[param.name] for param in trained}
    decays = {param.name not in undecayed for param in trained}
    decay = ("yes" if decays.pop() else "none") if len(decays) == 1 else "mixed"
    return PlanRow(
        name=name,
        state=row.state,
        rates=tuple(sorted(rates.values(), key=lambda rate: rate.lr)),
        decay=decay if trained else "",
        modules=_modes(params, phase),
        tensors=row.tensors,
        trained=sum(param.numel for param in trained),
        parameters=row.parameters,
    )


def _modes(params: Sequence[ParamInfo], phase: Phase) -> str:
    """Return the modes of the modules that own `params`: `eval`, `part eval` or `train`."""
    # A module counts as held if all parameters among `params` that it owns are frozen.
    held = {param.module: True for param in params}
    for param in params:
        held[param.module] &= param.name in phase.frozen
    norms = {param.module for param in params if "norm" in param.kinds}
    has_trained_norm = any(not held[module] for module in norms)
    fixed = ["norm eval"] if phase.modules.trained_norm == "eval" and has_trained_norm else []
    if not any(held.values()):
        return ", ".join(["train", *fixed])
    has_norm = any(held[module] for module in norms)
    free = ["norm train"] if phase.modules.norm == "train" and has_norm else []
    free += ["trained norm eval"] if fixed else []
    free += ["dropout train"] if phase.modules.dropout == "train" else []
    return ", ".join(["eval" if all(held.values()) else "part eval", *free])


def _fate(row: PlanRow) -> tuple[object, ...]:
    """Return what rows must have in common to be joined."""
    return row.state, repr(row.rates), row.decay, row.modules


def _joined(run: Sequence[PlanRow]) -> PlanRow:
    """Return one row for several neighbouring blocks, with their sums."""
    if len(run) == 1:
        return run[0]
    return replace(
        run[0],
        name=_name_of_run([row.name for row in run]),
        tensors=sum(row.tensors for row in run),
        trained=sum(row.trained for row in run),
        parameters=sum(row.parameters for row in run),
    )
