"""The verdict on a run in plain words: result, comparison, proof, cost, what to try next.

Every function is pure: it reads facts that `gathered.py` has collected and returns words.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from finetune.report.curves import Curves, Points
from finetune.runs.run_record import RunRecord
from finetune.runs.saved_proof import SavedProof

Tone = Literal["good", "warn", "bad"]

_LEAST_EVALUATIONS = 4
"""With fewer evaluations nothing is said about the shape of a curve."""
_STILL_FALLING = 0.03
"""A loss still falls if its last quarter of evaluations has lowered it by this share."""
_RISES = 1.1
"""The validation loss has risen if it ends so many times above its best."""
_GAP = 2.0
"""The validation loss is far above the training loss from this ratio on."""
_LEAST_RISE = 0.02
"""A smaller rise of the loss is noise, whatever its ratio."""
_LEAST_GAP = 0.1
"""Losses this close are not far from each other, whatever their ratio."""
_NON_FINITE = re.compile(r"\b(nan|infinite|inf|not finite|non-finite)\b", re.IGNORECASE)


class Line(NamedTuple):
    """One line of the verdict."""

    label: str
    text: str
    tone: Tone = "good"


@dataclass(frozen=True, slots=True)
class VerdictFacts:
    """What a verdict is made from."""

    record: RunRecord
    curves: Curves
    proof: SavedProof | None
    constant: float | None
    """The main figure of a predictor that always gives the same answer; None if not known."""
    earlier: tuple[RunRecord, ...]
    """Runs on the same data that began before this one, the best first."""
    elsewhere: tuple[RunRecord, ...]
    """Such runs that were validated on other samples, as another seed draws them."""
    frozen: str
    """Which blocks were frozen, and when; empty if that is not known."""
    trained_share: float | None
    """Share of the parameters that the last phase trains."""


def verdict(facts: VerdictFacts) -> list[Line]:
    """Return the lines of a verdict, what a reader asks first above."""
    return [
        _status(facts.record),
        _result(facts),
        *_against_constant(facts),
        _against_earlier(facts),
        _frozen(facts),
        _cost(facts.record),
    ]


def advice(facts: VerdictFacts) -> list[str]:
    """Return what to try next, where the curves say it plainly; may be empty."""
    return [
        *_on_failure(facts),
        *_on_constant(facts),
        *_on_losses(facts),
        *_on_phases(facts),
    ]


def figure(value: float | None) -> str:
    """Return a figure as text with four significant digits."""
    return "none" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a time as text, in the units that fit."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _status(record: RunRecord) -> Line:
    """Return how the run is."""
    steps = f"{record.steps:,} steps"
    match record.status:
        case "done":
            early = ", stopped early" if record.summary.get("stopped_early") else ""
            return Line("status", f"done after {steps}{early}")
        case "running":
            return Line("status", f"running, at step {record.steps:,}", "warn")
        case "stopped":
            text = f"stopped on request at step {record.steps:,}; the same command goes on from it"
            return Line("status", text, "warn")
        case "failed":
            why = f": {record.reason}" if record.reason else ""
            return Line("status", f"failed at step {record.steps:,}{why}", "bad")
        case "killed":
            text = f"ended without a word at step {record.steps:,}; the same command goes on"
            return Line("status", text, "bad")


def _result(facts: VerdictFacts) -> Line:
    """Return the main figure, and that of the test samples."""
    record = facts.record
    if record.value is None or not math.isfinite(record.value):
        why = "was never measured" if record.value is None else f"is {record.value}"
        return Line("result", f"{record.main} {why}", "bad")
    text = f"{record.main} {figure(record.value)}"
    if record.best_step is not None:
        evaluations = _counted(len(facts.curves.of(record.main)), "evaluation")
        text += f" at step {record.best_step:,}, the best of {evaluations}"
    else:
        text += ", the last value"
    # Without validation samples the main figure is one of the test part already.
    test = f"test/{record.main.partition('/')[2]}"
    if test in record.metrics and test != record.main:
        text += f"; on the test samples {figure(record.metrics[test])}"
    return Line("result", text, "good" if record.status == "done" else "warn")


def _against_constant(facts: VerdictFacts) -> Iterator[Line]:
    """Yield how far the run is from a constant predictor, where that is known."""
    record, constant = facts.record, facts.constant
    if constant is None or record.value is None or not math.isfinite(record.value):
        return
    gain = _gain(record, record.value, constant)
    word = "better than" if gain > 0 else "worse than" if gain < 0 else "as good as"
    amount = f"{figure(abs(gain))} {word}" if gain else word
    text = f"{amount} one that always gives the same answer ({figure(constant)})"
    yield Line("baseline", text, "good" if gain > 0 else "bad")


def _against_earlier(facts: VerdictFacts) -> Line:
    """Return how the run compares with the best earlier one on the same data."""
    record = facts.record
    alike, elsewhere = _measured_as(record, facts.earlier), _measured_as(record, facts.elsewhere)
    if not alike and not elsewhere:
        return Line("earlier runs", "none on the same data beside this one")
    # A figure of other samples may be better for that reason alone.
    known = alike or elsewhere
    noun = "the only earlier run" if len(known) == 1 else f"the best of {len(known)} earlier runs"
    noun += " on the same data"
    if not alike:
        noun += ", but it was validated on other samples"
    elif elsewhere:
        noun += f" and validation samples; {_counted(len(elsewhere), 'run')} had other ones"
    best, reached = known[0], figure(known[0].value)
    if record.value is None or best.value is None or not math.isfinite(record.value):
        return Line("earlier runs", f"{best.name} reached {reached}, {noun}", "warn")
    gain = _gain(record, record.value, best.value)
    word = "better than" if gain > 0 else "worse than" if gain < 0 else "as good as"
    amount = f"{figure(abs(gain))} {word}" if gain else word
    text = f"{amount} {best.name} ({reached}), {noun}"
    return Line("earlier runs", text, "good" if gain >= 0 else "warn")


def _measured_as(record: RunRecord, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that have a value of the figure by which this one is judged."""
    # Another main figure, or one that is NaN, says nothing about which run is better.
    return [
        run
        for run in runs
        if run.value is not None and math.isfinite(run.value) and run.main == record.main
    ]


