"""Resolve every phase to parameter names, rates and modes, with checks, before step 0."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune.config.freeze import (
    Freeze,
    FreezeConfig,
    ModulesConfig,
    PhaseConfig,
    PolicyMethod,
)
from finetune.config.optim import OptimizerConfig
from finetune.config.selectors import Selector
from finetune.config.triggers import Trigger
from finetune.errors import Faults, Key, SelectorError
from finetune.freezing.methods import written_out
from finetune.freezing.phase_rates import layer_factors, phase_rates
from finetune.freezing.policies.choose import make_policy
from finetune.freezing.policies.policy import Mask, Policy
from finetune.freezing.rows import fits, split_inventory, whole_when_all_frozen
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo
from finetune.optim.rates import PeakRate

WHOLE_RUN = FreezeConfig.model_construct(
    phases=(PhaseConfig.model_construct(name="all", freeze=(), train=None),)
)
"""The phases without `freeze` in the config: one, in which everything trains."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training with one mask."""

    name: str
    frozen: frozenset[str]
    """Names of the frozen parameters and row slices; all others are trained."""
    rates: dict[str, PeakRate]
    """Rate of every trained name."""
    until: Trigger | None
    """What ends the phase; None for the end of the run."""
    modules: ModulesConfig
    """Mode of wholly frozen modules."""
    restarts_schedule: bool
    """Whether the schedule spans the phase, not the run."""
    optimizer_state: Literal["reset", "keep", "fresh"]
    """Which optimizer state is reset when the phase begins: of thawed names, none, or all."""
    restores_best: bool
    """Whether the weights of the phase's best evaluation are restored at its end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All phases of a run, over the parameters of one model."""

    phases: tuple[Phase, ...]
    """The phases known before step 0. With a policy there is one, which trains all that the policy
    may ever train; each phase of the run freezes more."""
    inventory: tuple[ParamInfo, ...]
    """The parameters; one that is selected by rows is replaced by its row slices."""
    undecayed: frozenset[str]
    """Names without weight decay."""
    verify: str
    """When frozen tensors are proven: `phase`, `checkpoint`, `end` or `off`."""
    policy: Policy | None = None
    """Makes the phases during training; None if all are known before step 0."""

    @property
    def ever_trained(self) -> tuple[str, ...]:
        """Names trained in some phase, in the model's order. Optimizer and delta hold these."""
        return tuple(
            param.name
            for param in self.inventory
            if any(param.name not in phase.frozen for phase in self.phases)
        )

    @property
    def fates(self) -> dict[str, object]:
        """For each name that ever trains, its rates in all phases and the block of a policy.

        Names with equal values are always frozen or trained together, at one rate.
        """
        block = {name: depth for depth, own in self._blocks.items() for name in own}
        return {
            name: (block.get(name), *(phase.rates.get(name) for phase in self.phases))
            for name in self.ever_trained
        }

    @property
    def drawn(self) -> frozenset[str]:
        """Names that a policy freezes and thaws during training."""
        return frozenset[str]().union(*self._blocks.values())

    @property
    def narrowest(self) -> tuple[Phase, ...]:
        """The known phases; that of a policy with all blocks frozen."""
        if self.policy is None:
            return self.phases
        return (self.made(0, ()),)

    @property
    def examples(self) -> tuple[Phase, ...]:
        """The known phases; that of a policy with its first mask."""
        if self.policy is None:
            return self.phases
        return (self.made(0, self.policy.first({})),)

    def made(self, number: int, mask: Mask) -> Phase:
        """Return a phase that the policy makes.

        Args:
            number: Number of the phase, from 0.
            mask: The blocks that train.
        """
        assert self.policy is not None
        (widest,) = self.phases
        shut = [own for depth, own in self._blocks.items() if depth not in mask]
        frozen = widest.frozen.union(*shut)
        return replace(
            widest,
            name=f"{self.policy.name} {number}",
            frozen=whole_when_all_frozen(self.inventory, frozen),
            # Only trained names have a rate: by that a group counts as trained.
            rates={name: rate for name, rate in widest.rates.items() if name not in frozen},
        )

    @property
    def _blocks(self) -> Mapping[int, frozenset[str]]:
        """The names that a policy may freeze, by depth; empty without a policy."""
        return {} if self.policy is None else self.policy.blocks

    def trained_from(self, phase: int) -> frozenset[str]:
        """Return the names trained in `phase` or a later one."""
        return frozenset(
            param.name
            for param in self.inventory
            if any(param.name not in later.frozen for later in self.phases[phase:])
        )


