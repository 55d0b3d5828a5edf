"""`freeze:` which parameters are frozen, in which phases, and what else each phase settles."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
)

from finetune.config.base import PUBLIC, Node, refuse
from finetune.config.bounds import Count, NotNegative, Rate as LearningRate, Ratio
from finetune.config.catalogue import Complaint
from finetune.config.messages import shown
from finetune.config.optim import Schedule
from finetune.config.selectors import Selectors


class AfterEpochs(Node):
    """The phase ends when it has lasted so many epochs."""

    epochs: Count
    """Epochs since the phase began."""


class AfterSteps(Node):
    """The phase ends when it has lasted so many steps."""

    steps: Count
    """Optimizer steps since the phase began."""


class AtFraction(Node):
    """The phase ends when a share of the whole run is done."""

    fraction: float = Field(gt=0, lt=1)
    """Share of all optimizer steps of the run, counted from its beginning."""


_TRIGGERS = ("epochs", "steps", "fraction", "plateau")


def _kind_of_trigger(value: Any) -> str | None:
    """Return the one key that says which trigger is meant, or None."""
    if isinstance(value, Mapping):
        given = [key for key in _TRIGGERS if key in value]
    else:
        given = [key for key in _TRIGGERS if hasattr(value, key)]
    return given[0] if len(given) == 1 else None


Length = Annotated[
    Annotated[AfterEpochs, Tag("epochs")]
    | Annotated[AfterSteps, Tag("steps")]
    | Annotated[AtFraction, Tag("fraction")],
    Discriminator(
        _kind_of_trigger,
        custom_error_type="trigger",
        custom_error_message="needs exactly one of epochs, steps, fraction",
    ),
]


class OnPlateau(Node):
    """The phase ends when a metric of the evaluation has stopped improving."""

    plateau: Annotated[str, PUBLIC]
    """Tag of the metric, such as `validation/loss`."""
    patience: Count = 2
    """Evaluations in a row without improvement."""
    min_delta: NotNegative = 0.0
    """Smallest change that counts as improvement, in the metric's own unit."""
    at_most: Length | None = None
    """Where the phase ends at the latest."""


Trigger = Annotated[
    Annotated[AfterEpochs, Tag("epochs")]
    | Annotated[AfterSteps, Tag("steps")]
    | Annotated[AtFraction, Tag("fraction")]
    | Annotated[OnPlateau, Tag("plateau")],
    Discriminator(
        _kind_of_trigger,
        custom_error_type="trigger",
        custom_error_message="needs exactly one of epochs, steps, fraction, plateau",
    ),
]


class ModulesConfig(Node):
    """How wholly frozen modules behave while the rest trains."""

    norm: Literal["eval", "train"] = "eval"
    """`eval` keeps running statistics as they are; `train` normalises by the batch and lets them move, and the proof leaves them out."""
    dropout: Literal["eval", "train"] = "eval"
    """`eval` lets everything through; `train` goes on dropping, by modules and by functions such as those of attention: all modules train but norms, and those that hold buffers and are no dropout."""


class RateConfig(Node):
    """The learning rate of some parameters, where it is more than a number."""

    lr: LearningRate
    """Peak learning rate."""
    schedule: Schedule | None = None
    """Their own schedule over the run, in place of the run's."""
    over: float = Field(default=1.0, gt=0, le=1)
    """Share of the run after which their own schedule has come to its end."""
    layer_decay: bool = False
    """Whether `optimizer.layer_decay` makes the rate smaller by depth; a rate that is only a number is taken as it stands."""


def _number_is_a_rate(value: Any) -> Any:
    is_written_out = isinstance(value, Mapping | RateConfig | bool)
    return value if is_written_out else {"lr": value}


Rate = Annotated[RateConfig, BeforeValidator(_number_is_a_rate)]


