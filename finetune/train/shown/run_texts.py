"""Texts about a run for its trackers: the config, the plan, the command that repeats it."""

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from finetune.freezing.plan import Plan
from finetune.freezing.report import joined_rows, plan_rows
from finetune.redaction import redacted
from finetune.visible import one_line


def texts_of(
    documents: Mapping[str, str], plan: Plan, run: Path, trusted: Collection[str]
) -> dict[str, str]:
    """Return texts in Markdown by tag.

    Args:
        documents: Files of the run folder by name; `config.yaml` has its secrets masked.
        plan: The phases, or the policy that makes them.
        run: The run's folder.
        trusted: Packages that the config imports code from.
    """
    # Sorted: a set has another order in each process, and the text would change.
    trust = [word for name in sorted(trusted) for word in ("--trust", name)]
    # Into another folder: in that of the run the command would go on with the run.
    again = ["finetune", "train", str(run / "config.yaml"), "--run", f"{run}-again", *trust]
    return {
        "run/config": _fenced(documents["config.yaml"], "yaml"),
        "run/plan": _plan_in_words(plan),
        "run/repeat": _fenced(redacted(shlex.join(again)), "sh"),
    }


def _plan_in_words(plan: Plan) -> str:
    """Return a table for each phase: which blocks train, at which rates."""
    if plan.policy is not None:
        return f"Phases are made while it trains: {one_line(plan.policy.says)}"
    return "\n\n".join(_phase_in_words(plan, number) for number in range(len(plan.phases)))


def _phase_in_words(plan: Plan, number: int) -> str:
    """Return a phase as a heading and a table in Markdown."""
    phase = plan.phases[number]
    until = phase.until and phase.until.model_dump(mode="json", exclude_none=True)
    heading = f"**Phase {number}: {_cell(phase.name)}**, " + (
        "to the end" if until is None else f"until {_cell(str(until))}"
    )
    lines = ["| block | state | trained | of | rates |", "|---|---|---|---|---|"]
    for row in joined_rows(plan_rows(plan, number)):
        rates = ", ".join(f"{rate.lr:g}" for rate in row.rates)
        figures = f"{row.trained:,} | {row.parameters:,} | {rates}"
        lines.append(f"| {_cell(row.name)} | {row.state} | {figures} |")
    return "\n".join([heading, "", *lines])


def _cell(text: str) -> str:
    """Return a text that Markdown takes as it is, also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(text))


def _fenced(text: str, language: str) -> str:
    """Return a text as a block of code; its fence is longer than any in the text."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
