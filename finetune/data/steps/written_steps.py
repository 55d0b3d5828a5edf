"""Transforms as a config has them, in words."""

from collections.abc import Sequence
from typing import Any

from finetune.config.transform_keys import Transform


def in_words(nodes: Sequence[Transform]) -> str:
    """Return nodes as text, as a config has them on one line."""
    dumped = (node.model_dump(mode="json", exclude_none=True, by_alias=True) for node in nodes)
    return ", ".join(map(_flow, dumped))


def _flow(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    # As YAML writes them: `true`, and not the `True` of Python.
    return str(value).lower() if isinstance(value, bool) else str(value)
