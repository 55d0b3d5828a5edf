"""Find the config keys whose field has a mark, such as `PUBLIC`, by the schema."""

import typing
from functools import cache
from typing import Any

from pydantic import BaseModel

from finetune.config.written import Written
from finetune.errors import Key


def is_marked(mark: str, hint: Any, key: Key, here: Written | None) -> bool:
    """Tell whether a key, looked up below a type of the schema, leads to a field with `mark`.

    Args:
        mark: The mark, as given in `Annotated`.
        hint: Type of the value at the present place, by the schema.
        key: The rest of the key.
        here: The value written there; it decides which node of a union is meant.
    """
    if key and isinstance(key[0], int):
        return is_marked(mark, hint, key[1:], here and here.entry(key[0]))
    if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
        if mark in getattr(hint, "__metadata__", ()) and not key:
            return True
        # The names of entries in a dict are the user's, so that step of the key has no field.
        if typing.get_origin(hint) is dict:
            key = key[1:]
        return any(is_marked(mark, part, key, here) for part in typing.get_args(hint))
    if not key or not _is_meant(hint, here):
        return False
    return any(
        is_marked(mark, _hints(hint)[name], key[1:], here and here.entry(key[0]))
        for name, info in hint.model_fields.items()
        if (info.alias or name) == key[0]
    )


@cache
def names_of_marked(mark: str, node: type[BaseModel]) -> frozenset[str]:
    """Return the names of all fields with `mark`, in `node` and its subclasses."""
    own = {info.alias or name for name, info in node.model_fields.items() if mark in info.metadata}
    return frozenset(own).union(*(names_of_marked(mark, kind) for kind in node.__subclasses__()))


@cache
def _hints(node: type[BaseModel]) -> dict[str, Any]:
    return typing.get_type_hints(node, include_extras=True)


def _is_meant(node: type[BaseModel], written: Written | None) -> bool:
    """Tell whether a mapping is of a node's type; true if it or the node has no `type`."""
    info = node.model_fields.get("type")
    words = typing.get_args(info.annotation) if info is not None else ()
    given = written and written.entry("type")
    # Without a `type` the value is wrong anyway; until that is told it counts as any of the nodes.
    return not words or given is None or given.value in words
