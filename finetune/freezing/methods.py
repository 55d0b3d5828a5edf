"""Named methods: make phases from published recipes, which `plan --write` can write out."""

from collections.abc import Iterator, Sequence
from typing import Any, assert_never

from pydantic import ValidationError

from finetune.config.freeze import (
    AnyMethod,
    Bitfit,
    ChainThaw,
    Freeze,
    FreezeConfig,
    Freezeout,
    Gradual,
    LinearProbe,
    LpFt,
    Method,
    MethodByDepth,
    NormOnly,
    PhaseConfig,
    PolicyMethod,
    RateConfig,
    TopK,
    Ulmfit,
)
from finetune.config.optim import CosineSchedule, OptimizerConfig
from finetune.config.selectors import All, ByKind, ByName, Not, Selector
from finetune.config.triggers import AfterEpochs, AtFraction, OnPlateau
from finetune.errors import SelectorError
from finetune.freezing.phase_rates import layer_ids
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo, num_blocks

_KEY = ("freeze",)


def written_out(
    freeze: Freeze | None, optimizer: OptimizerConfig, inventory: Sequence[ParamInfo]
) -> FreezeConfig | None:
    """Return the phases of `freeze`: as written, or made by its method; None without any.

    Raises:
        SelectorError: the method does not fit the model, or makes rates or spans that no phase
            can have.
    """
    if freeze is None or isinstance(freeze, FreezeConfig):
        return freeze
    try:
        phases = _phases(freeze, optimizer, inventory)
    # A method computes rates from numbers of the config; the result may leave the bounds of a rate.
    except (ValidationError, ArithmeticError) as error:
        reason = "a number overflows"
        if isinstance(error, ValidationError):
            reason = error.errors()[0]["msg"]
        raise SelectorError(
            f"{freeze.method} makes phases that cannot be, of optimizer.lr {optimizer.lr:g} and "
            f"its own numbers: {reason}",
            key=_KEY,
        ) from error
    if freeze.keep_frozen:
        phases = tuple(_without(freeze.keep_frozen, phases, inventory))
    return FreezeConfig(phases=phases, verify=freeze.verify, modules=freeze.modules)


def _without(
    kept: Sequence[Selector], phases: Sequence[PhaseConfig], inventory: Sequence[ParamInfo]
) -> Iterator[PhaseConfig]:
    """Yield the phases without training `kept`; leave out phases that would train nothing."""
    names = select(kept, inventory, key=(*_KEY, "keep_frozen"))
    trained = [select(phase.train or (), inventory) for phase in phases]
    if frozenset().union(*trained) <= names:
        raise SelectorError("nothing is left to train", key=(*_KEY, "keep_frozen"))
    for phase, own in zip(phases, trained, strict=True):
        if own <= names:
            continue
        # A `not` that takes nothing out is an error, so each phase gets only those that it needs.
        taken_out = (
            Not.model_validate({"not": selector})
            for selector in kept
            if select([selector], inventory) & own
        )
        # A rate for a parameter that stays frozen would be refused as well.
        rates = {name: r for name, r in phase.lr.items() if not select([name], inventory) <= names}
        yield phase.model_copy(update={"train": (*(phase.train or ()), *taken_out), "lr": rates})


def _phases(  # noqa: C901 - one case for each method
    method: Method, optimizer: OptimizerConfig, inventory: Sequence[ParamInfo]
) -> tuple[PhaseConfig, ...]:
    """Return the phases of a method, before `keep_frozen` is applied."""
    head = head_of(method, inventory)
    match method:
        case PolicyMethod():
            # All that may ever train: the policy freezes changing parts of it in the run.
            return (
                PhaseConfig(
                    name=method.method,
                    train=(All(all=True),),
                    optimizer_state=method.optimizer_state,
                ),
            )
        case LinearProbe():
            return (PhaseConfig(name="probe", train=head),)
        case LpFt():
            return _lp_ft(method, optimizer, head)
        case Gradual():
            return _gradual(method, _groups(method, inventory), head)
        case Ulmfit():
            return _ulmfit(method, optimizer, _groups(method, inventory), head)
        case ChainThaw():
            return _chain_thaw(method, optimizer, _groups(method, inventory), head)
        case Bitfit():
            return (PhaseConfig(name="biases", train=(ByKind(kind="bias"), *head)),)
        case NormOnly():
            return (PhaseConfig(name="norms", train=(ByKind(kind="norm"), *head)),)
        case TopK():
            return (_top_k(method, _groups(method, inventory), head),)
        case Freezeout():
            return _freezeout(method, optimizer, _groups(method, inventory), head)
        case _:
            assert_never(method)


