"""The optimizer and its parameter groups: one layout for the whole run, state by name."""

import inspect
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.config.optim import OptimizerConfig
from finetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share rate and weight decay, and are always frozen or trained together."""

    name: str
    names: tuple[str, ...]
    decays: bool
    """Whether the optimizer's weight decay acts on them."""

    def is_trained(self, trained: Container[str]) -> bool:
        """Tell whether a phase trains the group, given all names that it trains."""
        return self.names[0] in trained


def weight_decay_of(config: OptimizerConfig) -> float:
    """Return the weight decay of an optimizer: as given, or its default; 0 if it has none."""
    # Defaults differ from optimizer to optimizer, so they are read off the class.
    known = inspect.signature(getattr(torch.optim, config.type)).parameters.get("weight_decay")
    return float(config.arguments.get("weight_decay", known.default if known else 0.0))


def make_groups(
    names: Sequence[str],
    fates: Mapping[str, object],
    undecayed: Collection[str] = (),
) -> tuple[Group, ...]:
    """Sort the parameters that ever train into groups.

    Args:
        names: Names of the parameters, in the model's order.
        fates: For each name, a value that names of one group share: its rates in all phases, say.
            Values are compared by `repr`.
        undecayed: Names without weight decay.
    """
    sorted_: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        key = name not in undecayed, repr(fates.get(name))
        sorted_.setdefault(key, []).append(name)
    labels = _labels(list(sorted_.values()))
    return tuple(
        Group(label, tuple(members), key[0])
        for label, (key, members) in zip(labels, sorted_.items(), strict=True)
    )


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[Group], parameters: Mapping[str, nn.Parameter]
) -> Optimizer:
    """Build the optimizer over the parameters of the groups.

    Its layout never changes afterwards: a frozen parameter stays in its group without a gradient,
    which torch's optimizers skip, and gets its state only when it is first trained.

    Args:
        config: Type and arguments of the optimizer.
        groups: Its layout.
        parameters: The parameters and the row slices, by name.

    Raises:
        ModelError: the optimizer does not take these parameters or arguments.
    """
    layout: list[dict[str, Any]] = []
    for group in groups:
        members = [(name, parameters[name]) for name in group.names]
        layout.append({"params": members} | ({} if group.decays else {"weight_decay": 0.0}))
    kind = getattr(torch.optim, config.type)
    _refuse_other_lengths(kind, config.arguments)
    try:
        optimizer: Optimizer = kind(layout, lr=config.lr, **_tuples(config.arguments))
    # torch's optimizers check arguments as they are built, and raise any of these.
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"{config.type} refuses: {error}", key=("optimizer",)) from error
    return optimizer


def explained_step(optimizer: Optimizer, error: Exception) -> Exception:
    """Return an error that names the rate if a step overflowed; else return `error`.

    Python raises for a power beyond float64, torch for a factor beyond float32.
    """
    # torch raises a plain RuntimeError, which is known by its text only.
    if not isinstance(error, OverflowError) and "without overflow" not in str(error):
        return error
    rate = max(group["lr"] for group in optimizer.param_groups)
    return ModelError(
        f"a step of {type(optimizer).__name__} at the rate {rate:g} overflows",
        hint="try a lower optimizer.lr",
        key=("optimizer", "lr"),
    )


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Write one rate for each group into the optimizer."""
    for slot, rate in zip(optimizer.param_groups, rates, strict=True):
        slot["lr"] = rate


def state_by_name(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state of each parameter under the parameter's name."""
    return {
        name: optimizer.state[parameter]
        for name, parameter in _named(optimizer).items()
        if parameter in optimizer.state
    }


def load_state_by_name(optimizer: Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put each parameter's state in place by name; a parameter without one starts afresh.

    torch's own `load_state_dict` goes by position: it would silently swap the state of two
    parameters that changed places.

    Raises:
        KeyError: `state` names a parameter that the optimizer does not hold.
    """
    parameters = _named(optimizer)
    # A parameter without state in the checkpoint must not keep the state of a later step.
    optimizer.state.clear()
    for name, values in state.items():
        optimizer.state[parameters[name]] = dict(values)


def drop_state(optimizer: Optimizer, names: Collection[str]) -> None:
    """Delete the state of the named parameters, which frees its memory."""
    for name, parameter in _named(optimizer).items():
        if name in names:
            optimizer.state.pop(parameter, None)


def reset_state(optimizer: Optimizer, names: Collection[str]) -> None:
    """Reset the state of the named parameters to that of a new optimizer.

    Most optimizers make it in a parameter's first step; Adagrad makes it when it is built.
    """
    drop_state(optimizer, names)
    make: Callable[..., Optimizer] = type(optimizer)
    for group in optimizer.param_groups:
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if name in names:
                # A second optimizer over this parameter alone makes the state as the constructor
                # does.
                twin = make([settings | {"params": [parameter]}])
                optimizer.state.update(twin.state)


def _named(optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return all parameters of the optimizer by name."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def _labels(members: Sequence[Sequence[str]]) -> list[str]:
    """Name each group by what its members share; `all` if there is one group only."""
    if len(members) == 1:
        return ["all"]
    labels: list[str] = []
    for names in members:
        label = _common_prefix(names) or "rest"
        # Groups that differ in rate or decay only may share a prefix; a number tells them apart.
        twins = sum(1 for other in labels if other == label or other.startswith(f"{label}."))
        labels.append(f"{label}.{twins}" if label in labels else label)
    return labels


def _common_prefix(names: Sequence[str]) -> str:
    """Return the longest run of leading segments that all names share."""
    shared: list[str] = []
    for segments in zip(*(name.split(".") for name in names), strict=False):
        if len(set(segments)) > 1:
            break
        shared.append(segments[0])
    return ".".join(shared)


def _refuse_other_lengths(kind: type[Optimizer], arguments: Mapping[str, Any]) -> None:
    """Raise where a list such as `betas` is longer or shorter than torch's own default.

    torch takes it, and fails at an index or in the first step.
    """
    known = inspect.signature(kind).parameters
    for name, value in arguments.items():
        usual = known[name].default if name in known else None
        if isinstance(usual, tuple) and isinstance(value, list) and len(value) != len(usual):
            raise ModelError(
                f"needs {len(usual)} numbers, got {value!r}",
                hint=f"{name}: {[*usual]} is the default",
                key=("optimizer", name),
            )


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists of YAML into the tuples that torch wants, as in `betas`."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
