"""Resume a run: which changes of its config are allowed, and which checkpoint is loaded."""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from finetune import disk
from finetune.config.dumping import as_plain
from finetune.config.flat_keys import flattened
from finetune.config.loader import load_saved
from finetune.config.places import absolute_places
from finetune.config.run import RunConfig
from finetune.errors import CheckpointError
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints
from finetune.runs.lock import refuse_if_held
from finetune.runs.saved_runs import saved_config, saved_folder, usual_folder
from finetune.train.loop import Trainer

_HARMLESS = {
    "data.workers",
    "data.memory_gb",
    "data.on_error",
    "inference",
    "cache.use",
    "cache.disk_gb",
    "train.epochs",
    "train.steps",
    "train.log_every",
    "train.hang_timeout_s",
    "train.nan_limit",
    "train.parallel",
    "train.checkpoint.background",
    "train.checkpoint.keep_best",
    "train.checkpoint.keep_last",
    "train.checkpoint.path",
    "tracking",
}
"""Keys that may change when a run is resumed: none of them alters a step that is done."""


def folder_to_go_on(
    folder: RunFolder, config: RunConfig, resume: str | Path | None
) -> tuple[RunFolder, list[str]]:
    """Return the folder with the run to continue from, and a line for each change of its config.

    Raises:
        FinetuneError: the folder is in use or foreign, or its run cannot go on with this config.
    """
    if resume is not None:
        folder = replace(folder, origin=saved_folder(Path(resume)))
    # These checks come before the work of building. The lock itself is taken by `fit`, which is the
    # first to write.
    # Of several processes the first one looks: it may hold the folder when the others look.
    if folder.is_written:
        refuse_if_held(folder.path)
    folder.refuse_foreign()
    folder = _without_known_origin(folder)
    notes = _compare_with_saved(folder, config)
    if resume is not None and folder.origin is None:
        notes.append(f"goes on with the run that began from {resume} already")
    return folder, notes


def _without_known_origin(folder: RunFolder) -> RunFolder:
    """Return the folder, without its origin if the run in it has begun from that origin.

    So a command with `resume` that was killed, or is done, can be given again.
    """
    if folder.origin is None or folder.is_fresh or not disk.is_file(folder.path / "config.yaml"):
        return folder
    has_begun = _holds_run(folder) and folder.began_from(folder.origin.path)
    return replace(folder, origin=None) if has_begun else folder


def _compare_with_saved(folder: RunFolder, config: RunConfig) -> list[str]:
    """Compare a config with that of the run to resume; return a line for each change.

    Raises:
        CheckpointError: a change would alter steps that are done, or the folder holds no run.
    """
    if folder.is_fresh and folder.origin is None:
        return []
    has_run = _holds_run(folder)
    if folder.origin is not None:
        if folder.is_fresh and folder.origin.path.resolve() == folder.path.resolve():
            raise CheckpointError(
                "--fresh would remove the run that --resume goes on from",
                where=str(folder.path),
                hint="choose another --run",
            )
        if has_run and not folder.is_fresh and not folder.began_from(folder.origin.path):
            raise CheckpointError(
                "holds a run already, and cannot go on with another one",
                where=str(folder.path),
                hint="leave out --resume to go on with it, or choose another --run",
            )
        return _changes(folder.origin.path, config)
    if not disk.is_file(folder.path / "config.yaml"):
        return []
    if has_run:
        return _changes(folder.path, config)
    _refuse_left_checkpoints(folder)
    return []


def _refuse_left_checkpoints(folder: RunFolder) -> None:
    """Raise if the checkpoints of a run lie elsewhere than the config now says.

    Raises:
        CheckpointError: they do. The run would start at step 0 and keep both.
    """
    before = saved_folder(folder.path).checkpoints
    is_moved = os.path.realpath(before) != os.path.realpath(folder.checkpoints)
    if is_moved and Checkpoints(before, keep_last=1).all():
        raise CheckpointError(
            f"its checkpoints lie in {before}, and train.checkpoint.path names another place",
            where=str(folder.path),
            hint=f"move them to {folder.checkpoints}, or begin anew with --fresh",
        )


def _holds_run(folder: RunFolder) -> bool:
    """Tell whether a folder has checkpoints; without them a run begins at step 0."""
    return bool(Checkpoints(folder.checkpoints, keep_last=1).all())


def _changes(run: Path, config: RunConfig) -> list[str]:
    """Return a line per change of a run's config; raise if one would alter steps that are done."""
    before = load_saved(saved_config(run))
    old, new = flattened(as_plain(before)), flattened(as_plain(config))
    # a path is the same if it reads the same, or if it leads to the same file from here
    there, now = old | absolute_places(before.places), new | absolute_places(config.places)
    # These two say where a run lies, not what it computes.
    keys = (old.keys() | new.keys()) - {"name", "folder"}
    changed = sorted(
        key for key in keys if old.get(key) != new.get(key) and there.get(key) != now.get(key)
    )
    lines = {key: f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed}
    if refused := [line for key, line in lines.items() if not _is_harmless(key)]:
        raise CheckpointError(
            "holds a run of another config:",
            details=refused,
            where=str(run),
            hint="--fresh begins anew in this folder, --run DIR in another one",
        )
    return [f"goes on with a changed config: {line}" for line in lines.values()]


def can_go_on(
    config: RunConfig, run_dir: str | Path | None, *, fresh: bool, resume: Path | None
) -> bool:
    """Tell whether a command would resume from a checkpoint; its arguments are not checked."""
    folder = RunFolder.of(Path(run_dir or usual_folder(config)), config)
    return resume is not None or (not fresh and _holds_run(folder))


def take_up(trainer: Trainer) -> Path | None:
    """Load the newest checkpoint that can be used; return its path, or None if there is none.

    Raises:
        CheckpointError: another run was named to resume from, and it has none.
    """
    origin = trainer.folder.origin
    checkpoints = trainer.saver.checkpoints
    if origin is not None:
        # They lie in the other run's folder, and must fit this run's network.
        checkpoints = replace(checkpoints, folder=origin.checkpoints)
    if not trainer.saver.load_newest(checkpoints):
        if origin is not None:
            raise CheckpointError("no whole checkpoint", where=str(checkpoints.folder))
        return None
    for line in (*checkpoints.forget_lost(trainer.progress), *_other_rates(trainer)):
        trainer.reporter.message(line)
    return checkpoints.path_of(trainer.progress.step)


def _other_rates(trainer: Trainer) -> list[str]:
    """Return a line if a new length of the run moves the rate that its next step would have had."""
    timeline = trainer.timeline
    before = load_saved(saved_config((trainer.folder.origin or trainer.folder).path)).train
    length = {"epochs": before.epochs, "steps": before.steps}
    settings = timeline.settings.model_copy(update=length)
    if timeline.run_is_over or settings == timeline.settings:
        return []
    # On a copy: a policy may note in the progress that it has begun.
    then = replace(timeline, settings=settings, progress=deepcopy(timeline.progress))
    old, new = max(then.rates_now()), max(timeline.rates_now())
    # Computed alike: where the length does not count, they have the same bits.
    if old == new:
        return []
    return [
        f"the schedule is that of a run of {timeline.total_steps} steps now: the next step is at "
        f"the rate {new:.4g}; in the run of {then.total_steps} steps that it was, at {old:.4g}"
    ]


def _is_harmless(key: str) -> bool:
    """Tell whether a key, or one above it, may change when a run is resumed."""
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in _HARMLESS)
