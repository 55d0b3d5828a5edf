"""Write a config as YAML that loads to an equal one, without its secrets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.config.base import Node
from finetune.config.places import keep_places, named_folder
from finetune.config.reader import resolve
from finetune.config.run import RunConfig
from finetune.config.secrets import escaped, masked, with_references
from finetune.config.written import Written

# Written first, since a reader looks for them first.
_FIRST = ("name", "type")


def dump_config(config: RunConfig, into: Path | None = None) -> str:
    """Return the config as YAML that loads to an equal one: complete, with secrets masked.

    Values under a key that names a secret (`hf_token`, `password`), in `args` or in a node, become
    `***`; values from the environment are written as `${env:NAME}` again.

    Args:
        config: The config.
        into: The folder that the text will be saved in; its paths are adapted to that.
    """
    plain = as_plain(config)
    named = named_folder(config.written or Written(None))
    folder = named or (config.path.parent if config.path is not None and into is not None else None)
    if folder is not None:
        keep_places(plain, config.places, folder)
        if into is None or os.path.realpath(folder) != os.path.realpath(into):
            name = {"name": plain["name"]} if "name" in plain else {}
            # Near the top, where somebody who moves the file will see it.
            plain = name | {"folder": escaped(str(folder.resolve()))} | plain
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def as_plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars, with secrets masked."""
    written = config.written or Written(None)
    plain: dict[str, Any] = with_references(_plain(config), written, type(config))
    return plain


def _plain(value: Any) -> Any:
    """Return a config value as dicts, lists and scalars, leaving out None where it is the default."""
    if isinstance(value, Node):
        fields = sorted(type(value).model_fields.items(), key=lambda one: one[0] not in _FIRST)
        written = {
            info.alias or name: _plain_field(name, getattr(value, name))
            for name, info in fields
            if getattr(value, name) is not None or info.default is not None
        }
        return written | {
            name: _plain_field(name, item) for name, item in (value.model_extra or {}).items()
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _plain_field(name: str, value: Any) -> Any:
    """Return a field's plain value with secrets masked; below `args` any key may name a secret."""
    plain = _plain(value)
    return masked(plain, name) if name == "args" or not isinstance(plain, dict | list) else plain


class _Dumper(yaml.SafeDumper):
    """Writes YAML that readers of versions 1.1 and 1.2 understand alike."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True, so that equal values are written out and not as aliases."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Return a text as a YAML scalar, quoted where it could be read as another type."""
    is_plain = isinstance(resolve(value), str) and value.isprintable()
    # None lets PyYAML decide, which quotes what YAML 1.1 would not read as text (`no`, `on`).
    style = None if is_plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
