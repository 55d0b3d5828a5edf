"""Secrets: taken from the environment as a config is read, and kept out of what is saved.

`${env:NAME}` in a text stands for a variable of the environment. What is saved holds those words
again, never the variable's value. A secret written into the config itself is masked by its key.
Names that a run writes everywhere (of a layer, a column, a metric: fields marked `PUBLIC`) cannot
come from the environment. What is told of a config is redacted, see `finetune/redaction.py`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import BaseModel

from finetune.config.base import PUBLIC
from finetune.config.marks import is_marked
from finetune.config.reader import MAX_BYTES, UNUSABLE
from finetune.config.written import Written, locate
from finetune.errors import Key, Problem
from finetune.redaction import remember

MASK = "***"
"""What a saved config holds in place of a secret."""
MAX_REFERENCES = 200
"""Most secrets of one config: every message is searched for each."""

_REFERENCE = re.compile(r"\$(\$?)\{env:([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_GIVE = "-o KEY=VALUE gives it; with '${env:NAME}' in the config it need not be given again"

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
        texts: How many texts they have been put into.
    """

    problems: list[Problem] = field(default_factory=list)
    lenient: bool = False
    characters: int = 0
    texts: int = 0

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
        if not _REFERENCE.search(text):
            return written
        self.texts += 1
        if self.texts > MAX_REFERENCES:
            fault = f"is one of more than {MAX_REFERENCES} texts that take variables"
            if self.texts == MAX_REFERENCES + 1:
                self.problems.append(Problem(written.origin(key), fault))
            return written
        filled = _REFERENCE.sub(lambda match: self._variable(match, written, key), text)
        if _takes_a_variable(text):
            remember(filled, text)
        return replace(written, value=filled, raw=text)

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
            remember(value, words)
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


def public_secrets(root: Written, config: type[BaseModel]) -> Iterator[Problem]:
    """Yield a problem for each name that is taken from the environment: names are no secrets."""
    for key, raw, _ in references(root):
        if _takes_a_variable(raw) and is_marked(PUBLIC, config, key, root):
            yield Problem(
                locate(root, key),
                f"a name cannot come from the environment, got {raw!r}",
                "a run writes its names into many files: write it out, or give it by -o",
            )


def masks(root: Written) -> Iterator[Problem]:
    """Yield a problem for each value that was masked when the config was saved."""
    for key, written in _under_secret_keys(root):
        if written.value == MASK:
            yield Problem(written.origin(key), "was masked when this config was saved", _GIVE)


def remembered(root: Written) -> Iterator[Problem]:
    """Have what stands under keys that name secrets redacted; yield a problem if it is too much."""
    texts = ((key, one) for key, one in _under_secret_keys(root) if isinstance(one.value, str))
    for count, (key, written) in enumerate(texts):
        if count == MAX_REFERENCES:
            fault = f"is one of more than {MAX_REFERENCES} values under keys that name secrets"
            yield Problem(written.origin(key), fault)
            return
        if written.raw is None and written.value != MASK:
            remember(str(written.value), MASK)


def escaped(text: str) -> str:
    """Return a text in which nothing is taken for a variable of the environment."""
    return _REFERENCE.sub(r"$\g<0>", text)


def _takes_a_variable(raw: str) -> bool:
    """Tell whether a text has a reference that is not escaped by a second `$`."""
    return any(not match[1] for match in _REFERENCE.finditer(raw))


def _under_secret_keys(
    written: Written, key: Key = (), *, is_secret: bool = False
) -> Iterator[tuple[Key, Written]]:
    """Yield the scalars below keys that name a secret."""
    value = written.value
    if isinstance(value, dict):
        for name, item in value.items():
            inside = is_secret or _is_secret(name, MASK)
            yield from _under_secret_keys(item, (*key, name), is_secret=inside)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _under_secret_keys(item, (*key, number), is_secret=is_secret)
    elif is_secret:
        yield key, written


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


def with_references(plain: Any, root: Written, config: type[BaseModel]) -> Any:
    """Return a config as plain data, in which `${env:NAME}` stands again where it was written.

    A text that only looks like such a reference is marked as none.
    """
    found = list(references(root))
    at = {reference.key: reference for reference in found}
    # A short form has another key once it is written out, in the same section of the config. A
    # name there that only equals the value was not taken from the environment, and stays.
    elsewhere = {(ref.key[0], ref.value): ref.raw for ref in found if not _holds(plain, ref)}
    elsewhere |= {
        (section, value.removeprefix("!")): raw.removeprefix("!")
        for (section, value), raw in elsewhere.items()
    }

    def restored(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: restored(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [restored(item, (*key, number)) for number, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        if key in at and value in (at[key].value, MASK):
            return at[key].raw
        if (moved := elsewhere.get((key[0], value))) and not is_marked(PUBLIC, config, key, None):
            return moved
        return escaped(value)

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
