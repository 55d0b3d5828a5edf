"""The optimizer and its parameter groups: one layout for the whole run, known by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.config.optim import OptimizerConfig
from finetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a rate."""

    name: str
    names: tuple[str, ...]
    lr: float


def make_groups(config: OptimizerConfig, names: Sequence[str]) -> tuple[Group, ...]:
    """Sort the parameters that ever train into groups of one rate."""
    return (Group("all", tuple(names), config.lr),)


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[Group], model: nn.Module
) -> Optimizer:
    """Build the optimizer over the parameters of the groups.

    Its layout never changes afterwards: a frozen parameter stays in its group without a gradient,
    which torch's optimizers skip, and gets its state only when it is first trained.

    Raises:
        ModelError: the optimizer does not take these parameters or arguments.
    """
    parameters = dict(model.named_parameters())
    layout = [
        {"params": [(name, parameters[name]) for name in group.names], "lr": group.lr}
        for group in groups
    ]
    kind = getattr(torch.optim, config.type)
    try:
        optimizer: Optimizer = kind(layout, lr=config.lr, **_tuples(config.arguments))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{config.type} refuses: {error}", key=("optimizer",)) from error
    return optimizer


def set_rates(optimizer: Optimizer, groups: Sequence[Group], factor: float) -> None:
    """Write each group's rate into the optimizer: its own peak times `factor`."""
    for slot, group in zip(optimizer.param_groups, groups, strict=True):
        slot["lr"] = group.lr * factor


def state_by_name(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state of each parameter under the parameter's name."""
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def load_state_by_name(optimizer: Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put each parameter's state in place by name; a parameter without one starts afresh.

    torch's own `load_state_dict` goes by position: it would swap the state of two parameters that
    changed places without a word.

    Raises:
        KeyError: `state` names a parameter that the optimizer does not hold.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    optimizer.state.clear()
    for name, values in state.items():
        optimizer.state[parameters[name]] = dict(values)


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists where torch wants tuples, as in `betas`."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