class PhaseConfig(Node):
    """One stretch of training during which the set of frozen parameters stays the same."""

    name: Annotated[str, PUBLIC] = Field(min_length=1)
    """Name shown in logs, checkpoints and the plan."""
    freeze: Selectors | None = None
    """Parameters held frozen; every other one trains."""
    train: Selectors | None = None
    """Parameters that train, in place of `freeze`; every other one is frozen."""
    until: Trigger | None = None
    """What ends the phase, and with the last one the run. Only the last one may leave it out: it lasts as long as `train` says."""
    lr: dict[str, Rate] = Field(default={})
    """Learning rates by name or glob, later entries overruling earlier ones, as they stand; `optimizer.lr`, times `optimizer.layer_decay` by depth, for what none of them takes."""
    schedule: Literal["whole_run", "per_phase"] = "whole_run"
    """Whether the schedule goes on over the whole run, or begins anew and is over with this phase."""
    optimizer_state: Literal["reset", "keep", "fresh"] = "reset"
    """What becomes of momentum as the phase begins: `reset` forgets that of parameters thawed again, `keep` keeps all, `fresh` forgets that of every parameter."""
    restore_best: bool = False
    """Whether the phase, when it ends, goes back to the weights of its best evaluation."""
    modules: ModulesConfig | None = None
    """How wholly frozen modules behave in this phase; `freeze.modules` if left out."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse a phase that says both what is frozen and what trains, or neither."""
        given = [key for key in ("freeze", "train") if value.get(key) is not None]
        if len(given) == 1:
            return []
        got = "both" if given else "neither"
        return [((), f"needs exactly one of 'freeze' and 'train', got {got}", None)]


class _Freeze(Node):
    verify: Literal["phase", "checkpoint", "end", "off"] = "phase"
    """When the proof is taken: as each phase ends, also before each checkpoint, only at the end of the run over what was frozen throughout, or never."""
    modules: ModulesConfig = ModulesConfig()
    """How wholly frozen modules behave in training."""


class FreezeConfig(_Freeze):
    """What is frozen, phase by phase. The short form is a bare list of selectors."""

    phases: tuple[PhaseConfig, ...] = Field(min_length=1)
    """The phases in order."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Refuse phases that share a name, and phases but the last that never end."""
        phases = value.get("phases")
        if not isinstance(phases, list | tuple):
            return []
        found: list[Complaint] = []
        names = [phase.get("name") if isinstance(phase, Mapping) else None for phase in phases]
        for number, phase in enumerate(phases):
            if names[number] is not None and names[number] in names[:number]:
                message = f"a second phase named {names[number]!r}"
                found.append((("phases", number, "name"), message, None))
            is_last = number == len(phases) - 1
            if isinstance(phase, Mapping) and not is_last and phase.get("until") is None:
                hint = "until: {epochs: 1}, for example"
                found.append(
                    (("phases", number), "needs 'until': only the last phase may do without", hint)
                )
        return found


class _Method(_Freeze):
    head: Selectors | None = None
    """The new part of the network, trained from the first phase on; its last module with parameters if left out."""
    keep_frozen: Selectors = ()
    """What stays frozen in every phase, such as `[{kind: norm}]`."""


class LinearProbe(_Method):
    """Only the head trains (feature extraction)."""

    method: Literal["linear_probe"]
    """Discriminator."""


class LpFt(_Method):
    """First the head alone, then everything from there (Kumar et al. 2022, arXiv 2202.10054)."""

    method: Literal["lp_ft"]
    """Discriminator."""
    probe: Trigger
    """What ends the training of the head alone."""
    lr: LearningRate | None = None
    """Learning rate of the second phase, usually a smaller one; a tenth of `optimizer.lr` if left out."""


class _Stepwise(_Method):
    epochs_per_phase: Count = 1
    """Epochs of every phase but the last, which lasts to the end of the run."""
    blocks_per_phase: Count = 1
    """Blocks thawed as each phase begins."""


class Gradual(_Stepwise):
    """Blocks are thawed from the output down, some with every phase."""

    method: Literal["gradual"]
    """Discriminator."""


class Ulmfit(_Stepwise):
    """Gradual thawing, each group with a lower rate than the one above, the schedule anew in each phase (Howard and Ruder 2018, arXiv 1801.06146)."""

    method: Literal["ulmfit"]
    """Discriminator."""
    rate_decay: Ratio = 2.6
    """How many times smaller the rate of a group is than that of the group above."""


