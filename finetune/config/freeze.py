"""`freeze:` which parameters are frozen, in which phases, and further settings of each phase."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from finetune.config.base import PUBLIC, Node, refuse
from finetune.config.bounds import Count, Rate as LearningRate, Ratio
from finetune.config.catalogue import Complaint
from finetune.config.hints import remark_on_value
from finetune.config.messages import shown
from finetune.config.optim import PlateauSchedule, Schedule
from finetune.config.selectors import Selectors
from finetune.config.triggers import OnPlateau, Trigger


class ModulesConfig(Node):
    """How wholly frozen modules and normalization layers behave in training."""

    norm: Literal["eval", "train"] = "eval"
    """Frozen normalization layers: `eval` leaves running statistics unchanged; `train` normalises by batch statistics and updates them, and the proof leaves them out."""
    trained_norm: Literal["train", "eval"] = "train"
    """Normalization layers that are not wholly frozen: `train` normalises by batch statistics and updates the running ones; `eval` normalises by the running statistics and leaves them unchanged, so that weight and bias alone train."""
    dropout: Literal["eval", "train"] = "eval"
    """`eval` switches dropout off; `train` keeps it on, in modules and in functions such as attention's: all frozen modules are in training mode except norms, and those that hold buffers and are not dropout."""


class RateConfig(Node):
    """Learning rate of some parameters, with further settings."""

    lr: LearningRate
    """Peak learning rate."""
    schedule: Schedule | None = None
    """Schedule of their own over the run, in place of the run's."""
    over: float = Field(default=1.0, gt=0, le=1)
    """Share of the run after which that schedule is complete."""
    layer_decay: bool = False
    """Whether `optimizer.layer_decay` lowers this rate by depth; it never does for a rate given as a plain number."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for a schedule that watches a metric: only that of the run does."""
        schedule = value.get("schedule")
        # As written, or built in Python as a node.
        kind = schedule.get("type") if isinstance(schedule, Mapping) else None
        if kind != "plateau" and not isinstance(schedule, PlateauSchedule):
            return []
        message = "a plateau lowers all rates of the run, not those of some parameters"
        return [(("schedule", "type"), message, "schedule: {type: plateau} of the config")]


def _number_is_a_rate(value: Any) -> Any:
    """Turn a plain number into the mapping that it is short for."""
    # A bool is left as it is, to be refused: for Python it is a number.
    is_written_out = isinstance(value, Mapping | RateConfig | bool)
    return value if is_written_out else {"lr": value}


Rate = Annotated[RateConfig, BeforeValidator(_number_is_a_rate)]


class PhaseConfig(Node):
    """One stretch of training during which the set of frozen parameters stays the same."""

    name: Annotated[str, PUBLIC] = Field(min_length=1)
    """Name in logs, checkpoints and the plan."""
    freeze: Selectors | None = None
    """Frozen parameters; all others are trained."""
    train: Selectors | None = None
    """Trained parameters, in place of `freeze`; all others are frozen."""
    until: Trigger | None = None
    """What ends the phase; the end of the last phase ends the run. Only the last one may leave it out: it lasts as long as `train` says."""
    lr: dict[str, Rate] = Field(default={})
    """Learning rates by name or glob, used as given; later entries override earlier ones. Parameters that no entry matches get `optimizer.lr`, times `optimizer.layer_decay` by depth."""
    schedule: Literal["whole_run", "per_phase"] = "whole_run"
    """Whether the schedule runs over the whole run, or starts anew and completes in this phase."""
    optimizer_state: Literal["reset", "keep", "fresh"] = "reset"
    """What happens to optimizer state at the start of the phase: `reset` drops it for parameters that are thawed again, `keep` keeps all, `fresh` drops it for every parameter."""
    restore_best: bool = False
    """Whether the weights of the phase's best evaluation are restored at its end."""
    modules: ModulesConfig | None = None
    """How wholly frozen modules behave in this phase; as `freeze.modules` says if left out."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint unless exactly one of `freeze` and `train` is given."""
        given = [key for key in ("freeze", "train") if value.get(key) is not None]
        if len(given) == 1:
            return []
        got = "both" if given else "neither"
        return [((), f"needs exactly one of 'freeze' and 'train', got {got}", None)]


class _Freeze(Node):
    verify: Literal["phase", "checkpoint", "end", "off"] = "phase"
    """When the proof is taken: at the end of each phase; also before each checkpoint; only at the end of the run, over what was frozen throughout; or never."""
    modules: ModulesConfig = ModulesConfig()
    """How wholly frozen modules behave in training."""


class FreezeConfig(_Freeze):
    """What is frozen in each phase. The short form is a plain list of selectors, or a single name."""

    phases: tuple[PhaseConfig, ...] = Field(min_length=1)
    """The phases in order."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for each repeated name, and for each phase but the last without end."""
        phases = value.get("phases")
        if not isinstance(phases, list | tuple):
            return []
        found: list[Complaint] = []
        names = [phase.get("name") if isinstance(phase, Mapping) else None for phase in phases]
        for number, phase in enumerate(phases):
            # Metrics, proofs and checkpoints refer to a phase by its name.
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


class AnyMethod(_Freeze):
    """What all methods have in common."""

    head: Selectors | None = None
    """The new part of the network, trained from the first phase on; the last module that has parameters if left out."""
    keep_frozen: Selectors = ()
    """Parameters that stay frozen in every phase, such as `[{kind: norm}]`."""


class LinearProbe(AnyMethod):
    """Only the head trains (feature extraction)."""

    method: Literal["linear_probe"]
    """Discriminator."""


