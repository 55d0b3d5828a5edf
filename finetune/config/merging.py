"""Lay one document over another, for `extends`, and set single values in one, for `-o`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from finetune.config.messages import shown
from finetune.config.written import Written, dotted, is_short
from finetune.errors import Key, Origin, Problem

_SAY_THE_KIND = ("type", "method")
_THE_KIND = (*_SAY_THE_KIND, "phases")
"""Keys that are replaced because the kind changes, not along with it."""
_USUAL_KINDS = {"schedule": "constant"}
"""By section: the kind of a mapping that does not say its `type`."""
_ALTERNATIVES = (
    frozenset({"epochs", "steps", "fraction", "plateau"}),
    frozenset({"log", "step"}),
)
"""Keys of which a mapping has one: how long something lasts or how often it happens, and how the
values of a range are spread."""
_INSTEAD: dict[str, dict[str, frozenset[str]]] = {
    "freeze": {
        "method": frozenset({"phases"}),
        "phases": frozenset({"method"}),
    },
    "data": {
        "source": frozenset({"train", "validation", "test"}),
        "train": frozenset({"source", "split"}),
    },
    # What belongs to a plateau goes with it.
    "until": dict.fromkeys(
        ("epochs", "steps", "fraction"), frozenset({"patience", "min_delta", "at_most"})
    ),
    "split": {
        "by": frozenset({"validation", "test", "group", "folds", "fold", "stratify", "copies"}),
        "folds": frozenset({"validation", "by"}),
        "validation": frozenset({"folds", "fold", "by"}),
        "test": frozenset({"by"}),
    },
    "schedule": {"every": frozenset({"at"}), "at": frozenset({"every"})},
}
"""By section: keys, each with those that say the same thing in another way."""
_OF_EVERY_METHOD = frozenset({"verify", "modules"})
"""Keys of `freeze` that do not depend on its method."""
_NAMED_BY_USERS = ("columns", "rename", "lr")
"""Sections whose keys are names of columns, tensors or layers: none of them excludes another."""


class Replaced(NamedTuple):
    """A mapping that another one of another kind has replaced.

    Args:
        above: Origin of the mapping that is kept.
        below: Origin of the mapping that is gone.
        lost: Origin of each key that went with it, by name.
    """

    above: Origin
    below: Origin
    lost: dict[str, Origin]


def merge(
    below: Written, above: Written, replaced: list[Replaced] | None = None, key: Key = ()
) -> Written:
    """Return one document laid over another: mappings are merged, all else is replaced.

    A mapping of another kind is replaced too, since its keys do not fit: `type` or `method`
    differs, an import names other code, or `phases` replace a `method` or the other way round. Of
    keys that exclude each other (`epochs` and `steps`, `folds` and `validation`) only those in
    `above` are kept. Below `args`, keys are names of arguments, which do not make a kind.

    Args:
        below: The document that is extended.
        above: The one laid over it.
        replaced: Receives each mapping of another kind that is gone with keys of its own.
        key: The key that both are the values of.
    """
    section = str(key[-1]) if key else ""
    if isinstance(above.value, dict) and key == ("freeze",) and is_short(below):
        # `verify` and `modules` go with any form.
        below = _written_out(below)
    if isinstance(below.value, dict) and key == ("freeze",) and is_short(above):
        _note_replaced(below, above, [] if replaced is None else replaced, key)
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    if _is_another_kind(below, above, section):
        _note_replaced(below, above, [] if replaced is None else replaced, key)
        return above
    # A base that says `epochs` and a file that says `steps` would contradict each other.
    given_up = _excluded_by(above.value, section)
    merged = {name: item for name, item in below.value.items() if name not in given_up}
    for name, item in above.value.items():
        # An argument may itself be called `type`, and changing it does not make the others void.
        if name not in merged:
            merged[name] = item
        elif name == "args":
            merged[name] = _merge_arguments(merged[name], item)
        else:
            merged[name] = merge(merged[name], item, replaced, (*key, name))
    return replace(above, value=merged)


def _note_replaced(below: Written, above: Written, replaced: list[Replaced], key: Key) -> None:
    """Add what is gone of a mapping to `replaced`: keys that `above` does not say anew."""
    assert isinstance(below.value, dict)
    lost = {
        name: item.origin((*key, name))
        for name, item in below.value.items()
        # A config that names every key has `null` for what it does not use.
        if item.value is not None and name not in _THE_KIND and above.entry(name) is None
    }
    if lost:
        replaced.append(Replaced(above.origin(key), below.origin(key), lost))


def _written_out(freeze: Written) -> Written:
    """Return the short form of `freeze` as one phase over the whole run."""
    phase: dict[str, Written] = {"name": replace(freeze, value="all", raw=None), "freeze": freeze}
    phases = replace(freeze, value=[replace(freeze, value=phase, raw=None)], raw=None)
    return replace(freeze, value={"phases": phases}, raw=None)


def _merge_arguments(below: Written, above: Written) -> Written:
    """Return arguments laid over arguments; a key such as `type` has no special meaning here."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, item in above.value.items():
        merged[key] = _merge_arguments(merged[key], item) if key in merged else item
    return replace(above, value=merged)


