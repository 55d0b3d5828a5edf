"""Read lists of a JSON object that is larger than memory should hold, one entry after another."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.readers.json_text import JsonText
from finetune.disk import reason_of
from finetune.errors import FinetuneError

MAX_LISTS_BYTES = 2 << 30
"""Most bytes of such a file."""


def read_lists(path: Path, kept: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """Return some lists of the object that a JSON file holds; the rest of the file is passed over.

    Args:
        path: The file.
        kept: Keys of the lists that are wanted, each with the keys that are kept of its entries.
            An entry that is no object is kept as it is.

    Raises:
        FinetuneError: it cannot be read, is no JSON object, has such a key twice, or exceeds a
            limit.
    """
    where = str(path)
    found: dict[str, list[Any]] = {}
    try:
        if (size := path.stat().st_size) > MAX_LISTS_BYTES:
            most = f"at most {MAX_LISTS_BYTES >> 30} GiB are read"
            raise FinetuneError(f"holds {size / 2**30:.1f} GiB of JSON; {most}", where=where)
        with path.open(encoding="utf-8") as file:
            text = JsonText(file, where)
            for key in _members(text):
                # A wanted key without a list counts as one that is missing, which the caller tells.
                if text.next() != "[" or key not in kept:
                    _pass_over(text)
                # JSON leaves open which of them counts: the samples of one would silently be lost.
                elif key in found:
                    raise FinetuneError(f"has the key {key!r} twice", where=where)
                else:
                    # Cut down one by one: outlines of objects are most of a large file of COCO.
                    found[key] = [_slim(entry, kept[key]) for entry in _entries(text)]
    except (OSError, UnicodeDecodeError) as error:
        is_text = isinstance(error, UnicodeDecodeError)
        reason = "not UTF-8" if is_text else reason_of(error).lower()  # type: ignore[arg-type]
        raise FinetuneError(f"cannot be read: {reason}", where=where) from error
    return found


def keys_of_object(path: Path) -> Iterator[str]:
    """Yield the keys of the object that a JSON file holds, each before its value is passed over.

    Raises:
        FinetuneError: it is no JSON object.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        text = JsonText(file, str(path))
        for key in _members(text):
            yield key
            _pass_over(text)


def _slim(entry: Any, kept: Sequence[str]) -> Any:
    """Return an entry with the wanted keys alone."""
    return {key: entry[key] for key in kept if key in entry} if isinstance(entry, dict) else entry


def _members(text: JsonText) -> Iterator[str]:
    """Yield each key of the object that is the whole text; its value is to be read before the next.

    Raises:
        FinetuneError: it is no JSON object, or something stands after it.
    """
    _take(text, "{")
    while text.next() != "}":
        key = text.value()
        if not isinstance(key, str):
            raise _wrong(text)
        _take(text, ":")
        yield key
        _separate(text, "}")
    _take(text, "}")
    if text.next():
        raise _wrong(text)


def _entries(text: JsonText) -> Iterator[Any]:
    """Yield each entry of the list that comes next."""
    _take(text, "[")
    while text.next() != "]":
        yield text.value()
        _separate(text, "]")
    _take(text, "]")


def _pass_over(text: JsonText) -> None:
    """Move behind the value that comes next."""
    if text.next() != "[":
        text.value()
        return
    for _ in _entries(text):  # a list may be larger than a value may be
        pass


def _take(text: JsonText, mark: str) -> None:
    """Move behind a character that must come next."""
    if text.next() != mark:
        raise _wrong(text)
    text.skip()


def _separate(text: JsonText, last: str) -> None:
    """Move behind a comma with something behind it; none is there before the end `last`."""
    if text.next() == last:
        return
    _take(text, ",")
    if text.next() == last:
        raise _wrong(text)


def _wrong(text: JsonText) -> FinetuneError:
    """Return the error for what comes next."""
    return FinetuneError(f"not JSON at character {text.place:,}", where=text.name)
