"""Redaction: texts that a program prints or raises never contain the value of a secret.

A secret is a value that a config reads from the environment (`${env:NAME}`), or one under a key
that names a secret. `remember` registers each one when a config is read; `redacted` replaces its
value by the words that the config has for it.
"""

import html
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TextIO, cast
from urllib.parse import quote, quote_plus

MIN_LENGTH = 6
"""Shorter values are replaced only in quotes; from this length on anywhere in a text."""

_MAX_PATH = 4096
_WORDS = r"\$\{env:[^{}]*\}"
_UNNAMED = "***"


class _Found(NamedTuple):
    """One spelling of a secret, and the words of the config that replace it."""

    form: str
    words: str


class _Secrets:
    """The registered secrets, in all their spellings."""

    def __init__(self) -> None:
        self._long: dict[str, _Found] = {}
        self._short: dict[str, _Found] = {}

    def add(self, value: str, words: str) -> None:
        """Register a value: `words` will replace each of its spellings."""
        for form in _forms(value):
            if len(form) >= MIN_LENGTH:
                self._long[form.casefold()] = _Found(form, words)
        if 0 < len(value) < MIN_LENGTH:
            for form in {value, os.path.normpath(value)}:
                self._short[form] = _Found(form, words)

    def taken_out_of(self, text: str) -> str:
        """Return `text` with the config's words in place of the values."""
        folded = text.casefold()
        # To search for each one is much cheaper than to compile one expression of all.
        long = {key: found for key, found in self._long.items() if key in folded}
        short = {key: found for key, found in self._short.items() if key in text}
        if not long and not short:
            return text

        def words_for(match: re.Match[str]) -> str:
            # the words themselves, such as `${env:NAME}`: they may contain the value
            if re.fullmatch(_WORDS, match[0]):
                return match[0]
            found = short.get(match[0]) or long.get(match[0].casefold())
            return found.words if found is not None else _UNNAMED

        return re.sub(_pattern(long.values(), short.values()), words_for, text)


def _pattern(long: Iterable[_Found], short: Iterable[_Found]) -> str:
    """Return an expression that matches secrets, and words like `${env:NAME}`.

    The words are matched to be skipped: a value may equal its variable's name.
    """
    # The longest comes first: one secret may be the beginning of another.
    forms = sorted((found.form for found in long), key=len, reverse=True)
    inside = (f"(?i:{re.escape(form)})" for form in forms)
    quoted = (f"(?<=['\"`]){re.escape(found.form)}(?=['\"`])" for found in short)
    return "|".join([_WORDS, *inside, *quoted])


# Like the environment that the values come from, this belongs to the process: a library that
# fails, or a bug, knows of no config, and its text must be redacted all the same.
_SECRETS = _Secrets()


def remember(value: str, words: str) -> None:
    """From now on replace `value` by `words` in all texts that are redacted."""
    _SECRETS.add(value, words)


def redacted(text: str) -> str:
    """Return `text` with the config's words in place of every secret's value.

    A value of at least `MIN_LENGTH` characters is found anywhere, in any case, as written and as
    paths, URLs, JSON and Python spell it. A shorter one is replaced only if it stands alone in
    quotes: replacing a value such as `1` elsewhere would turn messages into nonsense.
    """
    return _SECRETS.taken_out_of(text)


@contextmanager
def causes_withheld() -> Iterator[None]:
    """Cut the chain of causes of an exception that leaves the block before one that tells a secret.

    That cause and all below it are dropped; those above it stay. The text of a library's own
    exception cannot be changed, and Python prints the whole chain.
    """
    try:
        yield
    except Exception as error:
        _cut_causes(error)
        raise


def _cut_causes(error: BaseException) -> None:
    """Walk the chain of causes; cut it before the first one whose text holds a secret."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        below = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if below is not None and redacted(str(below)) != str(below):
            link.__cause__, link.__context__ = None, None
            return
        link = below


def redact_standard_error() -> None:
    """Redact all that this process prints to standard error, also by libraries and tracebacks."""
    if sys.stderr is not None:  # it is None where the stream was closed before the process began
        sys.stderr = cast("TextIO", _RedactedStream(sys.stderr))


class _RedactedStream:
    """A text stream that redacts what is written; all else is passed to the stream below."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` redacted; return its length before redaction, as callers expect."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line redacted."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _forms(value: str) -> set[str]:
    """Return all spellings of a value that messages may contain, itself included."""
    return {form for spelt in set(_spellings(value)) for form in _escaped(spelt) if form.strip()}


def _spellings(value: str) -> Iterator[str]:
    """Yield a value, each of its lines, and other paths that mean the same place."""
    yield value
    yield value.strip()
    # file systems and libraries compose letters and their accents differently
    yield from (unicodedata.normalize(form, value) for form in ("NFC", "NFD"))
    yield " ".join(value.split())
    # a message shows one line of an error
    yield from (line.strip() for line in value.splitlines())
    if not value.strip() or len(value) > _MAX_PATH:
        return
    yield from (str(PurePath(value)), os.path.normpath(value))
    with suppress(OSError, RuntimeError, ValueError):  # no such user, or no folder to stand in
        place, here = Path(value).expanduser(), Path(os.path.realpath(os.curdir))
        for form in (str(place), os.path.normpath(place.absolute()), os.path.realpath(place)):
            # A folder around the current one is part of every path that is printed.
            if not here.is_relative_to(form):
                yield form


def _escaped(text: str) -> Iterator[str]:
    """Yield a text as Python, JSON, URLs, HTML and the hub's folder names write it."""
    inner = repr(text)[1:-1]
    yield from (text, inner, ascii(text)[1:-1], repr(inner)[1:-1])
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    yield from (quote(text), quote(text, safe=""), quote_plus(text))
    yield from (html.escape(text), text.replace("/", "--"), text.replace("'", "\\'"))
