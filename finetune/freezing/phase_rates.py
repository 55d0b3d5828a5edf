"""Peak rates of parameters in a phase: by name or glob, and by depth."""

from collections.abc import Mapping, Sequence, Set as AbstractSet

from finetune.config.freeze import PhaseConfig, RateConfig
from finetune.config.optim import OptimizerConfig
from finetune.errors import Faults, Key, SelectorError
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo, num_blocks
from finetune.optim.rates import PeakRate


def phase_rates(
    phase: PhaseConfig,
    optimizer: OptimizerConfig,
    inventory: Sequence[ParamInfo],
    frozen: AbstractSet[str],
    factors: Mapping[str, float],
    *,
    key: Key,
) -> dict[str, PeakRate]:
    """Return the rate of every parameter that a phase trains, before the schedule.

    Args:
        phase: Its `lr` holds rates by name or glob; a later entry overrules an earlier one. A rate
            is scaled by depth only if it asks for `layer_decay`.
        optimizer: Its `lr`, scaled by depth, is the rate of all other parameters.
        inventory: The parameters.
        frozen: Names that the phase freezes.
        factors: Factor of each name by its depth.
        key: Config key of `lr`.

    Raises:
        SelectorError: an entry takes nothing, or nothing that the phase trains. All such entries
            are reported at once.
    """
    usual = RateConfig(lr=optimizer.lr, layer_decay=True)
    wished = {param.name: usual for param in inventory if param.name not in frozen}
    faults = Faults()
    for pattern, rate in phase.lr.items():
        with faults.noted():
            taken = select([pattern], inventory, key=(*key, pattern)) - frozen
            # Such a rate would take no effect, so it is an error.
            if not taken:
                message = f"a rate for {pattern!r}, which phase {phase.name!r} holds frozen"
                raise SelectorError(message, key=(*key, pattern))
            wished |= dict.fromkeys(taken, rate)
    faults.raise_if_any()
    return {name: _scaled(rate, factors[name]) for name, rate in wished.items()}


def layer_factors(optimizer: OptimizerConfig, inventory: Sequence[ParamInfo]) -> dict[str, float]:
    """Return the factor on the rate of each parameter by its depth.

        factor = layer_decay ** (top - id)

    with L blocks, id = 0 for what comes before the first block (embeddings, stem), i + 1 for
    block i, and L + 1 for what comes after the last one (final norm, head). `top` is the highest
    id there is, L + 1 where anything comes after the blocks: its factor is 1.
    Sources: Clark et al., "ELECTRA", arXiv 2003.10555, and Bao et al., "BEiT", arXiv 2106.08254;
    their code counts one step more between the last block and the head in ELECTRA.
    """
    if optimizer.layer_decay is None:
        return {param.name: 1.0 for param in inventory}
    places = layer_ids(inventory)
    return {
        param.name: optimizer.layer_decay ** (max(places) - place)
        for param, place in zip(inventory, places, strict=True)
    }


def layer_ids(inventory: Sequence[ParamInfo]) -> list[int]:
    """Return for each parameter: 0 before the blocks, i + 1 in block i, L + 1 behind them."""
    blocks = num_blocks(inventory)
    inside = [place for place, param in enumerate(inventory) if param.depth is not None]
    # A parameter outside the blocks is before or behind them by its place in the model's order.
    first = inside[0] if inside else 0
    return [
        param.depth + 1 if param.depth is not None else (0 if place < first else blocks + 1)
        for place, param in enumerate(inventory)
    ]


def _scaled(rate: RateConfig, factor: float) -> PeakRate:
    """Return the peak rate of a parameter with this factor."""
    lr = rate.lr * factor if rate.layer_decay else rate.lr
    return PeakRate(lr, rate.schedule, rate.over)