def _frozen(facts: VerdictFacts) -> Line:
    """Return what was frozen, and whether that is proven."""
    proof, share = facts.proof, facts.trained_share
    trained = "" if share is None else f"; {share:.1%} of the parameters trained at the end"
    what = f"{facts.frozen}; " if facts.frozen else ""
    if proof is not None and not proof.is_intact:
        changed = sorted({name for phase in proof.phases for name in phase.changed})
        named = ", ".join(changed[:5]) or "by its own verdict"
        return Line("frozen", f"PROOF FAILED: frozen tensors changed ({named})", "bad")
    if facts.frozen == "nothing":
        return Line("frozen", f"nothing was frozen{trained}")
    # An empty proof is intact, too, and must not be praised as one.
    if proof is None or proof.tensors == 0:
        return Line("frozen", f"{what}{_no_proof(facts.record)}{trained}", "warn")
    over = _counted(len(proof.phases), "phase")
    text = f"proven: {proof.tensors:,} fingerprints equal before and after, over {over}"
    return Line("frozen", f"{what}{text}{trained}")


def _no_proof(record: RunRecord) -> str:
    """Return why what was frozen is not proven."""
    if record.settings.get("freeze.verify") == "off":
        return "not proven, since freeze.verify is off"
    if record.status == "done" and record.settings.get("freeze.verify") == "end":
        return "not proven, since freeze.verify: end covers what is frozen throughout"
    if record.status in ("failed", "killed"):
        return "not proven, since no phase came to its end"
    return "not proven yet"


def _cost(record: RunRecord) -> Line:
    """Return time by activity, and memory."""
    seconds = record.summary.get("seconds")
    spent = seconds if isinstance(seconds, Mapping) else {}
    parts = sorted(
        ((name, one) for name, one in spent.items() if isinstance(one, int | float)),
        # the longest activity first: only four are shown
        key=lambda part: -part[1],
    )
    if not parts:
        return Line("cost", "not known before the end", "warn")
    listed = ", ".join(f"{name} {duration(one)}" for name, one in parts[:4])
    peak = record.summary.get("peak_memory_gib")
    memory = f"; at most {peak:.2f} GiB of memory" if isinstance(peak, int | float) else ""
    return Line("cost", f"{duration(record.seconds)} ({listed}){memory}")


def _on_failure(facts: VerdictFacts) -> Iterator[str]:
    """Yield what to do about a run that failed because a number was not finite."""
    record = facts.record
    if record.status != "failed" or not _NON_FINITE.search(record.reason or ""):
        return
    rate = record.settings.get("optimizer.lr")
    loss = facts.curves.of("train/loss")
    seen = ""
    if loss:
        seen = f" The last finite loss was {figure(loss[-1][1])}, at step {loss[-1][0]:,}."
    yield (
        f"The loss left the finite numbers.{seen} Lower the rate (optimizer.lr is {rate}), "
        "add a warmup, or bound the gradient with train.max_grad_norm."
    )