class LpFt(AnyMethod):
    """First the head alone, then all parameters (Kumar et al. 2022, arXiv 2202.10054)."""

    method: Literal["lp_ft"]
    """Discriminator."""
    probe: Trigger
    """What ends the first phase, in which only the head is trained."""
    lr: LearningRate | None = None
    """Learning rate of the second phase, usually a lower one; a tenth of `optimizer.lr` if left out."""


class MethodByDepth(AnyMethod):
    """A method that goes by the depth of blocks."""


class _Stepwise(MethodByDepth):
    epochs_per_phase: Count = 1
    """Epochs of each phase but the last, which lasts to the end of the run."""
    blocks_per_phase: Count = 1
    """Blocks thawed at the start of each phase."""


class Gradual(_Stepwise):
    """Blocks are thawed from the output down, some in each phase."""

    method: Literal["gradual"]
    """Discriminator."""


class Ulmfit(_Stepwise):
    """Gradual thawing; each group has a lower rate than the one above, and the schedule starts anew in each phase (Howard and Ruder 2018, arXiv 1801.06146)."""

    method: Literal["ulmfit"]
    """Discriminator."""
    rate_decay: Ratio = 2.6
    """Factor between the rates of two neighbouring groups."""


class ChainThaw(MethodByDepth):
    """Each group alone, first the head and then from the input up; at last all together (Felbo et al. 2017)."""

    method: Literal["chain_thaw"]
    """Discriminator."""
    # The paper trains each group until the validation loss stops improving.
    until: Trigger = OnPlateau(plateau="validation/loss", patience=2)
    """What ends each phase; if it is a plateau, each phase ends with its best weights."""
    next_lr: LearningRate | None = None
    """Learning rate of all phases but the first; a tenth of `optimizer.lr` if left out."""


class Bitfit(AnyMethod):
    """Only the biases and the head train (Ben Zaken et al. 2021, arXiv 2106.10199)."""

    method: Literal["bitfit"]
    """Discriminator."""


class NormOnly(AnyMethod):
    """Only the norms and the head train (Frankle et al. 2021, arXiv 2003.00152)."""

    method: Literal["norm_only"]
    """Discriminator."""


class TopK(MethodByDepth):
    """Only the last blocks and what comes after them is trained."""

    method: Literal["top_k"]
    """Discriminator."""
    blocks: Count
    """Number of blocks that are trained."""


class Freezeout(MethodByDepth):
    """Groups are frozen from the input up, after their rates have fallen to zero (Brock et al. 2017, arXiv 1706.04983)."""

    method: Literal["freezeout"]
    """Discriminator."""
    first: float = Field(default=0.8, gt=0, lt=1)
    """Share of the run after which the first group is frozen; `t_0` in the paper."""
    spacing: Literal["linear", "squared", "cubic"] = "cubic"
    """How the freezing times of the other groups are spread between the first one's and the end."""
    scale_lr: bool = True
    """Whether a group that is frozen earlier starts with a proportionally higher rate."""


class Lisa(MethodByDepth):
    """Every few steps other blocks, drawn at random, train; embeddings, last norm and head train always (Pan et al. 2024, arXiv 2403.17919)."""

    method: Literal["lisa"]
    """Discriminator."""
    period: Count = 20
    """Steps after which other blocks are drawn."""
    blocks: Count = 2
    """How many blocks train at a time."""
    optimizer_state: Literal["reset", "keep"] = "keep"
    """What becomes of the momentum of a block that is drawn again: `keep` goes on with that of its last steps, `reset` forgets it."""


PolicyMethod = Lisa
"""Methods that decide masks while training goes on; all others make phases before step 0."""
Method = (
    LinearProbe
    | LpFt
    | Gradual
    | Ulmfit
    | ChainThaw
    | Bitfit
    | NormOnly
    | TopK
    | Freezeout
    | PolicyMethod
)
METHODS: dict[str, type[Method]] = {
    get_args(node.model_fields["method"].annotation)[0]: node for node in get_args(Method)
}
"""The methods by name."""


def _form_of_freeze(value: Any) -> str:
    """Return the tag of the form that `freeze` has: a method, or phases written out."""
    if isinstance(value, Mapping):
        # By one key: without a tag pydantic would report the faults of every form.
        return "by method" if "method" in value else "written out"
    return "by method" if isinstance(value, AnyMethod) else "written out"


def _short_form(value: Any) -> Any:
    """Turn selectors, a list or a single name, into one phase over the whole run."""
    if isinstance(value, str):
        _refuse_method(value)
    if isinstance(value, Mapping) and not value.keys() & {"phases", "method"}:
        _refuse_bare(value)
    is_short = isinstance(value, str | list | tuple)
    return {"phases": ({"name": "all", "freeze": value},)} if is_short else value


def _refuse_method(name: str) -> None:
    """Refuse a single word that is rather a method, here or elsewhere, than a module."""
    remark, as_name = remark_on_value(name, METHODS), f"freeze: [{shown(name)}]"
    if name in METHODS:
        hint = f"freeze: {{method: {name}}}; a module of that name: {as_name}"
    elif remark is not None:
        hint = f"{remark}; a module of that name: {as_name}"
    else:
        return
    refuse("Freeze", ((), f"needs a name of the network, got the method {shown(name)}", hint))


def _refuse_bare(value: Mapping[str, Any]) -> None:
    """Refuse keys of a phase, or of a selector, that are written directly below `freeze`."""
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
"""Phases, or a method that creates them."""

ShortFreeze = Annotated[Freeze, BeforeValidator(_short_form)]
"""Phases, a method, a plain list of selectors, or a single name."""
