"""Rules that watch metrics: make those of a phase, apply them, find those that cannot work."""

from collections.abc import Mapping
from typing import NamedTuple

from finetune.config.optim import PlateauSchedule, Schedule
from finetune.config.train import TrainConfig
from finetune.config.triggers import OnPlateau, Trigger
from finetune.errors import FinetuneError, Key
from finetune.freezing.plan import Phase
from finetune.runs.progress import Progress
from finetune.runs.watch import Rule, Watch
from finetune.tasks.directions import Directions


class Rules(NamedTuple):
    """The rules that watch a metric in one phase; None where the config has none.

    `Progress` has a watch of the same name for each.
    """

    best: Rule | None
    stopping: Rule | None
    plateau: Rule | None
    phase_best: Rule | None
    rate: Rule | None = None

    @classmethod
    def of(
        cls, phase: Phase, settings: TrainConfig, schedule: Schedule, directions: Directions
    ) -> "Rules":
        """Return the rules of a phase. Every metric that they name is known to `directions`."""
        until = phase.until if isinstance(phase.until, OnPlateau) else None
        best, stopping = settings.checkpoint.best, settings.early_stopping
        return cls(
            best=_rule("train.checkpoint.best", best, directions),
            stopping=None
            if stopping is None
            else _rule(
                "train.early_stopping",
                stopping.metric,
                directions,
                min_delta=stopping.min_delta,
                patience=stopping.patience,
            ),
            plateau=None
            if until is None
            else _rule(
                "until",
                until.plateau,
                directions,
                min_delta=until.min_delta,
                patience=until.patience,
            ),
            phase_best=_rule(
                "restore_best",
                watched_metric(phase.until) if phase.restores_best else None,
                directions,
            ),
            rate=None
            if not isinstance(schedule, PlateauSchedule)
            else _rule(
                "schedule",
                schedule.metric,
                directions,
                min_delta=schedule.min_delta,
                patience=schedule.patience,
            ),
        )

    def watching(self, tag: str) -> list[str]:
        """Return the config keys of the rules that watch a metric."""
        return [rule.key for rule in self if rule is not None and rule.metric == tag]


def judge(rules: Rules, progress: Progress, *, num_kept: int) -> bool:
    """Apply the rules to the latest evaluation; return whether to keep its weights.

    A rule does not count an evaluation in which its metric was not defined.

    Args:
        rules: Rules of the present phase.
        progress: Holds the figures of the evaluation; its watches and ranking are updated.
        num_kept: Number of best checkpoints to keep.
    """
    _see(progress.stopping, rules.stopping, progress)
    _see(progress.plateau, rules.plateau, progress)
    is_best_of_phase = _see(progress.phase_best, rules.phase_best, progress)
    _see(progress.best, rules.best, progress)
    _see(progress.rate, rules.rate, progress)
    # The watch begins anew with the lower rate, as torch's ReduceLROnPlateau does.
    if progress.rate.is_over:
        progress.lower_rate()
    # Ranking comes first: it changes the progress, so `or` must not skip it.
    return _is_among_best(rules.best, progress, num_kept) or is_best_of_phase


def _see(watch: Watch, rule: Rule | None, progress: Progress) -> bool:
    """Show a watch the latest figure of its metric; return whether it is a new best."""
    value = None if rule is None else progress.metrics.get(rule.metric)
    if rule is None or value is None:
        return False
    return watch.see(value, progress.step, rule)


def _is_among_best(rule: Rule | None, progress: Progress, num_kept: int) -> bool:
    """Add these weights to the ranking; tell whether they are among the best of the run."""
    value = None if rule is None else progress.metrics.get(rule.metric)
    if rule is None or value is None:
        return False
    return progress.rank(value, num_kept, falls=rule.falls)


def _rule(
    key: str,
    metric: str | None,
    directions: Directions,
    *,
    min_delta: float = 0.0,
    patience: int | None = None,
) -> Rule | None:
    """Return the rule that watches a metric; None without a metric."""
    if metric is None:
        return None
    return Rule(key, metric, directions.falls(metric), min_delta, patience)


def watched_metric(until: Trigger | None) -> str:
    """Return the metric that chooses a phase's best weights: its plateau's, or the loss."""
    return until.plateau if isinstance(until, OnPlateau) else "validation/loss"


def with_main_metric(settings: TrainConfig, directions: Directions) -> TrainConfig:
    """Return the settings with the metric that `checkpoint: {best: auto}` stands for.

    Args:
        settings: `train:` of the config.
        directions: The figures of an evaluation, and which way each improves.
    """
    if settings.checkpoint.best != "auto":
        return settings
    checkpoint = settings.checkpoint.model_copy(update={"best": directions.main()})
    return settings.model_copy(update={"checkpoint": checkpoint})


def wrong_rules(
    settings: TrainConfig, schedule: Schedule, directions: Directions
) -> list[FinetuneError]:
    """Return the faults of rules of the run: their metric is never logged, or has no direction.

    Args:
        settings: Early stopping, and the choice of the best checkpoint.
        schedule: The run's; it may watch a metric.
        directions: The figures of an evaluation, and which way each improves.
    """
    asked: dict[Key, str] = {}
    if settings.early_stopping is not None:
        asked["train", "early_stopping", "metric"] = settings.early_stopping.metric
    checkpoint = settings.checkpoint
    if checkpoint.best is not None:
        asked["train", "checkpoint", "best"] = checkpoint.best
    if isinstance(schedule, PlateauSchedule):
        asked["schedule", "metric"] = schedule.metric
    found = faults_of(asked, directions)
    if checkpoint.best is None and checkpoint.keep_best is not None:
        message = f"keeps {checkpoint.keep_best} best of none: there are no validation samples"
        key = ("train", "checkpoint", "keep_best")
        found.append(FinetuneError(message, hint="leave it out, or set some aside", key=key))
    return found


def faults_of(asked: Mapping[Key, str], directions: Directions) -> list[FinetuneError]:
    """Return what is wrong with the metrics that rules watch, one error per metric."""
    # Reversed, so that the error names the first of several rules with one metric.
    keys = {tag: key for key, tag in reversed(list(asked.items()))}
    found = [directions.fault(tag, key) for tag, key in keys.items()]
    return [fault for fault in found if fault is not None]
