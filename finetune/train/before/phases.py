"""Check the phases of a config before a step is taken: order, triggers, watched metrics."""

from collections.abc import Sequence

from finetune.config.freeze import PhaseConfig
from finetune.config.triggers import AtFraction, OnPlateau
from finetune.errors import FinetuneError, Key
from finetune.tasks.directions import Directions
from finetune.train.epochs import Epochs
from finetune.train.rules import faults_of, watched_metric
from finetune.train.spans import walk


def refuse_impossible(
    phases: Sequence[PhaseConfig],
    *,
    steps_per_epoch: int,
    total: int,
    directions: Directions,
) -> list[FinetuneError]:
    """Return what is wrong with the order and the triggers of the phases, all at once.

    Args:
        phases: The phases, those of a method written out.
        steps_per_epoch: Optimizer steps of one pass over the samples.
        total: Optimizer steps of the run.
        directions: The figures of an evaluation, and which way each improves.
    """
    found: list[FinetuneError] = []
    is_due = True
    spans = walk((phase.until for phase in phases), Epochs((steps_per_epoch,)), total)
    for number, (phase, span) in enumerate(zip(phases, spans, strict=True)):
        key = ("freeze", "phases", number)
        if is_due and span.began >= total:
            message = f"phase {phase.name!r} never begins: the run is over after {total} steps"
            found.append(FinetuneError(message, hint="lengthen train.epochs", key=key))
            # Every phase after it would get the same message.
            break
        found += _wrong_metrics(phase, directions, key)
        if isinstance(phase.until, AtFraction) and span.is_certain and span.ends <= span.began:
            message = f"phase {phase.name!r} is over before it begins, at step {span.began}"
            found.append(FinetuneError(message, key=(*key, "until")))
        is_endless = isinstance(phase.until, OnPlateau) and phase.until.at_most is None
        if is_endless and phase.schedule == "per_phase":
            message = "a schedule of its own needs a length: add 'at_most' to the plateau"
            found.append(FinetuneError(message, key=(*key, "until")))
        # Behind a plateau nobody knows where a phase begins, so none is refused for that.
        is_due = span.is_certain
    return found


def _wrong_metrics(phase: PhaseConfig, directions: Directions, key: Key) -> list[FinetuneError]:
    """Return what is wrong with the metrics that a phase watches."""
    asked: dict[Key, str] = {}
    if isinstance(phase.until, OnPlateau):
        asked[*key, "until"] = phase.until.plateau
    # With a plateau, best weights are chosen by its metric, which is asked for already.
    elif phase.restore_best:
        asked[*key, "restore_best"] = watched_metric(phase.until)
    return faults_of(asked, directions)
