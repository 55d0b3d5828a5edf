"""Write a config as commented YAML: one line for a layer, a source or a step."""

from collections.abc import Mapping
from typing import Any

import yaml

from finetune.config.secrets import escaped

SCHEMA_FILE = ".finetune-schema.json"
"""File beside the config that editors complete and check it by. Hidden, so it is no data."""
_WIDTH = 100


class _Flow(yaml.SafeDumper):
    """Writes values in one line each."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return true: two equal values are written twice."""
        return True


def config_text(config: Mapping[str, Any], comments: Mapping[str, str], first_line: str) -> str:
    """Return a config as YAML.

    Args:
        config: The config as plain data.
        comments: A comment for some of its top keys.
        first_line: What it is for; one line.
    """
    lines = [f"# yaml-language-server: $schema={SCHEMA_FILE}", f"# {first_line}", ""]
    for key, value in config.items():
        if key in comments:
            lines.append(f"# {comments[key]}")
        lines += _written(key, value, 0)
    return "\n".join(lines) + "\n"


def _written(key: str, value: Any, depth: int) -> list[str]:
    """Return the lines of one key: in one line if it is short or deep, else a line per entry."""
    space = "  " * depth
    line = f"{space}{_flow(key)}: {_flow(value)}"
    if isinstance(value, list) and value and isinstance(value[0], dict) and depth:
        lines = [f"{space}{key}:"]
        for entry in value:
            lines += _entry(entry, depth)
        return lines
    has_layers = isinstance(value, dict) and any(
        isinstance(inner, dict | list) and key in ("model", "data", "freeze")
        for inner in value.values()
    )
    if isinstance(value, dict) and (has_layers or (len(line) > _WIDTH and depth < 2)):
        return [f"{space}{key}:", *(
            line for name, inner in value.items() for line in _written(name, inner, depth + 1)
        )]  # fmt: skip
    return [line]


def _entry(entry: Any, depth: int) -> list[str]:
    """Return the lines of an entry of a list."""
    space = "  " * (depth + 1)
    line = f"{space}- {_flow(entry)}"
    if len(line) <= _WIDTH or not isinstance(entry, dict):
        return [line]
    first, *rest = (f"{_flow(key)}: {_flow(value)}" for key, value in entry.items())
    return [f"{space}- {first}", *(f"{space}  {item}" for item in rest)]


def _flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    # As wide as need be: what has a line of its own is decided here, YAML would break lines
    # anywhere.
    text: str = yaml.dump(
        value,
        Dumper=_Flow,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
    # A column called `${env:HOME}` is no reference to a variable. YAML ends a single word by `...`.
    return escaped(text.removesuffix("\n").removesuffix("\n..."))
