"""Print a plan as tables or JSON: phases, what each trains, what it costs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from finetune.cli.output import size
from finetune.config.dumping import dump_config
from finetune.config.freeze import FreezeConfig, PhaseConfig
from finetune.config.run import RunConfig
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.data.parts.drawn import MOST_PREPARED
from finetune.freezing.lints import Lint
from finetune.freezing.origins import lines_on_weights
from finetune.freezing.report import plan_as_data
from finetune.lints.classes_of_pixels import classes_of_pixels
from finetune.optim.groups import weight_decay_of
from finetune.outfile import write_new
from finetune.preview.costs import Costs, PlanCosts, predict_costs
from finetune.redaction import redacted
from finetune.terminal import Terminal, console_for, new_table, print_lines
from finetune.train.build import build_parts, lints_of, located, phases_of
from finetune.train.built import Parts
from finetune.train.shown.phase_table import print_phases
from finetune.train.shown.start_lines import (
    on_all_classes,
    on_choice,
    on_no_weights,
    on_sizes,
    on_transforms,
)
from finetune.train.sizes import average_bytes
from finetune.visible import one_line


@dataclass(frozen=True, slots=True)
class Preview:
    """All that is known about a run before its first step."""

    config: RunConfig
    parts: Parts
    costs: PlanCosts
    lints: tuple[Lint, ...]


def preview(config: RunConfig) -> Preview:
    """Build what a config describes and compute its costs and lints, without training.

    Of large data only some samples are prepared: see `drawn`.

    Raises:
        FinetuneError: something in the config does not fit the data or the model.
    """
    parts = build_parts(config, most=MOST_PREPARED)
    with located(config):
        costs = predict_costs(parts, config)
        lints = lints_of(config, parts)
        data = parts.data
        more = classes_of_pixels(config, data.parts, data.facts.classes)
        parts = replace(parts, data=replace(data, notes=(*data.notes, *map(redacted, more))))
    return Preview(config, parts, costs, tuple(chain.from_iterable(lints.values())))


def preview_as_data(preview: Preview) -> dict[str, Any]:
    """Return the plan as plain data: phases with states, rates and costs; totals; lints."""
    document = plan_as_data(preview.parts.plan)
    costs = preview.costs
    for phase, cost, span in zip(document["phases"], costs.phases, costs.spans, strict=True):
        phase |= {"span": asdict(span), "costs": asdict(cost)}
        if cost.storing is not None:
            # measured in seconds, which differ between calls; a plan must be the same every time
            phase["costs"]["storing"].pop("pays")
    return document | {
        "notes": list(preview.parts.data.notes_on_all),
        "automatic_transforms": [
            node.model_dump(mode="json", exclude_none=True) for node in preview.parts.data.automatic
        ],
        "weights": lines_on_weights(preview.parts.model.weights_reports),
        "total_steps": preview.parts.total_steps,
        "weight_decay": weight_decay_of(preview.config.optimizer),
        "full_training": {"costs": asdict(costs.full)},
        "costs_are_of_blocks": costs.drawn,
        "share_of_flops": costs.share_of_flops,
        "share_of_flops_with_stores": costs.share_with_stores,
        "lints": [
            {"where": _where(lint, preview.config), "message": lint.message, "hint": lint.hint}
            for lint in preview.lints
        ],
    }


def plan_table(preview: Preview, file: TextIO, *, full: bool) -> None:
    """Print facts about the data, each phase with the state of its parameters, costs and notes."""
    console, parts = console_for(file), preview.parts
    facts = parts.data.facts
    lines = [("data", on_sizes(facts))]
    lines += [("classes", told) for told in on_all_classes(facts)]
    lines += [("task", line) for line in _on_tasks(preview.config.task)]
    lines += [("note", note) for note in (*preview.config.notes, *parts.data.notes_on_all)]
    if parts.data.automatic:
        lines.append(("note", f"transforms: {on_transforms(parts.data.automatic)}"))
    reports = parts.model.weights_reports
    loaded = lines_on_weights(reports) if reports else [on_no_weights(preview.config)]
    lines += [("weights", line) for line in loaded]
    # A tied parameter has two names, and freezing either freezes both: surprising unless told.
    ties = [param for param in parts.plan.inventory if param.aliases]
    lines += [("tied", f"{tie.name} is also {', '.join(tie.aliases)}") for tie in ties]
    lines.append(("run", _run(preview)))
    lines.append(("used", on_choice(parts.training, facts)))
    if (method := getattr(preview.config.freeze, "method", None)) is not None:
        lines.append(("method", f"{method}: {type(preview.config.freeze).__doc__}"))
    print_lines(lines, console)
    decay = weight_decay_of(preview.config.optimizer)
    print_phases(parts.plan, console, full=full, decay=decay, spans=preview.costs.spans)
    _print_costs(preview, console)
    for lint in preview.lints:
        console.tell()
        console.tell(f"note  {_where(lint, preview.config)}: {lint.message}")
        console.tell(f"      {lint.hint}")


def _on_tasks(task: AnyTask) -> list[str]:
    """Return a line for each task of a list: what it reads, learns, and weighs."""
    return [
        f"{one.label}: {one.type} of column {one.target!r} from layer {one.output!r}, weight "
        f"{one.weight:g}"
        for one in (task.tasks if isinstance(task, TaskList) else ())
    ]


def write_long_form(config: RunConfig, parts: Parts, path: Path) -> None:
    """Write the whole config, with its phases and automatic transforms spelled out, to a new file.

    Raises:
        FinetuneError: the file exists already, or cannot be written.
    """
    phases = phases_of(config, parts.model)
    everything = FreezeConfig(phases=(PhaseConfig(name="all", freeze=()),))
    # a policy makes its phases as training goes: there is no longer form of it
    is_listed = parts.plan.policy is None
    changes: dict[str, Any] = {"freeze": phases or everything} if is_listed else {}
    if parts.data.automatic:
        # What the network's pretraining asks for is written out too: who edits the file shall see
        # it.
        changes["data"] = config.data.model_copy(update={"transforms": parts.data.automatic})
    text = dump_config(config.model_copy(update=changes), path.parent)
    source = one_line(config.path.name) if config.path is not None else "a config"
    what = "with its phases written out" if is_listed else "with what it leaves out"
    write_new(path, f"# {source} {what}.\n{text}")


def _run(preview: Preview) -> str:
    """Return the length of the run, its optimizer and learning rate as one line."""
    config, total = preview.config, preview.parts.total_steps
    optimizer, average = config.optimizer, config.train.average
    decay = weight_decay_of(optimizer)
    return (
        f"{total:,} steps of {config.train.batch_size} samples; {optimizer.type}, "
        f"rate {optimizer.lr:g}, weight decay {f'{decay:g}' if decay else 'none'}, "
        f"schedule {config.schedule.type}"
        f"{f', averaged with decay {average.decay:g}' if average is not None else ''}"
    )


def _print_costs(preview: Preview, console: Terminal) -> None:
    """Print FLOPs, savings by the activation cache, memory and file sizes per phase."""
    costs = preview.costs
    names = [f"{number}: {phase.name}" for number, phase in enumerate(preview.parts.plan.phases)]
    named = list(zip([*names, "full training"], [*costs.phases, costs.full], strict=True))
    console.print("\ncosts: FLOPs of a step, without and with the activation cache")
    console.print(_flops_table(named, costs.full.flops_per_step))
    for line in _notes_on_stores(named[:-1]):
        console.tell(line)
    if costs.drawn is not None:
        blocks = ", ".join(map(str, costs.drawn))
        console.tell(f"the costs are those of the first draw, blocks {blocks}; others may differ")
    if (text := _whole_run(costs)) is not None:
        console.tell(text)
    console.print("\nsizes: memory of a step, files of a checkpoint")
    table = new_table(["phase"], ["gradients", "optimizer", "activations", "delta", "state file"])
    for name, cost in named:
        table.add_row(name, *map(size, _memory(cost)))
    console.print(table)
    micro_batch = preview.config.train.pass_size
    console.tell(
        f"weights and buffers take {size(costs.full.weights_bytes)} in every phase; activations "
        f"are those of {micro_batch} samples"
    )
    if preview.config.train.average is not None:
        kept = size(average_bytes(preview.parts.plan))
        console.tell(f"the average takes up to {kept}, in memory and in each checkpoint")


def _flops_table(named: Sequence[tuple[str, Costs]], full: int) -> Table:
    """Return a table of FLOPs; it has columns on stores only if some phase is cached."""
    has_stores = any(cost.storing is not None for _, cost in named)
    more = ["with store", "of full", "store"] if has_stores else []
    table = new_table(["phase"], ["FLOPs", "of full", *more])
    for name, cost in named:
        cells = [_flops(cost.flops_per_step), f"{cost.flops_per_step / max(1, full):.1%}"]
        if cost.storing is not None:
            stored = cost.storing.flops_per_step
            cells += [_flops(stored), f"{stored / max(1, full):.1%}"]
            cells.append(size(cost.storing.store_bytes))
        table.add_row(name, *cells)
    return table


def _notes_on_stores(named: Sequence[tuple[str, Costs]]) -> Iterator[str]:
    """Yield a line for each phase: where its frozen prefix ends, or why it is not cached."""
    for name, cost in named:
        storing = cost.storing
        if storing is None:
            yield f"{name}: {cost.not_stored}"
            continue
        visits = "once" if storing.visits == 1 else f"{storing.visits} times"
        if storing.is_filled_before and storing.pays:
            visits += ", stored on the way before"
        elif storing.visits == 1:
            visits += ": nothing to save"
        elif not storing.pays:
            visits += ": too little to save, so not stored"
        further = f"; not further: {'; '.join(storing.reasons)}" if storing.reasons else ""
        yield (
            f"{name}: the prefix ends with {storing.up_to}, {storing.share_of_forward:.1%} of a "
            f"forward pass; each sample is seen {visits}{further}"
        )


def _whole_run(costs: PlanCosts) -> str | None:
    """Return the cost of the whole run as text, or None if metrics decide how long phases last."""
    if costs.share_of_flops is None or costs.share_with_stores is None:
        return None
    text = f"the whole run takes {costs.share_of_flops:.1%} of the FLOPs of full training"
    if costs.share_with_stores == costs.share_of_flops:
        return text
    return f"{text}, {costs.share_with_stores:.1%} with the activation cache"


def _memory(cost: Costs) -> tuple[int, ...]:
    """Return the sizes of one row of the table, in bytes."""
    return (
        cost.gradients_bytes,
        cost.optimizer_bytes,
        cost.activations_bytes,
        cost.delta_file_bytes,
        cost.optimizer_file_bytes,
    )


def _flops(count: int) -> str:
    """Return a number of operations as text, with the prefix that fits."""
    amount, prefix = float(count), ""
    for larger in ("k", "M", "G", "T", "P", "E"):
        if amount < 1000:
            break
        amount, prefix = amount / 1000, larger
    return f"{amount:.3g} {prefix}".strip()


def _where(lint: Lint, config: RunConfig) -> str:
    """Return the file and line that a lint is about, or its key if the config has no file."""
    origin = config.locate(lint.key)
    return str(origin) if origin is not None else ".".join(map(str, lint.key))
