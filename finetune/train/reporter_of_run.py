"""Build the reporter of a run, with the trackers that its config names."""

from functools import partial

from finetune.config.loader import as_plain
from finetune.config.run import RunConfig
from finetune.optim.groups import Group
from finetune.runs.folder import RunFolder
from finetune.tracking.json_lines import JsonLines
from finetune.tracking.tracker import Tracker, Trackers
from finetune.train.built import Parts
from finetune.train.rank_lines import RankLines
from finetune.train.reporting import Reporter, frozen_now
from finetune.train.run_texts import texts_of
from finetune.train.settings_shown import settings_shown
from finetune.train.telling import Telling
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
    trackers: list[Tracker] = [lines]
    # Of several processes only the first one writes and speaks.
    if folder.is_written:
        trackers.append(JsonLines(folder.metrics))
        if "tensorboard" in config.tracking.to:
            trackers.append(_tensorboard(folder, timeline))
        trackers += [telling, *([tracker] if tracker else [])]
    return Reporter(
        tracker=Trackers(trackers),
        telling=telling,
        timeline=timeline,
        groups=groups,
        log_every=parts.training.log_every,
        device=parts.device,
        hparams=settings_shown(as_plain(config), parts.plan),
        texts=texts_of(folder.documents, parts.plan, folder.path, config.trust),
    )


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
