"""Plain data of a config as one level of dotted keys, such as `model.layers.0.name`."""

from typing import Any

Setting = str | int | float | bool
"""A value of a config at the end of a dotted key; what YAML has beside these is written as text."""


def flattened(value: Any, prefix: str = "") -> dict[str, Setting]:
    """Return nested plain data as one level of dotted keys."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str | int | float | bool) else str(value)}
    flat: dict[str, Setting] = {}
    for key, inner in items:
        flat |= flattened(inner, f"{prefix}.{key}" if prefix else key)
    return flat
