"""Errors that a user can fix: each names the place, what is wrong there, and often the remedy."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from finetune.redaction import redacted
from finetune.visible import one_line

Key = tuple[str | int, ...]
"""Position of a value in the config: `("model", "layers", 1, "type")`."""

_NAMED = 3
"""Names in a message; the rest are counted."""
_NAME_LENGTH = 80
"""Characters of a name in a message: a stranger's may be as long as the file."""
_COMPARED = 200
"""Characters of a name that is compared with others."""
_LINE_LENGTH = 490
"""Characters of a line of an error: a place, a cause or a remedy that a person still reads."""


_DOTTED = r"(?:[\w<>]{1,80}\.){0,20}(\w{1,80})"
# Every repetition has a bound: the text may be a stranger's, and of any length.
_CLASS = re.compile(rf"<(?:class|function|method|bound method) '?{_DOTTED}'?(?: at 0x\w+)?>")
_OBJECT = re.compile(rf"<{_DOTTED} object at 0x\w+>")
_VALUES = [("b'", "'", "bytes"), ('b"', '"', "bytes")]
_VALUES += [("tensor([", ")", "a tensor"), ("array([", ")", "an array")]
"""How Python prints values that may be a whole sample: beginning, end, and the word for them."""
_QUOTATION = re.compile(r"(?<!\w)'|'(?!\w)")
"""A single quotation mark, not an apostrophe within a word."""
_SHORT = 40
"""Characters of such a value that may stay."""


class FinetuneError(Exception):
    """Something the user can fix: printed as one line and a hint, no traceback; exit code 2.

    All its texts are redacted when it is made, so printing or logging it reveals no secret.

    Args:
        message: What is wrong, with the value: lower-case start, no full stop.
        details: More about it, printed indented, a line each.
        hint: The remedy, printed indented on a line of its own.
        key: The config value at fault. The wiring adds its file and line by `located`.
        where: The place in the user's own words (`data.csv:3`), for faults outside the config.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[str] = (),
        hint: str | None = None,
        key: Key = (),
        where: str | None = None,
    ) -> None:
        self.message = redacted(in_words(message))
        super().__init__(self.message)
        self.details = tuple(redacted(in_words(line)) for line in details)
        self.hint = None if hint is None else redacted(in_words(hint))
        self.key = key
        self.where = None if where is None else redacted(where)

    def __str__(self) -> str:
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        return _told(text, *self.details, self.hint)

    @property
    def in_one_line(self) -> str:
        """The whole text joined by semicolons, for a log where the program goes on."""
        return "; ".join(line.strip() for line in str(self).splitlines())


class SeveralFaultsError(FinetuneError):
    """Several errors reported together, one per line."""

    def __init__(self, errors: Sequence[FinetuneError]) -> None:
        super().__init__("")
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class Faults:
    """Collects errors, so that a user sees all of them at once instead of one per try."""

    def __init__(self) -> None:
        self._errors: list[FinetuneError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, errors: Iterable[FinetuneError]) -> None:
        """Keep errors that were returned rather than raised, each once."""
        for error in errors:
            # Two checks may meet the same cause, such as code that is not trusted.
            if not any((one.key, str(one)) == (error.key, str(error)) for one in self._errors):
                self._errors.append(error)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a `FinetuneError` that the block raises, and suppress it."""
        try:
            yield
        except SeveralFaultsError as several:
            self.add(several.errors)
        except FinetuneError as error:
            self.add([error])

    def raise_if_any(self) -> None:
        """Raise what was kept; do nothing if there is none.

        Raises:
            FinetuneError: the one fault noted, or a `SeveralFaultsError` of all.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise SeveralFaultsError(self._errors)


class ModelError(FinetuneError):
    """A layer cannot be built, or does not fit what comes into it."""

    sample: int | None = None
    """Index in the batch of the sample at fault; None if no single sample is."""


class DataError(FinetuneError):
    """A source, a column or a sample is not what the config says."""

    unread: tuple[str, int] | None = None
    """Part and position of the sample of a run that cannot be made; None for any other fault."""
    is_of_image: bool = False
    """Whether a sample cannot be made because one of its images cannot be read."""
    is_of_change: bool = False
    """Whether a file has changed while a run uses it."""
    is_of_classes: bool = False
    """Whether a pixel of a mask has a number that is no class."""


class SelectorError(FinetuneError):
    """A selector matches nothing, or two selectors demand different things of one parameter."""


class TrustError(FinetuneError):
    """The config asks for code that `--trust` does not allow."""


class CheckpointError(FinetuneError):
    """A checkpoint or run folder cannot be used."""


class NonFiniteError(FinetuneError):
    """The loss, a gradient or a tensor of the network became infinite or NaN."""

    exit_code = 3


class StoppedError(FinetuneError):
    """The run stopped because it was asked to; the same command continues it. Exit code 75."""

    exit_code = 75


class FrozenWeightError(RuntimeError):
    """A tensor that was frozen has changed: a bug, never the user's mistake. Exit code 1."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Place where a config value was written: a line of a file, or a command-line override."""

    file: Path | None
    line: int | None
    key: str

    def __str__(self) -> str:
        if self.file is None:
            return f"-o {self.key}"
        # a file that another one extends may have a secret in its name
        place = f"{redacted(str(self.file))}:{self.line}"
        return f"{place}: {self.key}" if self.key else place


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config, with the place where it was written."""

    origin: Origin
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return _told(f"{self.origin}: {self.message}", self.hint)


class ConfigError(FinetuneError):
    """The config does not fit the schema; holds every problem found, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(
            replace(
                problem,
                message=redacted(in_words(problem.message)),
                hint=None if problem.hint is None else redacted(in_words(problem.hint)),
            )
            for problem in problems
        )

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def message_of(error: BaseException) -> str:
    """Return the message of an exception; Pillow raises some with bytes for one."""
    said = error.args[0] if len(error.args) == 1 else None
    return said.decode(errors="backslashreplace") if isinstance(said, bytes) else str(error)