def make_plan(
    freeze: Freeze | None,
    optimizer: OptimizerConfig,
    inventory: Sequence[ParamInfo],
    *,
    seed: int = 0,
) -> Plan:
    """Resolve `freeze` of a config over a model's parameters: its phases, or those of its method.

    Always frozen are parameters that are not floating-point, as they cannot have a gradient, and
    those whose factor by depth is below `optimizer.freeze_below`.

    Args:
        freeze: From the config.
        optimizer: Rate of parameters for which a phase gives none, and weight decay.
        inventory: The parameters.
        seed: Seed of the run, for a method that draws.

    Raises:
        FinetuneError: a selector takes nothing, wishes conflict on a tied tensor, a phase trains
            nothing, or a rate is given for a frozen parameter. All faults are reported at once.
    """
    plan = _listed(written_out(freeze, optimizer, inventory), optimizer, inventory)
    if not isinstance(freeze, PolicyMethod):
        return plan
    # Over the inventory of the plan, in which parameters are cut into slices.
    policy = make_policy(freeze, plan.inventory, plan.phases[0].frozen, seed=seed)
    return replace(plan, policy=policy)


def _listed(
    config: FreezeConfig | None, optimizer: OptimizerConfig, inventory: Sequence[ParamInfo]
) -> Plan:
    """Resolve written phases; a policy is added by the caller."""
    config = config or WHOLE_RUN
    # A rows selector that does not fit is reported below by `select`, which knows its key.
    cuts = [one for one in _all_selectors(config, optimizer) if fits(one, inventory)]
    # Cut once, for the selectors of all phases: the optimizer holds the slices for the whole run.
    rows = split_inventory(inventory, cuts, key=("freeze",))
    factors = layer_factors(optimizer, rows)
    limit = optimizer.freeze_below or 0.0
    never = frozenset(p.name for p in rows if not p.floating or factors[p.name] < limit)
    phases: list[Phase] = []
    undecayed: frozenset[str] = frozenset()
    faults = Faults()
    for number, phase in enumerate(config.phases):
        key = ("freeze", "phases", number)
        with faults.noted():
            phases.append(_resolve(phase, config, optimizer, rows, never, factors, key=key))
    with faults.noted():
        undecayed = select(optimizer.no_decay, rows, key=("optimizer", "no_decay"))
    faults.raise_if_any()
    return Plan(tuple(phases), rows, undecayed, config.verify)


def _resolve(
    phase: PhaseConfig,
    config: FreezeConfig,
    optimizer: OptimizerConfig,
    inventory: Sequence[ParamInfo],
    never: frozenset[str],
    factors: dict[str, float],
    *,
    key: Key,
) -> Phase:
    """Resolve one phase; report the faults of its selectors and of its rates together."""
    frozen, rates = never, dict[str, PeakRate]()
    faults = Faults()
    with faults.noted():
        frozen = _frozen_in(phase, inventory, never, key=key)
    with faults.noted():
        rates = phase_rates(phase, optimizer, inventory, frozen, factors, key=(*key, "lr"))
    faults.raise_if_any()
    return Phase(
        name=phase.name,
        frozen=whole_when_all_frozen(inventory, frozen),
        rates=rates,
        until=phase.until,
        modules=phase.modules or config.modules,
        restarts_schedule=phase.schedule == "per_phase",
        optimizer_state=phase.optimizer_state,
        restores_best=phase.restore_best,
    )


def _frozen_in(
    phase: PhaseConfig, inventory: Sequence[ParamInfo], never: frozenset[str], *, key: Key
) -> frozenset[str]:
    """Return the names that a phase freezes; raise if nothing is left to train."""
    every = frozenset(param.name for param in inventory)
    if phase.train is not None:
        frozen = (every - select(phase.train, inventory, key=(*key, "train"))) | never
    else:
        frozen = select(phase.freeze or (), inventory, key=(*key, "freeze")) | never
    # Names that never train count, too: a phase of these alone has no step to take.
    if frozen >= every:
        raise SelectorError(
            f"phase {phase.name!r} trains nothing: all {len(inventory)} parameters are frozen",
            hint="leave out a selector, or take parameters out again with '!'",
            key=(*key, "freeze" if phase.train is None else "train"),
        )
    return frozen


def _all_selectors(config: FreezeConfig, optimizer: OptimizerConfig) -> Iterator[Selector]:
    """Yield the selectors of all phases and of weight decay."""
    yield from optimizer.no_decay
    for phase in config.phases:
        yield from phase.train or phase.freeze or ()