def _lp_ft(
    method: LpFt, optimizer: OptimizerConfig, head: tuple[Selector, ...]
) -> tuple[PhaseConfig, ...]:
    """Train the head alone, then everything from there, with a smaller rate and fresh state.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features", arXiv 2202.10054,
    section 4. The second phase begins with the head of the first phase's best evaluation where
    that phase ends on a plateau.
    """
    # Said here, since a rate of a phase is not scaled by depth unless it asks for it.
    rate = RateConfig(lr=method.lr or optimizer.lr / 10, layer_decay=True)
    is_plateau = isinstance(method.probe, OnPlateau)
    probe = PhaseConfig(
        name="probe", train=head, until=method.probe, schedule="per_phase", restore_best=is_plateau
    )
    everything = PhaseConfig(
        name="all",
        train=(All(all=True),),
        lr={"*": rate},
        schedule="per_phase",
        optimizer_state="fresh",
    )
    return probe, everything


def _gradual(
    method: Gradual, groups: Sequence[tuple[str, ...]], head: tuple[Selector, ...]
) -> tuple[PhaseConfig, ...]:
    """Return the phases of gradual unfreezing, from the output to the input.

    The first phase trains the head alone. Each later phase also trains up to
    `method.blocks_per_phase` more groups, and the last one all of them until the run ends.

    Args:
        method: Settings of the method.
        groups: Names of each group's parameters, the group nearest to the output first.
        head: Selectors of the head, which every phase trains.
    """
    stages = _stages(groups, method.blocks_per_phase)
    return tuple(
        PhaseConfig(
            name=_stage_name(number, len(stages)),
            train=(*head, *_by_name(names)),
            until=_until(method.epochs_per_phase, is_last=number == len(stages) - 1),
            optimizer_state="keep",
        )
        for number, names in enumerate(stages)
    )


def _ulmfit(
    method: Ulmfit,
    optimizer: OptimizerConfig,
    groups: Sequence[tuple[str, ...]],
    head: tuple[Selector, ...],
) -> tuple[PhaseConfig, ...]:
    """Thaw gradually, with discriminative rates and the schedule anew in each phase.

        lr[group l - 1] = lr[group l] / rate_decay

    Source: Howard and Ruder, arXiv 1801.06146, sections 3.2 and 3.3. The slanted triangle of
    equation 3 is `schedule: {type: slanted_triangular}`; one cycle per phase is fastai's practice.
    """
    stages = _stages(groups, method.blocks_per_phase)
    rates = {
        name: RateConfig(lr=optimizer.lr / method.rate_decay ** (place + 1))
        for place, group in enumerate(groups)
        for name in group
    }
    return tuple(
        PhaseConfig(
            name=_stage_name(number, len(stages)),
            train=(*head, *_by_name(names)),
            until=_until(method.epochs_per_phase, is_last=number == len(stages) - 1),
            lr={name: rates[name] for name in names},
            schedule="per_phase",
            optimizer_state="keep",
        )
        for number, names in enumerate(stages)
    )


def _chain_thaw(
    method: ChainThaw,
    optimizer: OptimizerConfig,
    groups: Sequence[tuple[str, ...]],
    head: tuple[Selector, ...],
) -> tuple[PhaseConfig, ...]:
    """Train the head, then each group alone from the input up, at last everything.

    Each phase has fresh state, ends by its own trigger and goes back to its best weights; the
    first has the rate of the optimizer, all later ones a smaller one. Source: Felbo et al.,
    arXiv 1708.00524, section 3.2, and their code (`train_by_chain_thaw`).
    """
    # Best weights need evaluations, and only a plateau is sure to have some.
    restore = isinstance(method.until, OnPlateau)
    later = RateConfig(lr=method.next_lr or optimizer.lr / 10, layer_decay=True)
    settings: dict[str, Any] = {
        "until": method.until,
        "restore_best": restore,
        "optimizer_state": "fresh",
    }
    phases = [PhaseConfig(name="head", train=head, **settings)]
    # The groups come from the output down; this method goes up from the input.
    for number, group in enumerate(reversed(groups)):
        phases.append(
            PhaseConfig(name=f"group {number}", train=_by_name(group), lr={"*": later}, **settings)
        )
    last = PhaseConfig(name="all", train=(All(all=True),), lr={"*": later}, optimizer_state="fresh")
    return (*phases, last)


def _top_k(
    method: TopK, groups: Sequence[tuple[str, ...]], head: tuple[Selector, ...]
) -> PhaseConfig:
    """Return the phase that trains the last blocks and all parameters behind them."""
    if method.blocks > len(groups):
        raise SelectorError(
            f"the model has {len(groups)} groups below the head, got {method.blocks}",
            key=(*_KEY, "blocks"),
        )
    names = tuple(name for group in groups[: method.blocks] for name in group)
    return PhaseConfig(name="top", train=(*head, *_by_name(names)))