def _on_constant(facts: VerdictFacts) -> Iterator[str]:
    """Yield a doubt about a run that is no better than a constant answer."""
    record, constant = facts.record, facts.constant
    if constant is None or record.value is None or record.status == "failed":
        return
    if _gain(record, record.value, constant) <= 0:
        yield (
            "It has learned nothing that a constant answer does not have: look at labels, "
            "inputs and rate."
        )


def _on_losses(facts: VerdictFacts) -> Iterator[str]:
    """Yield what the losses of training and validation say together."""
    losses = facts.curves.of("validation/loss")
    if len(losses) < _LEAST_EVALUATIONS or facts.record.status == "failed":
        return
    best_step, best = min(losses, key=lambda point: point[1])
    last_step, last = losses[-1]
    # The loss of a single step is noisy, so the mean over the last tenth of the run is used.
    train = facts.curves.mean_between("train/loss", round(last_step * 0.9), last_step)
    # The ratio alone would call 0.0011 after 0.0010 overfitting, and a best at the very end may
    # still be the bottom of a wave.
    if last > _RISES * best and last - best > _LEAST_RISE and best_step < 0.8 * last_step:
        against = "" if train is None else f", while the training loss fell to {figure(train)}"
        yield (
            f"Overfitting: validation/loss was {figure(best)} at step {best_step:,} and rose to "
            f"{figure(last)}{against}. Train less (early stopping), freeze more, or add data, "
            "augmentation, dropout or weight decay."
        )
    elif train is not None and last > _GAP * train and last - train > _LEAST_GAP:
        yield (
            f"Validation is far above training: a loss of {figure(last)} against "
            f"{figure(train)}. More data, augmentation, dropout, weight decay or more frozen "
            "blocks may close the gap."
        )
    elif best_step == last_step and _falls_still(losses):
        yield (
            f"Still falling: validation/loss is at its lowest, {figure(last)}, at the last "
            "evaluation. More epochs should lower it further."
        )


def _falls_still(losses: Points) -> bool:
    """Tell whether the last quarter of the evaluations has lowered the loss."""
    # At least one evaluation is held out, also where there are only four.
    before = losses[: -max(1, len(losses) // 4)]
    lowest = min(value for _, value in before)
    return losses[-1][1] < (1 - _STILL_FALLING) * lowest if lowest > 0 else False


def _on_phases(facts: VerdictFacts) -> Iterator[str]:
    """Yield what the later phases have gained over the first one, and in how many steps.

    Steps are counted, so that a machine that was busy for a while changes nothing.
    """
    record, phases = facts.record, facts.curves.phases
    # A phase may have been planned and never reached, or left at once by its trigger.
    ran = [phase for phase in phases if phase.steps > 0]
    values = facts.curves.of(record.main)
    if len(ran) < 2 or record.value is None or not values:
        return
    first = _best_until(values, ran[0].ends, falls=record.falls)
    if first is None:
        return
    gain, later = _gain(record, record.value, first), sum(phase.steps for phase in ran[1:])
    word = "gained" if gain > 0 else "lost" if gain < 0 else "gained nothing:"
    amount = f" {figure(abs(gain))}" if gain else ""
    yield (
        f"Phase {ran[0].name!r} alone reached {figure(first)} in {_counted(ran[0].steps, 'step')}; "
        f"the later phases {word}{amount} in {later:,} more."
    )


def _best_until(values: Points, step: int, *, falls: bool) -> float | None:
    """Return the best value up to a step; None without any."""
    seen = [value for at, value in values if at <= step]
    return (min if falls else max)(seen) if seen else None


def _counted(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def _gain(record: RunRecord, value: float, other: float) -> float:
    """Return by how much a value is better than another one; negative if it is worse."""
    return other - value if record.falls else value - other


def constant_figure(main: str, task: object, counts: Sequence[int] | None) -> float | None:
    """Return the main figure of a predictor that always gives the same answer; None if unknown.

    Args:
        main: Tag of the figure.
        task: Type of the task, as the config has it.
        counts: Training samples of each class; None if there are none.
    """
    name = main.partition("/")[2]
    if task == "classification" and name == "accuracy" and counts and sum(counts) > 0:
        return max(counts) / sum(counts)
    if task == "classification" and name == "auroc":
        return 0.5
    # The best constant is the mean of the targets, which explains none of their variance.
    return 0.0 if task == "regression" and name == "r2" else None
