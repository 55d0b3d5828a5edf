"""What evaluations mean for phases and run, and which rules about them can never come true."""

from collections.abc import Mapping, Sequence

from finetune.config.freeze import AtFraction, OnPlateau, PhaseConfig, Trigger
from finetune.config.train import CheckpointConfig, TrainConfig
from finetune.errors import FinetuneError, Key
from finetune.freezing.plan import Plan
from finetune.runs.progress import Progress, improves
from finetune.tasks.metrics import Directions
from finetune.train.course import latest_end
from finetune.train.epochs import Epochs


def judge(plan: Plan, progress: Progress, settings: TrainConfig, directions: Directions) -> bool:
    """Record in `progress` what the latest evaluation means; return whether to keep its weights.

    A rule does not count an evaluation in which its metric was not defined.

    Args:
        plan: The phases, some of which watch a metric.
        progress: Holds the figures of the evaluation. Changed.
        settings: The other rules that watch one.
        directions: Which way each metric improves. Every rule's metric is known to it.
    """
    _judge_early_stopping(progress, settings, directions)
    _judge_plateau(plan, progress, directions)
    is_best_of_phase = _judge_phase_best(plan, progress, directions)
    return _judge_best(progress, settings.checkpoint, directions) or is_best_of_phase


def _judge_best(progress: Progress, rule: CheckpointConfig, directions: Directions) -> bool:
    """Tell whether these are among the best weights of the run, of which some are kept."""
    value = progress.metrics.get(rule.best or "")
    if rule.best is None or value is None:
        return False
    falls = directions.falls(rule.best)
    if improves(value, progress.best, falls=falls):
        progress.best, progress.best_step = value, progress.step
    return progress.rank(value, rule.keep_best or 1, falls=falls)


def _judge_early_stopping(
    progress: Progress, settings: TrainConfig, directions: Directions
) -> None:
    """Count evaluations without improvement, and end the run when there were too many."""
    rule = settings.early_stopping
    value = None if rule is None else progress.metrics.get(rule.metric)
    if rule is None or value is None:
        return
    falls = directions.falls(rule.metric)
    if improves(value, progress.watched, falls=falls, min_delta=rule.min_delta):
        progress.watched, progress.stale = value, 0
    else:
        progress.stale += 1
        progress.stopped_early = progress.stale >= rule.patience


def _judge_plateau(plan: Plan, progress: Progress, directions: Directions) -> None:
    """Record whether the metric that the present phase watches has improved."""
    until = plan.phases[progress.phase].until
    if not isinstance(until, OnPlateau) or (value := progress.metrics.get(until.plateau)) is None:
        return
    falls = directions.falls(until.plateau)
    if improves(value, progress.plateau_best, falls=falls, min_delta=until.min_delta):
        progress.plateau_best, progress.plateau_stale = value, 0
    else:
        progress.plateau_stale += 1
        progress.plateau_reached = progress.plateau_stale >= until.patience


def _judge_phase_best(plan: Plan, progress: Progress, directions: Directions) -> bool:
    """Record the best evaluation of a phase that goes back to it; say if it is a new one."""
    phase = plan.phases[progress.phase]
    metric = watched_metric(phase.until)
    value = progress.metrics.get(metric)
    if not phase.restores_best or value is None:
        return False
    if not improves(value, progress.phase_best, falls=directions.falls(metric)):
        return False
    progress.phase_best, progress.phase_best_step = value, progress.step
    return True


def watches(plan: Plan, progress: Progress, settings: TrainConfig, tag: str) -> list[str]:
    """Return the rules that watch a metric at present, by their keys."""
    phase, stopping = plan.phases[progress.phase], settings.early_stopping
    by_rule = {
        "train.checkpoint.best": settings.checkpoint.best,
        "train.early_stopping": None if stopping is None else stopping.metric,
        "until": phase.until.plateau if isinstance(phase.until, OnPlateau) else None,
        "restore_best": watched_metric(phase.until) if phase.restores_best else None,
    }
    return [rule for rule, watched in by_rule.items() if watched == tag]


def watched_metric(until: Trigger | None) -> str:
    """Return the metric by which a phase finds its best weights: of its plateau, or the loss."""
    return until.plateau if isinstance(until, OnPlateau) else "validation/loss"


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
        directions: What evaluation will write, and which way each figure improves.
    """
    found: list[FinetuneError] = []
    began, is_certain = 0, True
    for number, phase in enumerate(phases):
        key = ("freeze", "phases", number)
        if is_certain and began >= total:
            message = f"phase {phase.name!r} never begins: the run is over after {total} steps"
            found.append(FinetuneError(message, hint="lengthen train.epochs", key=key))
            break
        found += _wrong_metrics(phase, directions, key)
        end = latest_end(phase.until, began, Epochs((steps_per_epoch,)), total)
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


def with_main_metric(settings: TrainConfig, directions: Directions) -> TrainConfig:
    """Return the settings with the metric that `checkpoint: {best: auto}` stands for.

    Args:
        settings: `train:` of the config.
        directions: What evaluation will write, and which way each figure improves.
    """
    if settings.checkpoint.best != "auto":
        return settings
    checkpoint = settings.checkpoint.model_copy(update={"best": directions.main()})
    return settings.model_copy(update={"checkpoint": checkpoint})


def wrong_rules(settings: TrainConfig, directions: Directions) -> list[FinetuneError]:
    """Return which rules of `train:` cannot watch their metric: not written, or no direction.

    Args:
        settings: Early stopping, and the choice of the best checkpoint.
        directions: What evaluation will write, and which way each figure improves.
    """
    asked: dict[Key, str] = {}
    if settings.early_stopping is not None:
        asked["train", "early_stopping", "metric"] = settings.early_stopping.metric
    checkpoint = settings.checkpoint
    if checkpoint.best is not None:
        asked["train", "checkpoint", "best"] = checkpoint.best
    found = _faults(asked, directions)
    if checkpoint.best is None and checkpoint.keep_best is not None:
        message = f"keeps {checkpoint.keep_best} best of none: there are no validation samples"
        key = ("train", "checkpoint", "keep_best")
        found.append(FinetuneError(message, hint="leave it out, or set some aside", key=key))
    return found


def _wrong_metrics(phase: PhaseConfig, directions: Directions, key: Key) -> list[FinetuneError]:
    asked: dict[Key, str] = {}
    if isinstance(phase.until, OnPlateau):
        asked[*key, "until"] = phase.until.plateau
    elif phase.restore_best:
        asked[*key, "restore_best"] = watched_metric(phase.until)
    return _faults(asked, directions)


def _faults(asked: Mapping[Key, str], directions: Directions) -> list[FinetuneError]:
    """Return what is wrong with the metrics that rules ask for, each told once."""
    keys = {tag: key for key, tag in reversed(list(asked.items()))}
    found = [directions.fault(tag, key) for tag, key in keys.items()]
    return [fault for fault in found if fault is not None]