def _is_another_kind(below: Written, above: Written, section: str) -> bool:
    """Tell whether two mappings describe different kinds of node."""
    for key in (*_SAY_THE_KIND, *_said_by_imports(below)):
        old, new = below.entry(key), above.entry(key)
        usual = _USUAL_KINDS.get(section) if key == "type" else None
        before = usual if old is None else old.value
        if before is not None and new is not None and before != new.value:
            return True
    forms = (("phases", "method"), ("method", "phases"))
    return any(below.entry(old) and above.entry(new) for old, new in forms)


def _said_by_imports(below: Written) -> tuple[str, ...]:
    """Return the key that names the code of an import: arguments for one function fit no other."""
    kind = below.entry("type")
    return ("path",) if kind is not None and kind.value == "import" else ()


def _excluded_by(above: Mapping[str, Written], section: str) -> frozenset[str]:
    """Return the keys that must not be kept beside those of `above`, in a section of the config."""
    # A config that names every key has `null` for what it does not use.
    said = {key for key, item in above.items() if item.value is not None}
    said -= {key for key in ("log",) if key in above and above[key].value is False}
    if section in _NAMED_BY_USERS:
        return frozenset()
    instead = _INSTEAD.get(section, {})
    given_up = frozenset[str]().union(*(instead.get(key, ()) for key in said))
    for alternatives in _ALTERNATIVES:
        if len(said & alternatives) == 1:
            given_up |= alternatives - said
    return given_up


def put(
    root: Written, key: Sequence[str], item: Written, given_up: list[Origin] | None = None
) -> Written | Problem:
    """Return `root` with `item` at `key`, or the problem that prevents it. Nothing is mutated.

    Missing mappings on the way are made. What a file says and `item` excludes is taken away, as in
    `merge`.

    Args:
        root: The document.
        key: Where the value goes.
        item: The value.
        given_up: Receives the origin of each key that is taken away.
    """
    return _put(root, tuple(key), 0, item, [] if given_up is None else given_up)


def _put(
    here: Written, key: tuple[str, ...], depth: int, item: Written, given_up: list[Origin]
) -> Written | Problem:
    """Return `here` with `item` at the part of the key from `depth` on, or the problem."""
    if depth == len(key):
        return item
    step = key[depth]
    if key[:depth] == ("freeze",) and is_short(here):
        here = _opened_freeze(here, step, given_up)
    if isinstance(here.value, list):
        return _put_in_list(here, here.value, key, depth, item, given_up)
    if here.value is None:
        here = replace(item, value={})
    if not isinstance(here.value, dict):
        message = f"{dotted(key[:depth])} holds no keys, but {shown(here.value)}"
        return Problem(Origin(None, None, dotted(key)), message)
    below = _put(here.value.get(step) or replace(item, value=None), key, depth + 1, item, given_up)
    if isinstance(below, Problem):
        return below
    kept = _without_excluded(here.value, {step: below}, key[:depth], given_up)
    return replace(here, value={**kept, step: below})


def _opened_freeze(here: Written, step: str, given_up: list[Origin]) -> Written:
    """Return `freeze` in its short form as a mapping in which an override can set a key."""
    if step in _OF_EVERY_METHOD:
        return _written_out(here)
    if step not in _INSTEAD["freeze"]:
        return here
    # One phase, which the override replaces by another form.
    given_up.append(here.origin(("freeze",)))
    return replace(here, value={}, raw=None)


def _without_excluded(
    entries: dict[str, Written], above: Mapping[str, Written], key: Key, given_up: list[Origin]
) -> dict[str, Written]:
    """Return the entries at `key` without those of a file that `above` excludes."""
    # Below `args`, keys are names of arguments.
    section = str(key[-1]) if key else ""
    excluded = frozenset[str]() if "args" in key else _excluded_by(above, section)
    excluded |= _of_another_method(entries, above, key)
    # Two overrides that exclude each other are a mistake, which is told later.
    gone = {
        name
        for name, entry in entries.items()
        if name in excluded and entry.file is not None and entry.value is not None
    }
    given_up += [entries[name].origin((*key, name)) for name in entries if name in gone]
    return {name: entry for name, entry in entries.items() if name not in gone}


def _of_another_method(
    entries: Mapping[str, Written], above: Mapping[str, Written], key: Key
) -> frozenset[str]:
    """Return the keys of a freezing method that another one does not share."""
    old, new = entries.get("method"), above.get("method")
    if tuple(key) != ("freeze",) or old is None or new is None or old.value == new.value:
        return frozenset()
    return frozenset(entries.keys() - _OF_EVERY_METHOD - {"method"})


def _put_in_list(
    here: Written,
    entries: list[Written],
    key: tuple[str, ...],
    depth: int,
    item: Written,
    given_up: list[Origin],
) -> Written | Problem:
    """Return a list with `item` at the part of the key from `depth` on, or the problem."""
    step = key[depth]
    # Compared as text: `int` would also take "-1", "1_0" and digits of other scripts.
    position = next((n for n in range(len(entries)) if str(n) == step), None)
    if position is None:
        message = f"{dotted(key[:depth])} is a list of {len(entries)}; no position {step!r} in it"
        return Problem(Origin(None, None, dotted(key)), message)
    below = _put(entries[position], key, depth + 1, item, given_up)
    if isinstance(below, Problem):
        return below
    return replace(here, value=[*entries[:position], below, *entries[position + 1 :]])
