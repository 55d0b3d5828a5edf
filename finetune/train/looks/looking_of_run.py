"""Make what draws pictures of a run's evaluations, from its config and its parts."""

import math
from functools import partial

from finetune.config.run import RunConfig
from finetune.runs.folder import RunFolder
from finetune.tracking.projector_files import foreign_projector_file
from finetune.train.block_figures import BlockFigures
from finetune.train.built import Parts
from finetune.train.looks.head_inputs import HeadInputs
from finetune.train.looks.looking import Looking, images_of_sample, words_of_sample
from finetune.train.looks.new_seen import new_seen_of
from finetune.train.sharing import Sharing
from finetune.train.shown.reporting import Reporter
from finetune.train.timeline import Timeline


def looking_of_run(
    config: RunConfig,
    parts: Parts,
    reporter: Reporter,
    sharing: Sharing,
    timeline: Timeline,
    *,
    blocks: BlockFigures,
    folder: RunFolder,
) -> Looking:
    """Return what draws pictures of evaluations; of several processes only the first one draws.

    Args:
        config: The config.
        parts: What the run is built from.
        reporter: Gets pictures, and lines on what is not drawn.
        sharing: The other processes of the run.
        timeline: Where the run is.
        blocks: Tells how far blocks have moved.
        folder: The run folder, which keeps the latest pictures.
    """
    data, ranks = parts.data, sharing.link.ranks
    silent = {"to": (), "report": False, "projector": False}
    settings = config.tracking if ranks.is_first else config.tracking.model_copy(update=silent)
    return Looking(
        settings=settings,
        new_seen=partial(new_seen_of, config.task, data.facts, config.data.target),
        samples=data.validation,
        table=data.raw_validation,
        blocks=blocks,
        tracker=reporter.tracker,
        keep=folder.write_pictures,
        head_inputs=_head_inputs(parts, reporter, folder, is_alone=not ranks.is_several)
        if settings.projector
        else None,
        message_once=reporter.message_once,
        steps_per_epoch=lambda: math.ceil(timeline.steps_per_epoch),
    )


def _head_inputs(
    parts: Parts, reporter: Reporter, folder: RunFolder, *, is_alone: bool
) -> HeadInputs | None:
    """Return what writes embeddings for the projector; tell why where there will be none."""
    data, samples = parts.data, parts.data.validation
    foreign = foreign_projector_file(folder.tensorboard)
    if samples is not None and is_alone and foreign is None:
        return HeadInputs(
            model=parts.model,
            samples=samples,
            names=data.facts.classes or (),
            words=partial(words_of_sample, data.raw_validation),
            images=partial(images_of_sample, samples),
            tracker=reporter.tracker,
            message_once=reporter.message_once,
        )
    if not is_alone:
        # Each process runs a part of the samples, and hands on outputs alone.
        why = "several processes evaluate"
    elif samples is None:
        why = "there are no validation samples"
    else:
        why = f"{foreign} was not made by finetune, so it stays as it is"
    reporter.message_once(f"no embeddings for the projector: {why}")
    return None
