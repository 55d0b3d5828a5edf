"""The only writer of `requires_grad` and of module modes."""

from collections.abc import Container, Iterable, Iterator, Mapping, Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from finetune.config.freeze import ModulesConfig
from finetune.config.selectors import Selector
from finetune.errors import Key, SelectorError
from finetune.freezing.rows import rows_of
from finetune.freezing.select import select
from finetune.models.inventory import is_dropout, is_norm, take_inventory
from finetune.preserved import preserved

_ALL_HELD = ModulesConfig()


def freeze(model: nn.Module, selectors: Iterable[Selector | str | Mapping[str, Any]]) -> list[str]:
    """Freeze the parameters that the selectors take; leave the state of every other one.

    Gradients of frozen parameters are dropped, and modules that are wholly frozen stay in
    evaluation mode through every later `model.train()`.

    Returns:
        Names of all parameters that are frozen now, in the model's order.

    Raises:
        SelectorError: some selector takes nothing.
    """
    _refuse_lazy(model)
    return _apply(model, frozen_now(model) | select(selectors, take_inventory(model)))


def thaw(model: nn.Module, selectors: Iterable[Selector | str | Mapping[str, Any]]) -> list[str]:
    """Let the parameters that the selectors take train again; leave the state of every other one.

    Returns:
        Names of all parameters that are frozen still, in the model's order.

    Raises:
        SelectorError: some selector takes nothing.
    """
    _refuse_lazy(model)
    return _apply(model, frozen_now(model) - select(selectors, take_inventory(model)))


