"""A config as written: values that know their file and line, and how to find them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.errors import Key, Origin

Scalar = str | int | float | bool | None

FORMS_OF_FREEZE = ("written out", "by method")
"""Tags that pydantic adds behind `freeze`; no file contains them."""


@dataclass(frozen=True, slots=True)
class Written:
    """A value, with the file and line it was written at.

    Args:
        value: A scalar, or entries that are `Written` themselves.
        file: The file; None for an override.
        line: Line of the value, or of its key if it has one, from 1; None for an override.
        raw: The text as written, if environment variables were put into it.
        number: The characters of a number, such as `1.50`.
    """

    value: "Scalar | dict[str, Written] | list[Written]"
    file: Path | None = None
    line: int | None = None
    raw: str | None = None
    number: str | None = None

    def entry(self, step: str | int) -> "Written | None":
        """Return the value at a key of a mapping or a position of a list, or None."""
        if isinstance(self.value, dict):
            return self.value.get(step) if isinstance(step, str) else None
        if isinstance(self.value, list) and isinstance(step, int):
            return self.value[step] if 0 <= step < len(self.value) else None
        return None

    def without(self, name: str) -> "Written":
        """Return a mapping without one of its keys."""
        assert isinstance(self.value, dict)
        rest = {key: item for key, item in self.value.items() if key != name}
        return Written(rest, self.file, self.line)

    def plain(self) -> Any:
        """Return the value without lines, as dicts, tuples and scalars."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return tuple(item.plain() for item in self.value)
        return self.value

    def origin(self, key: Key) -> Origin:
        """Return the origin of this value, under the name `key`."""
        return Origin(self.file, self.line, dotted(key))


def dotted(key: Key) -> str:
    """Return a key as `model.layers.1.type`, on one line whatever characters a file has in keys."""
    return ".".join(_readable(str(step)) for step in key)


def _readable(step: str) -> str:
    """Return one part of a key, escaped and cut for a message."""
    if not step.isprintable():
        step = repr(step)[1:-1]
    # A stranger's file may have a key of any length, and a message has one line.
    return step if len(step) <= 80 else f"{step[:77]}..."


def is_short(freeze: Written) -> bool:
    """Tell whether `freeze` is in its short form: a list of selectors, or a single name."""
    return isinstance(freeze.value, list | str)


def scalars(written: Written, key: Key = ()) -> Iterator[tuple[Key, Written]]:
    """Yield each value below that is neither a mapping nor a list, with its key."""
    if isinstance(written.value, dict):
        for name, item in written.value.items():
            yield from scalars(item, (*key, name))
    elif isinstance(written.value, list):
        for place, item in enumerate(written.value):
            yield from scalars(item, (*key, place))
    elif key:
        yield key, written


def replaced_at(root: Written, key: Key, item: Written) -> Written:
    """Return `root` with `item` in place of the value at `key`. Nothing is mutated."""
    if not key:
        return item
    step, here = key[0], root.entry(key[0])
    if here is None:
        return root
    below = replaced_at(here, key[1:], item)
    if isinstance(root.value, dict):
        return replace(root, value={**root.value, str(step): below})
    assert isinstance(root.value, list)
    entries = [below if number == step else entry for number, entry in enumerate(root.value)]
    return replace(root, value=entries)


def locate(root: Written, key: Key) -> Origin:
    """Return the origin of a key: its own place, or that of its nearest ancestor."""
    key = as_written(root, key)
    here = root
    for step in key:
        entry = here.entry(step)
        if entry is not None:
            here = entry
        # A position where the file has no list: the short form of a list of one.
        elif not (isinstance(step, int) and isinstance(here.value, dict)):
            break
    return here.origin(key)


def locate_fault(root: Written, key: Key, *, absent: bool) -> Origin:
    """Return the origin of a fault, given the key that pydantic reports for it.

    Pydantic adds tags of unions to the key (`layers.1.torch.x`), and reports short forms by the
    key of their long form. Parts that the file does not have are skipped, except for the last one
    if it names something that is `absent`.
    """
    key = as_written(root, key)
    here, entry, found = root, None, list[str | int]()
    for step, following in zip_longest(key, key[1:]):
        entry = here.entry(step)
        # The tag of a selector is one of its own keys: `depth` in `{depth: -1, other: 2}`.
        is_tag = entry is not None and not isinstance(entry.value, dict | list)
        if is_tag and following is not None and here.entry(following) is not None:
            continue
        if entry is not None:
            here = entry
            found.append(step)
    if absent and entry is None:
        found.extend(key[-1:])
    return here.origin(tuple(found))


def as_written(root: Written, key: Key) -> Key:
    """Return the key as the file has it, if `freeze` or `task` is in its short form."""
    key = tuple(step for step in key if step not in FORMS_OF_FREEZE)
    long_form = ("freeze", "phases", 0, "freeze")
    freeze = root.entry("freeze")
    if freeze is not None and is_short(freeze) and key[:2] == long_form[:2]:
        return ("freeze", *key[len(long_form) :])
    task = root.entry("task")
    if task is not None and isinstance(task.value, list) and key[:2] == ("task", "tasks"):
        return ("task", *key[2:])
    return key
