"""What evaluations mean for phases and run, and which rules about them can never come true."""

from collections.abc import Sequence

from finetune.config.freeze import AtFraction, OnPlateau, PhaseConfig, Trigger
from finetune.config.train import CheckpointConfig, TrainConfig
from finetune.errors import FinetuneError, Key, did_you_mean
from finetune.freezing.plan import Plan
from finetune.train.course import latest_end
from finetune.train.progress import Progress, improves


def judge(plan: Plan, progress: Progress, settings: TrainConfig) -> bool:
    """Record in `progress` what the latest evaluation means; return whether to keep its weights.

    Raises:
        FinetuneError: evaluation writes no metric of the name that a rule watches.
    """
    _judge_early_stopping(progress, settings)
    _judge_plateau(plan, progress)
    is_best_of_phase = _judge_phase_best(plan, progress)
    return _judge_best(progress, settings.checkpoint) or is_best_of_phase


def _judge_best(progress: Progress, rule: CheckpointConfig) -> bool:
    """Tell whether these are among the best weights of the run, of which some are kept."""
    if rule.best is None:
        return False
    value = metric_of(progress.metrics, rule.best, ("train", "checkpoint", "best"))
    if improves(value, progress.best, rule.best):
        progress.best, progress.best_step = value, progress.step
    return progress.rank(value, rule.best, rule.keep_best or 1)


def _judge_early_stopping(progress: Progress, settings: TrainConfig) -> None:
    """Count evaluations without improvement, and end the run when there were too many."""
    rule = settings.early_stopping
    if rule is None:
        return
    value = metric_of(progress.metrics, rule.metric, ("train", "early_stopping", "metric"))
    if improves(value, progress.watched, rule.metric, rule.min_delta):
        progress.watched, progress.stale = value, 0
    else:
        progress.stale += 1
        progress.stopped_early = progress.stale >= rule.patience


def _judge_plateau(plan: Plan, progress: Progress) -> None:
    """Record whether the metric that the present phase watches has improved."""
    until = plan.phases[progress.phase].until
    if not isinstance(until, OnPlateau):
        return
    key = ("freeze", "phases", progress.phase, "until", "plateau")
    value = metric_of(progress.metrics, until.plateau, key)
    if improves(value, progress.plateau_best, until.plateau, until.min_delta):
        progress.plateau_best, progress.plateau_stale = value, 0
    else:
        progress.plateau_stale += 1
        progress.plateau_reached = progress.plateau_stale >= until.patience


def _judge_phase_best(plan: Plan, progress: Progress) -> bool:
    """Record the best evaluation of a phase that goes back to it; say if it is a new one."""
    phase = plan.phases[progress.phase]
    if not phase.restores_best:
        return False
    metric = watched_metric(phase.until)
    value = metric_of(
        progress.metrics, metric, ("freeze", "phases", progress.phase, "restore_best")
    )
    if not improves(value, progress.phase_best, metric):
        return False
    progress.phase_best, progress.phase_best_step = value, progress.step
    return True


def watched_metric(until: Trigger | None) -> str:
    """Return the metric by which a phase finds its best weights: of its plateau, or the loss."""
    return until.plateau if isinstance(until, OnPlateau) else "validation/loss"


def metric_of(figures: dict[str, float], tag: str, key: tuple[str | int, ...]) -> float:
    """Return the latest figure of a metric.

    Raises:
        FinetuneError: evaluation writes no such metric.
    """
    if tag not in figures:
        raise FinetuneError(
            f"no metric {tag!r} is ever logged; there are: {', '.join(figures)}",
            hint=did_you_mean(tag, figures),
            key=key,
        )
    return figures[tag]


def refuse_impossible(
    phases: Sequence[PhaseConfig],
    *,
    steps_per_epoch: int,
    total: int,
    metrics: frozenset[str] | None,
) -> list[FinetuneError]:
    """Return what is wrong with the order and the triggers of the phases, all at once.

    Args:
        phases: The phases, those of a method written out.
        steps_per_epoch: Optimizer steps of one pass over the samples.
        total: Optimizer steps of the run.
        metrics: Tags that evaluation will write; None where only the run itself can tell.
    """
    found: list[FinetuneError] = []
    began, is_certain = 0, True
    for number, phase in enumerate(phases):
        key = ("freeze", "phases", number)
        if is_certain and began >= total:
            message = f"phase {phase.name!r} never begins: the run is over after {total} steps"
            found.append(FinetuneError(message, hint="lengthen train.epochs", key=key))
            break
        found += _wrong_metrics(phase, metrics, key)
        end = latest_end(phase.until, began, steps_per_epoch, total)
        if isinstance(phase.until, AtFraction) and is_certain and end <= began:
            message = f"phase {phase.name!r} is over before it begins, at step {began}"
            found.append(FinetuneError(message, key=(*key, "until")))
        if isinstance(phase.until, OnPlateau):
            is_certain = False
            if phase.schedule == "per_phase" and phase.until.at_most is None:
                message = "a schedule of its own needs a length: add 'at_most' to the plateau"
                found.append(FinetuneError(message, key=(*key, "until")))
        began = end
    return found


def wrong_rules(settings: TrainConfig, metrics: frozenset[str] | None) -> list[FinetuneError]:
    """Return which rules of `train:` watch a metric that evaluation will not write.

    Args:
        settings: Early stopping, and the choice of the best checkpoint.
        metrics: Tags that evaluation will write; None where only the run itself can tell.
    """
    if metrics is None:
        return []
    asked: dict[str, Key] = {}
    if settings.early_stopping is not None:
        asked[settings.early_stopping.metric] = ("train", "early_stopping", "metric")
    if settings.checkpoint.best is not None:
        asked[settings.checkpoint.best] = ("train", "checkpoint", "best")
    return [_never_logged(tag, metrics, key) for tag, key in asked.items() if tag not in metrics]


def _never_logged(tag: str, metrics: frozenset[str], key: Key) -> FinetuneError:
    known = ", ".join(sorted(metrics)) or "none, for there are no validation samples"
    return FinetuneError(
        f"no metric {tag!r} is ever logged; there are: {known}",
        hint=did_you_mean(tag, metrics),
        key=key,
    )


def _wrong_metrics(
    phase: PhaseConfig, metrics: frozenset[str] | None, key: tuple[str | int, ...]
) -> list[FinetuneError]:
    if metrics is None:
        return []
    asked: dict[str, str] = {}
    if phase.restore_best:
        asked[watched_metric(phase.until)] = "restore_best"
    if isinstance(phase.until, OnPlateau):
        asked[phase.until.plateau] = "until"
    return [
        _never_logged(tag, metrics, (*key, field))
        for tag, field in asked.items()
        if tag not in metrics
    ]
