"""The verb `cache`: list, verify or remove what is stored of the frozen prefix."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, assert_never

import typer

from finetune.cli.options import Json
from finetune.cli.output import results, size
from finetune.errors import FinetuneError
from finetune.visible import tell, tell_json

if TYPE_CHECKING:
    from finetune.store.directory import Entry


def cache_command(
    action: Annotated[
        Literal["ls", "verify", "clear"],
        typer.Argument(help="List stores, verify all their rows, or remove them."),
    ] = "ls",
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Beginnings of keys; all stores if left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show, verify or clear the activation cache, and the token ids kept beside it."""
    # numpy takes a while to load: `--help` must not wait for it
    from finetune.store.directory import cache_root, entries

    root = cache_root()
    with results() as out:
        rows = [_acted(action, root, entry) for entry in _chosen(entries(root), keys or ())]
        if as_json:
            tell_json({"root": str(root), "stores": rows}, out)
        else:
            _print_rows(rows, root, out)


def _chosen(found: "Sequence[Entry]", beginnings: Sequence[str]) -> "list[Entry]":
    """Return the stores whose keys begin as given, or all; raise if a beginning matches none."""
    for beginning in beginnings:
        if not any(entry.key.startswith(beginning) for entry in found):
            raise FinetuneError(
                f"no store begins with {beginning!r}", hint="`finetune cache ls` lists all"
            )
    return [entry for entry in found if entry.key.startswith(tuple(beginnings) or "")]


def _acted(action: Literal["ls", "verify", "clear"], root: Path, entry: "Entry") -> dict[str, Any]:
    """Apply an action to one store; return its result as plain data."""
    row: dict[str, Any] = {"key": entry.key, "size_bytes": entry.size_bytes}
    match action:
        case "ls":
            return row | _facts(entry)
        case "verify":
            # torch takes seconds to load, and only this action needs it
            from finetune.data.sources.kept_table import audit_table, is_table
            from finetune.store.audit import audit

            found = audit_table(root, entry) if is_table(entry) else audit(root, entry)
            counts = {"whole": found.whole, "damaged": found.damaged}
            return row | counts | {"notes": list(found.notes)}
        case "clear":
            from finetune.store.directory import remove_store

            return row | {"removed": remove_store(root, entry.key)}
        case _:
            assert_never(action)


def _facts(entry: "Entry") -> dict[str, Any]:
    """Return what is known about a store, as plain data."""
    used = datetime.fromtimestamp(entry.last_used).astimezone().isoformat(" ", "minutes")
    about: dict[str, Any] = {"last_used": used, "in_use": entry.in_use, "readable": False}
    # A store of another version, or a damaged one, is listed too: it takes space that can be freed.
    if entry.meta is None:
        return about
    about |= {"readable": True, "samples": entry.meta.layout.num_rows, "torch": entry.meta.torch}
    return about | {"facts": dict(entry.meta.facts)}


def _print_rows(rows: Sequence[dict[str, Any]], root: Path, out: TextIO) -> None:
    """Print one line per store, and a line with their number and total size."""
    for row in rows:
        tell(f"{row['key']}  {size(row['size_bytes']):>9}  {_told(row)}", out)
    total = size(sum(row["size_bytes"] for row in rows))
    stores = "1 store" if len(rows) == 1 else f"{len(rows)} stores"
    tell(f"{stores}, {total}, in {root}", out)


def _told(row: dict[str, Any]) -> str:
    """Return the result for one store as text."""
    match row:
        case {"removed": removed}:
            return "removed" if removed else "kept: a process has it open"
        case {"whole": whole, "damaged": damaged, "notes": notes}:
            return "; ".join([f"{whole:,} rows whole, {damaged:,} damaged", *notes])
        case {"readable": False}:
            return "meta.json cannot be read: everything is recomputed"
        case _:
            open_now = ", in use" if row["in_use"] else ""
            facts = "".join(f", {name} {value}" for name, value in row["facts"].items())
            return f"{row['samples']:,} samples, last used {row['last_used']}{open_now}{facts}"
