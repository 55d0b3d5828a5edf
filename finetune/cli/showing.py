"""The verb that explains what a config may hold: show."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options import Json
from finetune.terminal import console_for, print_lines
from finetune.visible import tell, tell_json

if TYPE_CHECKING:
    from finetune.config.reference import Explained, KeyFacts

_SHOWN = 40
"""Found entries that are listed; more of them are counted."""


def show_command(
    name: Annotated[
        str | None,
        typer.Argument(help="A kind, a name, a key such as freeze.phases.until, or a word."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain layers, transforms, metrics, losses, methods, keys of this version."""
    # the schema takes longer to load than `--help` may take
    from finetune.config.hints import places_of
    from finetune.config.reference import entries, keys_at, kinds, nearest
    from finetune.config.run import RunConfig

    root = _schema()
    known = entries(root)
    if name is None or name in kinds():
        found = [entry for entry in known if name in (None, entry.kind)]
        _kinds(found, as_json=as_json, in_full=name is not None)
        return
    exact = [entry for entry in known if entry.name.lower() == name.lower()]
    # A key may be named by its last part, or by the word that another tool has for it.
    is_known = bool(exact or keys_at(root, name))
    places = [name] if is_known else places_of(name, RunConfig)
    keys = [(place, key) for place in places for key in keys_at(root, place)]
    some = [] if is_known else [e for e in known if name.lower() in _all_text(e)]
    if not (exact or keys or some):
        raise nearest(root, name, known)
    if as_json:
        document = {"name": name, "entries": [*map(asdict, exact or some)]}
        tell_json(document | {"keys": [asdict(key) for _, key in keys]}, sys.stdout, indent=1)
        return
    for entry in exact:
        _entry(entry)
    for place, key in keys:
        _key(place, key)
    _found(name, some)


def _all_text(entry: "Explained") -> str:
    """Return all that is said of an entry, in small letters."""
    keys = (f"{key.name} {key.text}" for key in entry.keys)
    return " ".join([entry.name, entry.text, *keys]).lower()


@cache
def _schema() -> dict[str, Any]:
    """Return the schema, which takes seconds to make."""
    from finetune.config.schema import schema

    return schema()


def _kinds(found: "Sequence[Explained]", *, as_json: bool, in_full: bool) -> None:
    """List entries by kind."""
    by_kind: dict[str, list[Explained]] = {}
    for entry in found:
        by_kind.setdefault(entry.kind, []).append(entry)
    if as_json:
        plain = {kind: [entry.name for entry in some] for kind, some in by_kind.items()}
        tell_json(plain, sys.stdout, indent=1)
        return
    for kind, some in by_kind.items():
        tell(f"{kind} ({some[0].place}): {len(some)}", sys.stdout)
        if in_full:
            _list(some)
            continue
        tell(f"  {', '.join(entry.name for entry in some)}", sys.stdout)
    tell("finetune show NAME explains one of them, or a key such as train.epochs", sys.stdout)


def _list(some: "Sequence[Explained]") -> None:
    """List entries, each with the first sentence of its text."""
    lines = [(f"  {entry.name}", _first(entry.text) + _lacking(entry)) for entry in some]
    print_lines(lines, console_for(sys.stdout))


_END = re.compile(r"(?<!\bal)\. ")
"""Ends a sentence; the point of `et al.` ends none."""


def _first(text: str) -> str:
    """Return the first sentence of a text."""
    return _END.split(text, maxsplit=1)[0].removesuffix(".")


def _lacking(entry: "Explained") -> str:
    """Return which package an entry lacks; empty if none."""
    return "" if entry.lacks is None else f" (needs {entry.lacks}, which is not installed)"


def _entry(entry: "Explained") -> None:
    """Explain one entry."""
    tell(f"{entry.name}, one of {entry.kind} ({entry.place}){_lacking(entry)}", sys.stdout)
    tell(f"  {entry.text}", sys.stdout)
    tell(f"  {entry.yaml}", sys.stdout)
    lines = [
        (f"    {key.name}", f"{_about(key)}{key.text and ': '}{key.text}") for key in entry.keys
    ]
    print_lines(lines, console_for(sys.stdout))


def _about(key: "KeyFacts") -> str:
    """Return what a key takes, and its default."""
    if key.is_required:
        return f"{key.takes}; needed"
    return key.takes if key.default is None else f"{key.takes}; {key.default} if left out"


def _key(place: str, key: "KeyFacts") -> None:
    """Explain one key."""
    tell(f"{place}: {_about(key)}", sys.stdout)
    tell(f"  {key.text}", sys.stdout)


def _found(name: str, some: "Sequence[Explained]") -> None:
    """List entries whose name or text holds a word."""
    if not some:
        return
    tell(f"{len(some)} with {name!r}:", sys.stdout)
    _list(some[:_SHOWN])
    if len(some) > _SHOWN:
        tell(f"  and {len(some) - _SHOWN} more", sys.stdout)