class ChainThaw(_Method):
    """Each group alone, the head first and then from the input up, at last all (Felbo et al. 2017)."""

    method: Literal["chain_thaw"]
    """Discriminator."""
    until: Trigger = OnPlateau(plateau="validation/loss", patience=2)
    """What ends each phase; each goes back to its best weights if this is a plateau."""
    next_lr: LearningRate | None = None
    """Rate of all phases but the first; a tenth of `optimizer.lr` if left out."""


class Bitfit(_Method):
    """Only the biases and the head train (Ben Zaken et al. 2021, arXiv 2106.10199)."""

    method: Literal["bitfit"]
    """Discriminator."""


class NormOnly(_Method):
    """Only the norms and the head train (Frankle et al. 2021, arXiv 2003.00152)."""

    method: Literal["norm_only"]
    """Discriminator."""


class TopK(_Method):
    """Only the last blocks and what comes after them train."""

    method: Literal["top_k"]
    """Discriminator."""
    blocks: Count
    """How many blocks train."""


class Freezeout(_Method):
    """Groups are frozen from the input up, each annealed to nothing first (Brock et al. 2017, arXiv 1706.04983)."""

    method: Literal["freezeout"]
    """Discriminator."""
    first: float = Field(default=0.8, gt=0, lt=1)
    """Share of the run after which the first group is frozen, `t_0` of the paper."""
    spacing: Literal["linear", "squared", "cubic"] = "cubic"
    """How the times of the other groups are spread between the first one's and the end."""
    scale_lr: bool = True
    """Whether a group that is frozen earlier starts with a rate as much higher."""


Method = LinearProbe | LpFt | Gradual | Ulmfit | ChainThaw | Bitfit | NormOnly | TopK | Freezeout
METHODS: dict[str, type[Method]] = {
    "linear_probe": LinearProbe,
    "lp_ft": LpFt,
    "gradual": Gradual,
    "ulmfit": Ulmfit,
    "chain_thaw": ChainThaw,
    "bitfit": Bitfit,
    "norm_only": NormOnly,
    "top_k": TopK,
    "freezeout": Freezeout,
}
"""The named methods."""


def _form_of_freeze(value: Any) -> str:
    if isinstance(value, Mapping):
        return "by method" if "method" in value else "written out"
    return "by method" if isinstance(value, _Method) else "written out"


def _short_form(value: Any) -> Any:
    """A bare list of selectors is one phase that lasts the whole run."""
    if isinstance(value, str):
        hint = f"freeze: {{method: {value}}}" if value in METHODS else f"freeze: [{shown(value)}]"
        refuse("Freeze", ((), f"needs a list of selectors, got {shown(value)}", hint))
    if isinstance(value, Mapping) and not value.keys() & {"phases", "method"}:
        _refuse_bare(value)
    is_list = isinstance(value, list | tuple)
    return {"phases": ({"name": "all", "freeze": value},)} if is_list else value


def _refuse_bare(value: Mapping[str, Any]) -> None:
    """Refuse what belongs into a phase, or is a selector, where it stands below `freeze` itself."""
    of_phase = {key: value[key] for key in PhaseConfig.model_fields if key in value}
    if value.keys() & {"train", "freeze", "until"}:
        hint = f"phases: [{shown({'name': 'all', **of_phase})}]"
        refuse("Freeze", ((), f"needs 'phases' around {', '.join(map(repr, of_phase))}", hint))
    if value.keys() & {"regex", "type", "kind", "depth", "rows", "all", "not"}:
        refuse("Freeze", ((), "needs a list of selectors", f"freeze: [{shown(value)}]"))


Freeze = Annotated[
    Annotated[FreezeConfig, Tag("written out")]
    | Annotated[Annotated[Method, Field(discriminator="method")], Tag("by method")],
    Discriminator(_form_of_freeze),
]
"""Phases written out, or a method that makes them."""

ShortFreeze = Annotated[Freeze, BeforeValidator(_short_form)]
"""The same, or a bare list of selectors."""
