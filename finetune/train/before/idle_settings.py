"""Notes on settings of optimizer and method that change nothing in this network."""

from collections.abc import Iterator

from finetune.config.freeze import Lisa
from finetune.config.optim import OptimizerConfig
from finetune.config.run import RunConfig
from finetune.freezing.lints import Lint
from finetune.freezing.phase_rates import layer_factors
from finetune.freezing.plan import Plan
from finetune.optim.groups import weight_decay_of

_LEAVE_OUT = "leave it out"


def idle_settings(config: RunConfig, plan: Plan, total: int) -> tuple[Lint, ...]:
    """Return notes on settings without effect.

    They are about `no_decay` where nothing decays or nothing of it trains, `layer_decay` that gives
    all trained parameters one rate, `freeze_below` that freezes nothing, and a period of LISA after
    which the run is over.

    Args:
        config: The run config.
        plan: The phases.
        total: Optimizer steps of the run.
    """
    found = [*_undecayed(config.optimizer, plan), *_by_depth(config.optimizer, plan)]
    if isinstance(config.freeze, Lisa) and config.freeze.period >= total:
        message = f"other blocks are never drawn: each draw lasts {config.freeze.period:,} steps"
        message += f", and the run is over after {total:,}"
        found.append(Lint(("freeze", "period"), message, "a smaller period, or a longer run"))
    return tuple(found)


def _undecayed(optimizer: OptimizerConfig, plan: Plan) -> Iterator[Lint]:
    """Yield a note on parameters without weight decay that would have none anyway."""
    if not optimizer.no_decay:
        return
    reason = None
    if not weight_decay_of(optimizer):
        reason = f"{optimizer.type} has a weight decay of 0"
    elif plan.undecayed.isdisjoint(plan.ever_trained):
        reason = "no phase trains any of these parameters"
    if reason is not None:
        yield Lint(
            ("optimizer", "no_decay"), f"optimizer.no_decay has no effect: {reason}", _LEAVE_OUT
        )


def _by_depth(optimizer: OptimizerConfig, plan: Plan) -> Iterator[Lint]:
    """Yield notes on rates by depth that are all the same, and on a limit that none is below."""
    if optimizer.layer_decay is None:
        return
    factors = layer_factors(optimizer, plan.inventory)
    limit = optimizer.freeze_below
    if limit is not None and min(factors.values()) < limit:
        return  # what it has frozen is the effect of both
    if limit is not None:
        yield Lint(
            ("optimizer", "freeze_below"),
            f"optimizer.freeze_below freezes nothing: the smallest factor by depth is "
            f"{min(factors.values()):.3g}",
            f"a limit above {min(factors.values()):.3g}, or leave it out",
        )
    trained = {factors[name] for name in plan.ever_trained}
    if optimizer.layer_decay != 1 and trained == {1.0}:
        yield Lint(
            ("optimizer", "layer_decay"),
            "optimizer.layer_decay has no effect: all that trains has the factor 1",
            _LEAVE_OUT,
        )