def _freezeout(
    method: Freezeout,
    optimizer: OptimizerConfig,
    groups: Sequence[tuple[str, ...]],
    head: tuple[Selector, ...],
) -> tuple[PhaseConfig, ...]:
    """Anneal each group to nothing, the input's first, and freeze it there.

        t_i     = s(t_0 + (1 - t_0) i / L)      s(x) = x, x^2 or x^3
        lr_i(t) = lr_i (1 + cos(pi t / t_i)) / 2,   lr_i = lr / t_i if scale_lr else lr

    over the layers 0 to L counted from the input, t the share of the run. Source: Brock et al.,
    arXiv 1706.04983, section 2, with the factor 1/2 that the official code has. As there, the
    spacing is applied to the whole of the bracket, so the first group ends at s(t_0).
    """
    power = {"linear": 1, "squared": 2, "cubic": 3}[method.spacing]
    # None is the head, the last layer: it is given by selectors, not by module names.
    rising = [*reversed(groups), None]
    ends = [
        (method.first + (1 - method.first) * i / max(1, len(rising) - 1)) ** power
        for i in range(len(rising))
    ]
    rates: dict[str, RateConfig] = {}
    for group, end in zip(rising, ends, strict=True):
        peak = optimizer.lr / end if method.scale_lr else optimizer.lr
        rate = RateConfig(lr=peak, schedule=CosineSchedule(type="cosine"), over=end)
        rates |= dict.fromkeys(group if group is not None else _names(head), rate)
    phases = []
    for number, end in enumerate(ends):
        kept = tuple(name for group in rising[number:-1] for name in group or ())
        trained = (*kept, *_names(head))
        # The head ends at s(1) = 1, which is the end of the run.
        is_last = number == len(ends) - 1
        phases.append(
            PhaseConfig(
                name=_stage_name(number, len(ends)),
                train=(*_by_name(kept), *head),
                until=None if is_last else AtFraction(fraction=end),
                lr={name: rates[name] for name in trained},
            )
        )
    return tuple(phases)


def head_of(method: AnyMethod, inventory: Sequence[ParamInfo]) -> tuple[Selector, ...]:
    """Return the head as selectors: as given, or the last module that holds parameters."""
    if method.head is not None:
        # Only to refuse a head that takes nothing, with its own key.
        select(method.head, inventory, key=(*_KEY, "head"))
        return method.head
    return (ByName(name=inventory[-1].module or inventory[-1].name),)


def _groups(method: MethodByDepth, inventory: Sequence[ParamInfo]) -> list[tuple[str, ...]]:
    """Return the groups below the head, the nearest to the output first, as module names.

    A group is a block. Parameters behind the last block belong to it, those before the first block
    are a group of their own.
    """
    in_head = select(head_of(method, inventory), inventory)
    blocks = num_blocks(inventory)
    groups: dict[int, list[str]] = {}
    for param, place in zip(inventory, layer_ids(inventory), strict=True):
        if param.name not in in_head:
            # Place `blocks` is the last block, and the place behind it is joined to it.
            groups.setdefault(min(place, blocks), []).append(param.name)
    if not groups:
        raise SelectorError("the head is all there is: nothing is below it", key=_KEY)
    return [_shortest(groups[place], inventory) for place in sorted(groups, reverse=True)]


def _shortest(names: Sequence[str], inventory: Sequence[ParamInfo]) -> tuple[str, ...]:
    """Return the fewest modules that hold exactly `names`."""
    wanted, every = set(names), [param.name for param in inventory]
    found: dict[str, None] = {}
    # The shortest prefix that holds nothing else: `plan --write` shows these names to a person.
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            below = {n for n in every if n == prefix or n.startswith(f"{prefix}.")}
            if below <= wanted:
                found[prefix] = None
                break
    return tuple(found)


def _stages(groups: Sequence[tuple[str, ...]], size: int) -> list[tuple[str, ...]]:
    """Return the names to train beside the head in each phase: none at first, all at last."""
    counts = [*range(0, len(groups), size), len(groups)]
    return [tuple(name for group in groups[:count] for name in group) for count in counts]


def _by_name(names: Sequence[str]) -> tuple[Selector, ...]:
    return tuple(ByName(name=name) for name in names)


def _names(head: Sequence[Selector]) -> tuple[str, ...]:
    """Return the names in a head that is given by names only; its rates need names."""
    if not all(isinstance(selector, ByName) for selector in head):
        raise SelectorError("freezeout needs a head given by names", key=(*_KEY, "head"))
    return tuple(selector.name for selector in head if isinstance(selector, ByName))


def _until(epochs: int, *, is_last: bool) -> AfterEpochs | None:
    return None if is_last else AfterEpochs(epochs=epochs)


def _stage_name(number: int, total: int) -> str:
    return f"stage {number + 1} of {total}"
