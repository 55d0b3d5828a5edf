"""Collect all notes on a run before it begins: `plan` and `train` show the same list."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from finetune.config.run import RunConfig
from finetune.data.batches import Samples
from finetune.data.opening import DataFacts
from finetune.freezing.lints import Lint, find_lints
from finetune.freezing.origins import frozen_by_chance
from finetune.freezing.plan import Plan
from finetune.lints.given_answers import given_answers
from finetune.lints.network_lints import lints_of_network
from finetune.lints.norm_modes import idle_holds, norms_of_several, statistics_left_out
from finetune.lints.odd_shares import odd_shares
from finetune.lints.other_meaning import other_meaning
from finetune.lints.small_batches import lone_samples
from finetune.lints.unlike_parts import unlike_parts
from finetune.lints.unscaled_numbers import unscaled_numbers
from finetune.models.declared import Network
from finetune.redaction import redacted
from finetune.tasks.task import Task
from finetune.train.before.idle_settings import idle_settings
from finetune.train.before.without_effect import without_effect


def all_lints(
    config: RunConfig,
    model: Network,
    plan: Plan,
    task: Task,
    parts: Mapping[str, Samples],
    facts: DataFacts,
    *,
    num_samples: int,
    device: torch.device,
    total: int,
) -> dict[str, tuple[Lint, ...]]:
    """Return the notes by subject: `freeze`, `run`, `weights`, `data`, `network`.

    Args:
        config: The run config.
        model: The network. It is run on a few samples and left as it was.
        plan: The phases of the run.
        task: The task of the run.
        parts: The samples by part, or some of them.
        facts: What the data says about itself.
        num_samples: Number of samples that the run trains on.
        device: Where the network is.
        total: Optimizer steps of the run.
    """
    samples = parts["train"]
    found = {
        "freeze": find_lints(config.freeze, plan),
        "run": (
            *lone_samples(model, plan, config.train, num_samples),
            *idle_holds(model, plan),
            *statistics_left_out(model, plan, config.train),
            *norms_of_several(model, plan, config.train),
            *without_effect(
                config,
                plan,
                num_samples=num_samples,
                total=total,
                validates="validation" in parts,
            ),
            *idle_settings(config, plan, total),
        ),
        "weights": (
            *frozen_by_chance(model.weights_reports, plan),
            *other_meaning(model, facts),
        ),
        "data": (
            *given_answers(config),
            *unscaled_numbers(config, samples),
            *odd_shares(config, samples),
            *unlike_parts(config, parts),
        ),
        "network": lints_of_network(config, model, task, samples, device),
    }
    return {about: tuple(map(_without_secrets, lints)) for about, lints in found.items()}


def _without_secrets(lint: Lint) -> Lint:
    """Return a note with secrets redacted from its message and hint."""
    # A note may quote the config, or what the user's own code raised: both may hold a value of
    # `${env:NAME}`.
    return replace(lint, message=redacted(lint.message), hint=redacted(lint.hint))