def frozen_now(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that do not train."""
    return frozenset(name for name, param in model.named_parameters() if not param.requires_grad)


def can_train(parameter: Tensor) -> bool:
    """Tell whether a parameter can have a gradient at all; one of integers cannot."""
    return parameter.is_floating_point() or parameter.is_complex()


def apply_mask(model: nn.Module, frozen: AbstractSet[str]) -> None:
    """Freeze exactly the parameters named in `frozen`; thaw every other one.

    The gradient of a frozen parameter is dropped with it. torch's optimizers skip a parameter
    whose gradient is None, so neither weight decay nor leftover momentum can move it.
    """
    for name, parameter in model.named_parameters():
        # torch raises where a parameter of integers is asked for a gradient.
        parameter.requires_grad_(can_train(parameter) and name not in frozen)
        if name in frozen:
            parameter.grad = None


def hold_modes(
    model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig = _ALL_HELD
) -> None:
    """Keep the held modules in evaluation mode, now and through every `train()` to come.

    A frozen BatchNorm in training mode would still move its running statistics, and a frozen
    Dropout would still change what later layers see. The hold sits on the modules themselves,
    because `model.train()` is called by loops that know nothing of freezing.

    Args:
        model: Any module. The attribute `train` of its modules is set or removed.
        frozen: Names of the frozen parameters.
        modules: Which wholly frozen modules and which norms are held.
    """
    held = {id(module) for module in held_modules(model, frozen, modules).values()}
    for module in model.modules():
        # A hold is an attribute that hides the class's method; that of an earlier mask is removed.
        module.__dict__.pop("train", None)
        if id(module) in held:
            module.__dict__["train"] = _StayInEvaluation(module)
    # Only now do the modes follow the holds.
    model.train(model.training)


def take_on(model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig = _ALL_HELD) -> None:
    """Freeze exactly `frozen`, hold modules as `modules` says, put the rest into training mode."""
    apply_mask(model, frozen)
    hold_modes(model, frozen, modules)
    model.train()


def release_modes(model: nn.Module) -> None:
    """Remove all holds; the modes stay as they are until the next `train()`."""
    for module in model.modules():
        module.__dict__.pop("train", None)


@contextmanager
def mask_given_back(model: nn.Module) -> Iterator[None]:
    """Restore `requires_grad` and all modes after the block, also if it raises."""
    frozen = frozen_now(model)
    with preserved(model, modes=True):
        try:
            yield
        finally:
            apply_mask(model, frozen)


@contextmanager
def in_mode(model: nn.Module, *, is_training: bool) -> Iterator[None]:
    """Run the block in training or evaluation mode; restore modes and `requires_grad` after it."""
    was_training = model.training
    with mask_given_back(model):
        model.train(is_training)
        try:
            yield
        finally:
            # Some networks override `train()` to do more than set flags, so it is called as well.
            model.train(was_training)


def held_modules(
    model: nn.Module, frozen: AbstractSet[str], modules: ModulesConfig
) -> dict[str, nn.Module]:
    """Return the modules that stay in evaluation mode, by name: wholly frozen ones, and norms."""
    fixed = frozen_modules(model, frozen)
    held = {name: module for name, module in fixed.items() if _is_held(module, modules)}
    return held | (trained_norms(model, fixed) if modules.trained_norm == "eval" else {})


def trained_norms(model: nn.Module, fixed: Container[str]) -> dict[str, nn.Module]:
    """Return the normalization layers that are not wholly frozen, by name.

    Args:
        model: Any module.
        fixed: Names of the wholly frozen modules.
    """
    return {n: m for n, m in model.named_modules() if is_norm(m) and n not in fixed}


def _is_held(module: nn.Module, modules: ModulesConfig) -> bool:
    """Tell whether a module, all of whose parameters are frozen, stays in evaluation mode.

    The caller ensures that they are frozen. A normalization layer follows `modules.norm`. Any
    other module stays in evaluation mode if `modules.dropout` is `eval`, or if it has buffers of
    its own and is no dropout layer.
    """
    if is_norm(module):
        return modules.norm == "eval"
    # Attention and many networks drop by a function that asks the mode of the module around it.
    # A module with buffers (power iteration, counters) is held: training mode may move them.
    has_buffers = any(True for _ in module.buffers(recurse=False))
    return modules.dropout == "eval" or (has_buffers and not is_dropout(module))


def frozen_modules(model: nn.Module, frozen: AbstractSet[str]) -> dict[str, nn.Module]:
    """Return the wholly frozen modules by name: all of their parameters are in `frozen`.

    A module without parameters counts where it lies below a wholly frozen one: the Dropout of a
    frozen block is frozen, one between the blocks is not.
    """
    # By identity: a tied parameter is listed under one of its names only.
    thawed = {id(param) for name, param in model.named_parameters() if name not in frozen}
    has_any: dict[int, bool] = {}
    has_thawed: dict[int, bool] = {}

    def look(module: nn.Module) -> None:
        """Note whether a module has parameters, and whether one of them trains."""
        own = list(module.parameters(recurse=False))
        has_any[id(module)] = bool(own)
        has_thawed[id(module)] = any(id(param) in thawed for param in own)
        for child in module.children():
            if id(child) not in has_any:  # a module may be in several places
                look(child)
            has_any[id(module)] |= has_any[id(child)]
            has_thawed[id(module)] |= has_thawed[id(child)]

    look(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        # `named_modules` gives a parent before its children.
        has_frozen_parent = bool(name) and name.rpartition(".")[0] in found
        if has_frozen_parent or (has_any[id(module)] and not has_thawed[id(module)]):
            found[name] = module
    return found


def refuse_inexact(model: nn.Module, frozen: AbstractSet[str], *, key: Key = ()) -> None:
    """Raise if a parameter that is frozen, wholly or in rows, would change nevertheless.

    Args:
        model: Any module.
        frozen: Names of the frozen parameters and row slices.
        key: The config key that freezes them.

    Raises:
        SelectorError: an embedding with `max_norm` rescales its weight in every forward pass, in
            any mode.
    """
    whole = {rows_of(name)[0] for name in frozen}
    held = {id(parameter) for name, parameter in model.named_parameters() if name in whole}
    for name, module in model.named_modules():
        # Embedding and EmbeddingBag both have these two attributes.
        weight = getattr(module, "weight", None)
        if getattr(module, "max_norm", None) is not None and id(weight) in held:
            raise SelectorError(
                f"{f'{name}.weight' if name else 'weight'!r} cannot be frozen: its embedding has "
                "max_norm, and rescales the weight in every forward pass",
                hint="build the embedding without max_norm",
                key=key,
            )


def _refuse_lazy(model: nn.Module) -> None:
    """Raise if a parameter has no shape yet, as those of lazy modules."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise SelectorError(
                f"{name!r} has no shape yet: its module is lazy",
                hint="run one batch through the model first",
            )


def _apply(model: nn.Module, frozen: AbstractSet[str]) -> list[str]:
    """Apply a mask and hold modes; return the frozen names in the model's order."""
    # Parameters of integers never train, so they are named among the frozen ones.
    frozen = frozen | {n for n, parameter in model.named_parameters() if not can_train(parameter)}
    # `requires_grad` holds for a whole tensor: rows need an optimizer over slices.
    if any(rows_of(name)[1] is not None for name in frozen):
        raise SelectorError(
            "rows cannot be frozen by a flag on the parameter",
            hint="build the optimizer over freezing.rows.RowSlices, or use a config",
        )
    refuse_inexact(model, frozen)
    apply_mask(model, frozen)
    hold_modes(model, frozen)
    return [name for name, _ in model.named_parameters() if name in frozen]


class _StayInEvaluation:
    """Replaces `train()` of a held module; each child has a hold of its own or none.

    A class rather than a closure, so that a model that holds it can be copied and pickled.
    """

    __slots__ = ("module",)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        self.module.training = False
        for child in self.module.children():
            child.train(mode)
        return self.module
