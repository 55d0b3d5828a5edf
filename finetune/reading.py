"""Read what comes from outside within limits: JSON, safetensors headers, paths in a folder."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from finetune.disk import open_to_read, reason_of
from finetune.errors import FinetuneError, named

MAX_JSON_BYTES = 64 * 2**20
"""Most bytes of a JSON document, or characters of one line of a file of JSON lines."""
MAX_JSON_DEPTH = 64
"""Most lists and objects nested in each other."""
MAX_HEADER_BYTES = 16 * 2**20
"""Most bytes of the header of a safetensors file. Its own library reads up to 100 MB."""

_NO_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^"\[\]{}]+')
"""Matches whole strings, with the brackets inside them, and all between. Needs valid JSON."""
_OF_ONE_KIND = str.maketrans("[{]}", "(())")


class TwiceError(ValueError):
    """A JSON object has two values for one key. Python's own reader keeps the last one."""


POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the small text that stands for a file where Git LFS has not fetched it."""
A_POINTER = "a pointer of Git LFS, not the file itself (`git lfs pull` fetches it)"


def is_pointer(path: Path) -> bool:
    """Tell whether a file is only a pointer of Git LFS; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def keys_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of these pairs.

    Raises:
        TwiceError: a key is there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise TwiceError(key)
        found[key] = value
    return found


_OF_DATA = json.JSONDecoder(object_pairs_hook=keys_once)
"""Decoder for training data, where nobody can tell which of two values for a key is meant."""


def read_json(path: Path) -> Any:
    """Read a file that holds one JSON document.

    Raises:
        FinetuneError: it is missing, no regular file, no JSON, or exceeds a limit.
    """
    return parse_json(read_raw_json(path), str(path))


def read_raw_json(path: Path) -> bytes:
    """Return the bytes of a file that should hold JSON; of one over the limit not all of them.

    Raises:
        FinetuneError: it is missing, or no regular file.
    """
    where = str(path)
    try:
        # To open a pipe would wait for somebody who writes to it.
        if path.exists() and not path.is_file():
            raise FinetuneError("is no regular file", where=where)
        with path.open("rb") as file:
            return read_at_most(file, MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FinetuneError(f"cannot be read: {reason.lower()}", where=where) from error


def read_own_json(path: Path) -> Any:
    """Read a JSON document that a run wrote. A link in its place is not followed.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
        ValueError: it is no JSON, or exceeds a limit.
    """
    with open_to_read(path) as file:
        raw = read_at_most(file, MAX_JSON_BYTES)
    try:
        return parse_json(raw, str(path))
    except FinetuneError as error:
        raise ValueError(error.message) from error


def read_at_most(file: BinaryIO, limit: int) -> bytes:
    """Return the contents of a regular file; if it is larger, `limit` + 1 bytes of it.

    To ask for `limit` bytes at once would allocate them, however small the file is.
    """
    return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        FinetuneError: it is missing, holds something else, or exceeds a limit.
    """
    return _object(read_json(path), str(path))


def parse_json(text: str | bytes, where: str, *, is_data: bool = False) -> Any:
    """Return the value that a JSON text holds.

    Args:
        text: The text, as characters or as UTF-8.
        where: Where it comes from, for messages.
        is_data: Whether an object with the same key twice is refused.

    Raises:
        FinetuneError: it is no JSON, or exceeds a limit.
    """
    if len(text) > MAX_JSON_BYTES:
        raise FinetuneError(f"holds more than {MAX_JSON_BYTES >> 20} MiB of JSON", where=where)
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = _OF_DATA.decode(text) if is_data else json.loads(text)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise _no_json(error, where) from error
    # After parsing: only valid JSON is known to have its brackets outside of strings in pairs.
    if _depth(text) > MAX_JSON_DEPTH:
        raise _too_deep(where)
    return value


def parse_json_at(text: str, start: int, where: str) -> tuple[Any, int]:
    """Return the value of the JSON that begins at a position, and the position after it.

    Args:
        text: The text; anything may follow the JSON.
        start: Where the JSON begins, no blanks before it.
        where: Where it comes from, for messages.

    Raises:
        FinetuneError: it is no JSON, or exceeds a limit.
    """
    try:
        value, end = _OF_DATA.raw_decode(text, start)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise _no_json(error, where) from error
    if end - start > MAX_JSON_BYTES:
        raise FinetuneError(f"holds more than {MAX_JSON_BYTES >> 20} MiB of JSON", where=where)
    if _depth(text[start:end]) > MAX_JSON_DEPTH:
        raise _too_deep(where)
    return value, end


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object that a text holds.

    Raises:
        FinetuneError: it holds something else, or exceeds a limit.
    """
    return _object(parse_json(text, where, is_data=True), where)


def limited_lines(file: TextIO, name: str, before: int = 0) -> Iterator[tuple[int, str]]:
    """Yield each line of a text file with its number, from 1; refuse lines over a limit.

    Args:
        file: The file.
        name: What it is called in messages.
        before: How many of its lines were read already.

    Raises:
        FinetuneError: a line is too long.
    """
    number = before
    while line := file.readline(MAX_JSON_BYTES + 1):
        number += 1
        if len(line) > MAX_JSON_BYTES:
            message = f"is longer than {MAX_JSON_BYTES >> 20} MiB"
            raise FinetuneError(message, where=f"{name}:{number}")
        yield number, line


def check_safetensors(path: Path) -> None:
    """Check the length of a safetensors header, before anything parses the file.

    Raises:
        FinetuneError: it cannot be read, is no regular file, or its header is longer than the
            file or than the limit.
    """
    where = str(path)
    try:
        if path.exists() and not path.is_file():
            raise FinetuneError("is no regular file", where=where)
        with path.open("rb") as file:
            # The format begins with the header's length: 8 bytes, little-endian.
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        reason = reason_of(error)
        raise FinetuneError(f"cannot be read: {reason.lower()}", where=where) from error
    if length > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADER_BYTES >> 20} MiB are read"
        raise FinetuneError(f"has a header of {length} bytes; {limit}", where=where)
    if size < 8 + length:
        raise FinetuneError(f"ends inside its header, at byte {size}", where=where)


