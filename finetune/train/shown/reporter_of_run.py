"""Build the reporter of a run, with the trackers that its config names."""

from collections.abc import Mapping
from functools import partial

from finetune.config.dumping import as_plain
from finetune.config.run import RunConfig
from finetune.importing import refuse_if_missing
from finetune.optim.groups import Group
from finetune.redaction import redacted
from finetune.runs.folder import RunFolder
from finetune.tracking import mlflow, wandb
from finetune.tracking.apart import Apart
from finetune.tracking.best_effort import BestEffort
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.mlflow import MLflow
from finetune.tracking.run_names import Identity
from finetune.tracking.tracker import Tracker, Trackers
from finetune.tracking.wandb import WandB
from finetune.train.built import Parts
from finetune.train.ranks.rank_lines import RankLines
from finetune.train.shown.reporting import Reporter, frozen_now
from finetune.train.shown.run_texts import texts_of
from finetune.train.shown.settings_shown import settings_shown
from finetune.train.shown.telling import Telling
from finetune.train.timeline import Timeline


def reporter_of_run(
    config: RunConfig,
    parts: Parts,
    folder: RunFolder,
    groups: tuple[Group, ...],
    timeline: Timeline,
    tracker: Tracker | None,
    lines: RankLines,
) -> Reporter:
    """Return the reporter of a run: trackers in its folder, the terminal, and `tracker`."""
    telling = Telling()
    settings = settings_shown(as_plain(config), parts.plan)
    trackers: list[Tracker] = [lines]
    # Of several processes only the first one writes and speaks.
    if folder.is_written:
        trackers.append(JsonLines(folder.metrics))
        if "tensorboard" in config.tracking.to:
            board = _tensorboard(folder, timeline)
            trackers.append(BestEffort("tensorboard", board, telling.message))
        trackers += _apart(config, folder, settings, telling)
        trackers += [telling, *([tracker] if tracker else [])]
    return Reporter(
        tracker=Trackers(trackers),
        telling=telling,
        timeline=timeline,
        groups=groups,
        log_every=parts.training.log_every,
        device=parts.device,
        hparams=settings,
        texts=texts_of(folder.documents, parts.plan, folder.path, config.trust),
    )


def _apart(
    config: RunConfig, folder: RunFolder, settings: Mapping[str, str | float], telling: Telling
) -> list[Tracker]:
    """Return the trackers of other programs; where they write is told.

    Raises:
        FinetuneError: one is not installed.
    """
    programs = {"mlflow": (MLflow, mlflow.line_on), "wandb": (WandB, wandb.line_on)}
    path, trackers = folder.path.resolve(), list[Tracker]()

    def identify() -> Identity:
        return Identity(folder.tracked_id(), path.name, path.parent)

    for name in config.tracking.to:
        if name != "tensorboard":
            refuse_if_missing(name, extra=name)
            kind, line_on = programs[name]
            telling.message(redacted(line_on(path.parent)))
            make = partial(kind, settings=settings)
            trackers.append(Apart(name, identify, make, telling.message))
    return trackers


def _tensorboard(folder: RunFolder, timeline: Timeline) -> Tracker:
    """Return the tracker that writes event files."""
    # TensorBoard's writer is slow to load: only a run that trains waits for it.
    from finetune.tracking.tensorboard import TensorBoard

    plan = timeline.plan
    has_phases = plan.policy is not None or len(plan.phases) > 1
    return TensorBoard(
        folder.tensorboard,
        frozen_now=partial(frozen_now, timeline) if has_phases else None,
    )
