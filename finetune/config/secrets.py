"""Secrets: taken from the environment as a config is read, and kept out of what is saved.

`${env:NAME}` in a text stands for a variable of the environment. What is saved holds those words
again, never the variable's value. A secret written into the config itself is masked by its key.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from finetune.config.messages import shown
from finetune.config.reader import MAX_BYTES, UNUSABLE
from finetune.config.written import Written
from finetune.errors import Key, Problem

MASK = "***"
"""What a saved config holds in place of a secret."""

_REFERENCE = re.compile(r"\$(\$?)\{env:([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET = re.compile(
    r"(^|_)(passwords?|passwd|passphrase|secrets?|credentials?"
    r"|(api|access|private|secret|auth)_?keys?)($|_)"
)
_TOKEN = re.compile(r"(^|_)token$")
_WORD_OF_A_VOCABULARY = re.compile(
    r"(^|_)(pad|cls|class|mask|sep|bos|eos|sos|unk|start|end|image|special|dist)_token$"
)


class Reference(NamedTuple):
    """A text of the config in which variables of the environment stand.

    Args:
        key: Where it stands, in the words of the file.
        raw: The text as written, `${env:NAME}`.
        value: What it has become.
    """

    key: Key
    raw: str
    value: str


@dataclass(slots=True)
class Environment:
    """Puts variables of the environment into texts.

    Args:
        problems: Collects what is wrong.
        lenient: Whether a variable that is not set is left as its words, without a problem.
        characters: How many characters have been put in so far.
    """

    problems: list[Problem] = field(default_factory=list)
    lenient: bool = False
    characters: int = 0

    def filled_in(self, written: Written, key: Key = ()) -> Written:
        """Return `written` with every `${env:NAME}` in its texts replaced; `$${` stands for `${`."""
        value = written.value
        if isinstance(value, str):
            return self._text(written, value, key) if "{env:" in value else written
        if isinstance(value, dict):
            entries = {k: self.filled_in(item, (*key, k)) for k, item in value.items()}
            return replace(written, value=entries)
        if isinstance(value, list):
            items = [self.filled_in(item, (*key, n)) for n, item in enumerate(value)]
            return replace(written, value=items)
        return written

    def _text(self, written: Written, text: str, key: Key) -> Written:
        put_in = lambda match: self._variable(match, written, key)
        filled, count = _REFERENCE.subn(put_in, text)
        return replace(written, value=filled, raw=text) if count else written

    def _variable(self, match: re.Match[str], written: Written, key: Key) -> str:
        words, name = match[0], match[2]
        if match[1]:
            return words[1:]
        fault = None
        value = os.environ.get(name, "") if _NAME.fullmatch(name) else ""
        self.characters += len(value)
        if not _NAME.fullmatch(name):
            fault = f"needs the name of a variable, got {words!r}"
        elif name not in os.environ:
            fault = None if self.lenient else f"the environment has no variable {name!r}"
        elif UNUSABLE.search(value):
            fault = f"the variable {name!r} is not text in UTF-8"
        elif self.characters > MAX_BYTES:
            fault = f"variables add up to more than {MAX_BYTES // 1024} KiB"
        else:
            return value
        if fault is not None:
            self.problems.append(Problem(written.origin(key), fault))
        return words


def references(written: Written, key: Key = ()) -> Iterator[Reference]:
    """Yield every text into which variables were put."""
    value = written.value
    if written.raw is not None and isinstance(value, str):
        yield Reference(key, written.raw, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from references(item, (*key, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from references(item, (*key, number))


def hidden(message: str, root: Written) -> str:
    """Return a message with the words of the file in place of what the environment holds."""
    for _, raw, value in references(root):
        for spelt in (shown(value), repr(value)):
            message = message.replace(spelt, shown(raw)) if value else message
    return message


def masks(written: Written, key: Key = (), *, is_secret: bool = False) -> Iterator[Problem]:
    """Yield a problem for each value that was masked when the config was saved."""
    value = written.value
    if is_secret and value == MASK:
        hint = "-o KEY=VALUE gives it; with '${env:NAME}' in the config it need not be given again"
        yield Problem(written.origin(key), "was masked when this config was saved", hint)
    elif isinstance(value, dict):
        for name, item in value.items():
            inside = is_secret or _is_secret(name, MASK)
            yield from masks(item, (*key, name), is_secret=inside)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from masks(item, (*key, number), is_secret=is_secret)


def masked(value: Any, key: str) -> Any:
    """Return plain data with `***` for what stands under a key that names a secret, at any depth."""
    if isinstance(value, dict):
        return {
            name: masked(item, key if _is_secret(key, item) else name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item, key) for item in value]
    return MASK if _is_secret(key, value) else value


def with_references(plain: Any, root: Written) -> Any:
    """Return a config as plain data, in which `${env:NAME}` stands again where it was written.

    A text that only looks like such a reference is marked as none.
    """
    found = list(references(root))
    at = {reference.key: reference for reference in found}
    elsewhere = {ref.value: ref.raw for ref in found if not _holds(plain, ref)}
    elsewhere |= {v.removeprefix("!"): raw.removeprefix("!") for v, raw in elsewhere.items()}

    def restored(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: restored(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [restored(item, (*key, number)) for number, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        if key in at and value in (at[key].value, MASK):
            return at[key].raw
        if value in elsewhere:
            return elsewhere[value]
        return _REFERENCE.sub(r"$\g<0>", value)

    return restored(plain, ())


def _holds(plain: Any, reference: Reference) -> bool:
    """Tell whether plain data has the text of a reference, or its mask, at the same key."""
    for step in reference.key:
        try:
            plain = plain[step]
        except (KeyError, IndexError, TypeError):
            return False
    return plain in (reference.value, MASK)


def _is_secret(key: str, value: Any) -> bool:
    """Tell whether a value is a secret by its key. A token that is a number is one of a text."""
    if value is None or isinstance(value, bool):
        return False
    name = _CAMEL.sub("_", key).lower().replace("-", "_")
    if _SECRET.search(name):
        return True
    is_token = _TOKEN.search(name) and not _WORD_OF_A_VOCABULARY.search(name)
    return bool(is_token) and not isinstance(value, int | float)
