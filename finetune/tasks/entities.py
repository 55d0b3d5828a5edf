"""Entities of a text: what tags of its words, such as `B-name`, `I-name` and `O`, say together."""

from collections.abc import Sequence
from typing import NamedTuple

OUTSIDE = "O"
"""Tag of a word that belongs to no entity."""
_FIRST = frozenset("BSU")
"""Prefixes of a word that begins an entity: also of one that is an entity alone (single, unit)."""
_LAST = frozenset("ESLU")
"""Prefixes of a word that ends an entity."""
_PREFIXES = _FIRST | _LAST | {"I"}


class Entity(NamedTuple):
    """One entity: its type, and its words from `start` to before `end`."""

    label: str
    start: int
    end: int


def other_tags(classes: Sequence[str]) -> list[str]:
    """Return the classes that are no tags of entities."""
    return [name for name in classes if name != OUTSIDE and _parts(name) is None]


def types_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the types of entities that classes of words are about, sorted."""
    parts = (_parts(name) for name in classes)
    return tuple(sorted({part[1] for part in parts if part is not None}))


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that the tags of a text's words mean, in their order.

    As `conlleval` reads them: a word with `I-` begins an entity unless the word before belongs to
    one of the same type, so tags without any `B-` can be read, and none is an error.
    """
    found: list[Entity] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, label = _parts(tag) or ("", "")
        if not prefix:
            is_open = False
            continue
        if is_open and prefix not in _FIRST and found[-1].label == label:
            found[-1] = found[-1]._replace(end=place + 1)
        else:
            found.append(Entity(label, place, place + 1))
        is_open = prefix not in _LAST
    return found


def _parts(tag: str) -> tuple[str, str] | None:
    """Return prefix and type of a tag; None for one that is no part of an entity."""
    # At the first dash only: a type may hold others, as in `B-date-of-birth`.
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and label and prefix in _PREFIXES else None
