"""Build the trainer of a run: its folder, parts and collaborators, and where it goes on."""

from dataclasses import replace
from pathlib import Path

from finetune.config.run import RunConfig
from finetune.distributed import Link
from finetune.redaction import redacted
from finetune.runs.folder import RunFolder
from finetune.runs.saved_runs import usual_folder
from finetune.tracking.tracker import Tracker
from finetune.train.before.compiling import refuse_uncompilable
from finetune.train.build import (
    build_parts,
    lints_of,
    located,
    pick_device,
    with_task_in_place,
)
from finetune.train.checkpoints.resuming import folder_to_go_on, take_up
from finetune.train.checkpoints.same_data import lines_on_going_on, record_to_go_on
from finetune.train.collaborators import wire
from finetune.train.loop import Trainer
from finetune.train.ranks.rank_settings import lines_on_sharing
from finetune.train.ranks.shard_settings import shards_of
from finetune.train.shown.start_lines import facts_of, notes_of, on_place


def build_trainer(
    config: RunConfig,
    run_dir: str | Path | None = None,
    *,
    fresh: bool = False,
    resume: str | Path | None = None,
    data_changed: bool = False,
    tracker: Tracker | None = None,
) -> Trainer:
    """Build the trainer of a run; load the newest checkpoint of its folder if there is one.

    Nothing is written into the folder before `fit`.

    Args:
        config: From `load_config`.
        run_dir: The run's folder; `runs/<name>` if left out.
        fresh: Start at step 0 whatever the folder holds; its contents are removed by `fit`.
        resume: Folder of another run, whose newest usable checkpoint is loaded instead. It is not
            changed.
        data_changed: Resume also if the data differs from that of the run.
        tracker: Receives all logs, beside `metrics.jsonl`, TensorBoard and the terminal.

    Raises:
        FinetuneError: something in the config does not fit the data, the model or the run that
            the folder holds.
    """
    folder = RunFolder.of(Path(run_dir or usual_folder(config)), config)
    link = Link.connect(config.train.hang_timeout_s)
    folder = replace(folder, is_fresh=fresh, is_written=link.ranks.is_first)
    with located(config):
        folder, notes = folder_to_go_on(folder, config, resume)
        if config.train.compile:
            refuse_uncompilable(pick_device(config.train.device, link.ranks))
        # Before the data is opened: the record decides which part each row is in.
        record, unknown = record_to_go_on(folder, accepts_changes=data_changed)
        parts = build_parts(config, record, ranks=link.ranks)
        notes += unknown
        notes += lines_on_going_on(record, parts.data.changes, parts.data.identity)
        own_notes = notes_of(config, parts, lints_of(config, parts))
        # From here on the network may be sharded: what runs it must do so on every rank.
        was = parts.place
        shards, lines = shards_of(config, parts, link)
        parts = with_task_in_place(config, parts, was)
        trainer = wire(config, parts, folder, tracker, shards)
        notes += [*lines_on_sharing(parts.training, link.ranks, parts.device), *lines, *own_notes]
        goes_on = not fresh or folder.origin is not None
        checkpoint = take_up(trainer) if goes_on else None
        place = on_place(folder.path, trainer.progress.step, parts.total_steps, checkpoint)
        for line in (f"run: {place}", *facts_of(config, parts, checkpoint)):
            trainer.reporter.telling.message(redacted(line))
        for line in notes:
            trainer.reporter.message(line)
        # Before the first process writes into the folder, all others have read what was in it.
        link.wait()
        return trainer
