"""Secrets: read from the environment with the config, and kept out of everything that is saved.

`${env:NAME}` in a text stands for an environment variable. What is saved contains these words
again, never the variable's value. A secret written into the config itself is masked by its key.
Names that a run writes into many files (of layers, columns, metrics: fields marked `PUBLIC`) must
not come from the environment. Messages about a config are redacted, see `finetune/redaction.py`.
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
"""What a saved config has in place of a secret."""
MAX_REFERENCES = 200
"""Most secrets of one config: every message is searched for each of them."""

_REFERENCE = re.compile(r"\$(\$?)\{env:([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_GIVE = "-o KEY=VALUE gives it; with '${env:NAME}' in the config it need not be given again"

# `apiKey` and `api-key` name a secret as `api_key` does.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET = re.compile(
    r"(^|_)(passwords?|passwd|passphrase|secrets?|credentials?"
    r"|(api|access|private|secret|auth)_?keys?)($|_)"
)
_TOKEN = re.compile(r"(^|_)token$")
# Tokens of a vocabulary are no secrets, and arguments of tokenizers and networks are called so.
_WORD_OF_A_VOCABULARY = re.compile(
    r"(^|_)(pad|cls|class|mask|sep|bos|eos|sos|unk|start|end|image|special|dist)_token$"
)


class Reference(NamedTuple):
    """A text of the config that contained environment variables.

    Args:
        key: Its position, as the file knows it.
        raw: The text as written, with `${env:NAME}`.
        value: The text with the variables' values.
    """

    key: Key
    raw: str
    value: str


@dataclass(slots=True)
class Environment:
    """Replaces references to environment variables in texts.

    Args:
        problems: Collects what is wrong.
        lenient: Whether a variable that is not set keeps its reference and is no problem.
        characters: Total length of all values inserted so far.
        texts: Number of texts with references so far.
    """

    problems: list[Problem] = field(default_factory=list)
    lenient: bool = False
    characters: int = 0
    texts: int = 0

    def filled_in(self, written: Written, key: Key = ()) -> Written:
        """Return `written` with every `${env:NAME}` replaced; `$${` stands for a plain `${`."""
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
        """Return one text with its references replaced, and register it as a secret."""
        if not _REFERENCE.search(text):
            return written
        self.texts += 1
        if self.texts > MAX_REFERENCES:
            fault = f"is one of more than {MAX_REFERENCES} texts that take variables"
            # Reported once, not for each text beyond the limit.
            if self.texts == MAX_REFERENCES + 1:
                self.problems.append(Problem(written.origin(key), fault))
            return written
        filled = _REFERENCE.sub(lambda match: self._variable(match, written, key), text)
        # The whole text too: a message may quote a password inside a URL only together with it.
        if _takes_a_variable(text):
            remember(filled, text)
        return replace(written, value=filled, raw=text)

    def _variable(self, match: re.Match[str], written: Written, key: Key) -> str:
        """Return the value for one reference; on a problem, the reference itself."""
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
        # Such bytes in the environment become surrogates, which no file can be written with.
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
    """Yield each text below a value that contained environment variables."""
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
    """Yield a problem for each public name that comes from the environment."""
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
    """Register values under keys that name secrets; yield a problem if they are too many."""
    texts = ((key, one) for key, one in _under_secret_keys(root) if isinstance(one.value, str))
    for count, (key, written) in enumerate(texts):
        if count == MAX_REFERENCES:
            fault = f"is one of more than {MAX_REFERENCES} values under keys that name secrets"
            yield Problem(written.origin(key), fault)
            return
        if written.raw is None and written.value != MASK:
            remember(str(written.value), MASK)


def escaped(text: str) -> str:
    """Return a text in which `${env:...}` is escaped, so that it is not replaced on loading."""
    return _REFERENCE.sub(r"$\g<0>", text)


def _takes_a_variable(raw: str) -> bool:
    """Tell whether a text has a reference that is not escaped by a second `$`."""
    return any(not match[1] for match in _REFERENCE.finditer(raw))


def _under_secret_keys(
    written: Written, key: Key = (), *, is_secret: bool = False
) -> Iterator[tuple[Key, Written]]:
    """Yield the scalars below keys that name a secret, with their keys."""
    value = written.value
    if isinstance(value, dict):
        for name, item in value.items():
            # Any value that is neither None nor a number counts here: only the key decides.
            inside = is_secret or _is_secret(name, MASK)
            yield from _under_secret_keys(item, (*key, name), is_secret=inside)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _under_secret_keys(item, (*key, number), is_secret=is_secret)
    elif is_secret:
        yield key, written


def masked(value: Any, key: str) -> Any:
    """Return plain data with `***` for every value under a key that names a secret, at any depth."""
    if isinstance(value, dict):
        return {
            name: masked(item, key if _is_secret(key, item) else name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item, key) for item in value]
    return MASK if _is_secret(key, value) else value


def with_references(plain: Any, root: Written, config: type[BaseModel]) -> Any:
    """Return a config's plain data with `${env:NAME}` again where it was written.

    A text that only looks like such a reference is escaped.
    """
    found = list(references(root))
    at = {reference.key: reference for reference in found}
    # A short form changes its key when it is spelled out, within the same section. A name there
    # that only equals the value did not come from the environment, and stays.
    elsewhere = {(ref.key[0], ref.value): ref.raw for ref in found if not _holds(plain, ref)}
    # `!name` becomes `not: name`.
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
    """Tell whether plain data has a reference's value, or its mask, at the same key."""
    for step in reference.key:
        try:
            plain = plain[step]
        except (KeyError, IndexError, TypeError):
            return False
    return plain in (reference.value, MASK)


def _is_secret(key: str, value: Any) -> bool:
    """Tell whether a key makes its value a secret. A token that is a number is a token id."""
    if value is None or isinstance(value, bool):
        return False
    name = _CAMEL.sub("_", key).lower().replace("-", "_")
    if _SECRET.search(name):
        return True
    is_token = _TOKEN.search(name) and not _WORD_OF_A_VOCABULARY.search(name)
    return bool(is_token) and not isinstance(value, int | float)
