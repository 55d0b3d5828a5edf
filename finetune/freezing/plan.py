"""Every phase resolved to names and checked, before a step is taken."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config.freeze import FreezeConfig, PhaseConfig
from finetune.errors import Key, SelectorError
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training with one mask."""

    name: str
    frozen: frozenset[str]
    """Names of the parameters held frozen; every other one is trained."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All phases of a run, over the parameters of one model."""

    phases: tuple[Phase, ...]
    inventory: tuple[ParamInfo, ...]

    @property
    def ever_trained(self) -> tuple[str, ...]:
        """Names trained in some phase, in the model's order: what optimizer and delta hold."""
        return tuple(
            param.name
            for param in self.inventory
            if any(param.name not in phase.frozen for phase in self.phases)
        )


def make_plan(config: FreezeConfig | None, inventory: Sequence[ParamInfo]) -> Plan:
    """Resolve the phases of a config over a model's parameters.

    Parameters that hold no floating-point numbers cannot have a gradient and are always frozen.

    Raises:
        SelectorError: a selector takes nothing, wishes conflict on a tied tensor, or a phase
            trains nothing.
    """
    never = frozenset(param.name for param in inventory if not param.floating)
    if config is None:
        return Plan((Phase("all", never),), tuple(inventory))
    phases = tuple(
        _resolve(phase, inventory, never, key=("freeze", "phases", number))
        for number, phase in enumerate(config.phases)
    )
    return Plan(phases, tuple(inventory))


def _resolve(
    config: PhaseConfig, inventory: Sequence[ParamInfo], never: frozenset[str], *, key: Key
) -> Phase:
    frozen = select(config.freeze, inventory, key=(*key, "freeze")) | never
    if len(frozen) == len(inventory):
        raise SelectorError(
            f"phase {config.name!r} trains nothing: all {len(inventory)} parameters are frozen",
            hint="leave out a selector, or take parameters out again with '!'",
            key=(*key, "freeze"),
        )
    return Phase(config.name, frozen)