def first_outside(paths: Iterable[Path], folder: Path) -> int | None:
    """Return the index of the first path that leads out of `folder` by `..` or links; or None.

    A path that cannot be resolved counts as leading out.
    """
    # Both sides are resolved: the folder may be reached by a link itself.
    home = os.path.realpath(folder)
    # Most files share their folders: each of those is followed only once.
    lies_inside = cache(lambda path: _lies_inside(path, home))
    for position, path in enumerate(paths):
        is_own_end = path.is_symlink() or path.name == ".."
        # A link as the last step leads elsewhere by itself; any other file lies where its folder
        # does.
        if not lies_inside(path if is_own_end else path.parent):
            return position
    return None


def _lies_inside(path: Path, home: str) -> bool:
    """Tell whether a path, links resolved, lies in the folder `home`."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(home)
    except (OSError, ValueError):
        return False


def _depth(text: str) -> int:
    """Return how deep brackets are nested in valid JSON; 0 if there are too few to matter.

    Not more than one level above the limit is counted.
    """
    # Counting characters is far faster than to look at each bracket, and enough for most texts.
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return 0
    left, depth = _NO_BRACKETS.sub("", text).translate(_OF_ONE_KIND), 0
    # Each round removes the innermost pairs, so there are as many rounds as levels. A look at each
    # bracket takes four times as long, which a report on many runs does not have.
    while left and depth <= MAX_JSON_DEPTH:
        left, depth = left.replace("()", ""), depth + 1
    return depth


def _object(value: Any, where: str) -> dict[str, Any]:
    """Return a value that is a dict; raise `FinetuneError` for any other."""
    if not isinstance(value, dict):
        raise FinetuneError(f"needs a JSON object, got {type(value).__name__}", where=where)
    return value


def _no_json(error: ValueError, where: str) -> FinetuneError:
    """Return the error to raise for text that is not JSON, or has a key twice."""
    if isinstance(error, TwiceError):
        return FinetuneError(f"has the key {named([str(error)])} twice", where=where)
    reason = str(error).partition(":")[0].lower()
    return FinetuneError(f"not JSON: {reason}", where=where)


def _too_deep(where: str) -> FinetuneError:
    return FinetuneError(f"is nested deeper than {MAX_JSON_DEPTH} levels", where=where)
