"""Settings of a run as trackers show them: first what a person varies, then the whole config."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.config.flat_keys import Setting, flattened
from finetune.freezing.plan import Plan

_MOST = 80
"""Letters of a setting; a longer one is cut, as it stands in the cell of a table."""
_PLAIN_NAMES = {
    "freeze.method": "Frozen",
    "optimizer.lr": "Learning rate",
    "optimizer.type": "Optimizer",
    "optimizer.weight_decay": "Decay",
    "train.batch_size": "Batch size",
    "train.epochs": "Epochs",
    "train.steps": "Steps",
}
"""Names of what a person varies, by the key of the config in whose place they stand."""


def settings_shown(plain: Mapping[str, Any], plan: Plan) -> dict[str, Setting]:
    """Return settings by name.

    Those that a person varies have names that begin with a capital: TensorBoard sorts by name, and
    capitals come before the small letters of the config's keys. It shows five unless asked for
    more, those that differ between the runs first. The others have their key of the config.

    Args:
        plain: The config as plain data, with secrets masked.
        plan: The phases, or the policy that makes them.
    """
    derived: dict[str, Setting] = {
        "Frozen": _cut(_frozen(plain.get("freeze"))),
        "Network": _cut(", ".join(map(_layer, plain["model"]["layers"]))),
        "Share frozen at first": _frozen_share(plan),
    }
    # Each setting once: a table of five columns has no room for a second rate.
    named = {
        _PLAIN_NAMES.get(key, key): value
        for key, value in flattened(dict(plain)).items()
        if value != "None"
    }
    return named | derived


def _frozen(freeze: Mapping[str, Any] | None) -> str:
    """Return what is frozen: the method, or the selectors of each phase."""
    if freeze is None:
        return "nothing"
    if "method" in freeze:
        return str(freeze["method"])
    return " / ".join(_phase(phase) for phase in freeze["phases"])


def _phase(phase: Mapping[str, Any]) -> str:
    """Return the selectors of a phase as words."""
    train = phase.get("train")
    selectors: Sequence[Any] = phase.get("freeze") or () if train is None else train
    words = ", ".join(_selector(selector) for selector in selectors) or "nothing"
    return words if train is None else f"all but {words}"


def _selector(selector: Any) -> str:
    """Return a selector as text: a name alone as it is, anything else as JSON."""
    if isinstance(selector, Mapping) and list(selector) == ["name"]:
        return str(selector["name"])
    return json.dumps(selector)


def _frozen_share(plan: Plan) -> float:
    """Return the share of the parameters that are frozen in the first phase."""
    sizes = {param.name: param.numel for param in plan.inventory}
    frozen = plan.examples[0].frozen
    total = sum(sizes.values())
    # Four digits: equal networks must not seem to differ.
    return round(sum(size for name, size in sizes.items() if name in frozen) / (total or 1), 4)


def _layer(layer: Mapping[str, Any]) -> str:
    """Return the words for a layer: its architecture or path, else its type."""
    return str(layer.get("architecture") or layer.get("path") or layer["type"])


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