def in_words(text: str) -> str:
    """Return a message without Python's `repr` of objects, which library messages often quote.

    A class becomes its name, as `ViTConfig`; an object becomes `a ViTModel`; long bytes, tensors
    and arrays become one word.
    """
    text = _CLASS.sub(r"\1", text)
    text = _OBJECT.sub(r"a \1", text)
    for begin, end, word in _VALUES:
        text = _without(text, begin, end, word)
    return text


def _without(text: str, begin: str, end: str, word: str) -> str:
    """Replace by `word` every long part of a text that starts with `begin` and ends with `end`."""
    parts, at = list[str](), 0
    while (start := text.find(begin, at)) >= 0:
        stop = text.find(end, start + len(begin))
        while stop > 0 and text[stop - 1] == "\\":  # a quotation mark inside bytes
            stop = text.find(end, stop + 1)
        stop = len(text) if stop < 0 else stop + len(end)
        before = text[start - 1 : start]
        # As in "Bob's", "column 'b'" or "label 'vitamin b'".
        is_word = before.isalnum() or before in ("'", '"') or _is_quoted(text[:start])
        if is_word:
            stop = start + len(begin)
        is_long = stop - start > _SHORT
        parts += [text[at:start], word if is_long else text[start:stop]]
        at = stop
    return "".join([*parts, text[at:]])


def _is_quoted(before: str) -> bool:
    """Tell whether what follows a text stands within single quotation marks."""
    return len(_QUOTATION.findall(before)) % 2 == 1


def _told(text: str, *more: str | None) -> str:
    """Join a line and its indented details; a line feed inside any of them is escaped."""
    # A path or label may hold a line feed, by which a stranger would forge a line of ours.
    lines = [text, *(line for line in more if line is not None)]
    return "\n    ".join(_cut(one_line(line)) for line in lines)


def _cut(line: str) -> str:
    """Return a line with its middle cut out if it exceeds the limit: it may quote a whole file."""
    if len(line) <= _LINE_LENGTH:
        return line
    half = (_LINE_LENGTH - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def did_you_mean(given: str, known: Iterable[str]) -> str | None:
    """Return a hint naming the known words most like `given`, ignoring case; None if none is."""
    if len(given) > _COMPARED:
        return None
        # the comparison costs the product of the lengths, and a stranger's name may be a whole file
    words = {word.casefold(): word for word in known if len(word) <= _COMPARED}
    same = [word for word in words if word == given.casefold()]
    near = same or get_close_matches(given.casefold(), words, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(words[word]) for word in near)}?" if near else None


def named(names: Iterable[str]) -> str:
    """Return the first few names, quoted and cut, and the number of the others, for a message."""
    names = list(names)
    shown = [
        repr(name if len(name) <= _NAME_LENGTH else name[:_NAME_LENGTH] + "…") for name in names
    ]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out: Python's, or torch's on any device."""
    # By name, since this file must not import torch: it is loaded by verbs that do without.
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    # "can't allocate memory: ..." on Linux, "not enough memory: ..." elsewhere
    return is_named or "memory: you tried" in str(error)
