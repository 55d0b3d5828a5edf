"""Tell the activation cache what it must know of a run."""

from collections.abc import Callable

import torch

from finetune.activations.estimate import Use
from finetune.config.run import RunConfig
from finetune.importing import code_of
from finetune.train.build import evaluation_batch_size
from finetune.train.built import Parts
from finetune.train.precision import Precision


def cache_use(
    config: RunConfig, parts: Parts, tell: Callable[[str], None] = lambda text: None
) -> Use:
    """Return what the activation cache must know of a run: splits, batch sizes, precision, code.

    Args:
        config: The run config.
        parts: Data and network of the run.
        tell: Receives one line per decision of the cache.
    """
    data, settings = parts.data, config.train
    # Stored rows are exact only for batch shapes that were tried, so the cache gets the sizes of
    # all passes.
    sizes = dict.fromkeys(("train", "validation", "test"), evaluation_batch_size(config))
    sizes["train"] = parts.training.pass_size
    return Use(
        splits=data.parts,
        sizes=data.facts.sizes,
        num_drawn=data.order.num_drawn,
        num_draws=data.order.count,
        batch_sizes=sizes,
        autocast=Precision(settings.precision, parts.device).autocast,
        facts=cache_facts(config, parts.device),
        tell=tell,
        is_compiled=settings.compile,
        not_cached=_not_cached(parts),
        store_dtype=config.cache.store_dtype,
        # Code of the user may read any column of a batch.
        reads_inputs=config.task.has_own_loss,
    )


def cache_facts(config: RunConfig, device: torch.device) -> dict[str, str]:
    """Return settings that stored rows depend on; part of their key."""
    return {
        "precision": config.train.precision,
        "device": str(device),
        "compiled": str(config.train.compile),
        # Rows may depend on any code of the user: after a change of it another store is used.
        **({"code": code_of(config.trust)} if config.trust else {}),
    }


def _not_cached(parts: Parts) -> str | None:
    """Return why nothing of a run is cached, whatever is frozen; None if it may be."""
    policy = parts.plan.policy
    return parts.mixing.not_cached or (None if policy is None else policy.not_cached)
