"""This project, as `finetune train` runs it."""

from pathlib import Path

from contest.by_hand import Outcome
from contest.job import Job
from finetune import build_trainer, load_config


def ours(job: Job, folder: Path, overrides: tuple[str, ...]) -> Outcome:
    """Train by this project, with everything it does by default: proof, curves, checkpoints.

    Args:
        job: The work; what it says of split, order and rates is what the config says.
        folder: Where the run goes.
        overrides: Further changes to the config.
    """
    # The others end with their last weights: so do we, or the bits could not be compared.
    last = "train.checkpoint.best=null"
    config = load_config(job.config, overrides=[*job.overrides, last, *overrides], trust=job.trust)
    trainer = build_trainer(config, folder)
    progress = trainer.fit()
    parameters = dict(trainer.model.named_parameters())
    return Outcome(
        accuracy=progress.metrics["test/accuracy"],
        weights={name: parameters[name].detach() for name in job.start},
    )
