"""Read YAML into values with their lines: YAML 1.2 scalars, no tags, no repeated keys, limits.

Values are built from the parser's events, so no object that a text asks for is ever constructed,
and a text that is nested too deeply is refused before anything recurses.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml

from finetune.config.messages import shown
from finetune.config.written import Scalar, Written, dotted
from finetune.errors import ConfigError, FinetuneError, Key, Origin, Problem

# Far beyond any config that people write, and little enough to be parsed in a moment.
MAX_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_VALUES = 100_000
_MAX_NUMBER = 1000

# The C parser is a hundred times faster; both give the same events.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The core schema of YAML 1.2, section 10.3.2.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# What no file name and no column name can hold. Quoted text may contain it as an escape.
UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """The contents of a YAML text.

    Args:
        root: Its value.
        problems: Faults after which reading could go on.
    """

    root: Written
    problems: tuple[Problem, ...]


def read_file(path: Path) -> Document:
    """Return the contents of a YAML file.

    Raises:
        FinetuneError: the file does not exist or cannot be read.
        ConfigError: it is not YAML in UTF-8, or exceeds a limit.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        hint = f"to set a key of the config, write -o {path}" if "=" in path.name else None
        raise FinetuneError("no such file", where=str(path), hint=hint) from error
    except IsADirectoryError as error:
        raise FinetuneError("is a folder, not a YAML file", where=str(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FinetuneError(f"cannot be read: {reason.lower()}", where=str(path)) from error
    if len(raw) > MAX_BYTES:
        _fail(Origin(path, 1, ""), f"is larger than {MAX_BYTES // 1024} KiB")
    try:
        # `-sig`: editors on Windows put a byte order mark before the text.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        _fail(Origin(path, line, ""), f"is not UTF-8: byte 0x{raw[error.start]:02x}")
    return read_text(text, path)


def read_text(text: str, file: Path | None, key: Key = ()) -> Document:
    """Return the contents of a YAML text.

    Args:
        text: The YAML.
        file: The file it comes from; None for an override.
        key: The key that an override is for.

    Raises:
        ConfigError: it is not YAML, or exceeds a limit.
    """
    reader = _Reader(file)
    # The parser's own error for this has no line.
    if odd := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        _fail(reader.origin(key, line), f"holds a character that YAML does not allow: {odd[0]!r}")
    try:
        events = yaml.parse(text, Loader=_LOADER)
        root = reader.document(events, key)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = (error.problem or error.context or "cannot be parsed").rstrip(".")
        place = mark.line if mark else 0
        if "cannot start any token" in reason and "\t" in text.splitlines()[place]:
            reason += ", a tab: YAML takes blanks alone to indent"
        _fail(reader.origin(key, mark.line + 1 if mark else 1), f"not YAML: {reason}")
    return Document(root, tuple(reader.problems))


def resolve(text: str) -> Scalar:
    """Return the value of an unquoted scalar by the core schema of YAML 1.2.

    Numbers of more than a thousand characters stay text: Python is slow on them, or refuses.
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if len(text) > _MAX_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text


class _Anchored(NamedTuple):
    """A value with an anchor, its number of values, and its depth: what an alias to it adds."""

    written: Written
    values: int
    height: int


@dataclass(slots=True)
class _Reader:
    """Builds the value of one YAML document.

    Args:
        file: The file it comes from; None for an override.
        problems: Faults after which reading goes on.
        values: Number of values so far; an alias counts as all values it stands for.
        deepest: Greatest depth so far, aliases included.
    """

    file: Path | None
    problems: list[Problem] = field(default_factory=list)
    values: int = 0
    deepest: int = 0
    _events: Iterator[yaml.Event] = field(default_factory=lambda: iter(()))
    _anchors: dict[str, _Anchored | None] = field(default_factory=dict)

    def document(self, events: Iterator[yaml.Event], key: Key) -> Written:
        """Return the value of the only document that `events` hold."""
        self._events = events
        # Events come as: stream start, document start, the value, document end, stream end.
        next(events)
        event = next(events)
        if isinstance(event, yaml.StreamEndEvent):
            return Written(None, self.file, None if self.file is None else 1)
        root = self._value(next(events), key, 0)
        next(events)
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            _fail(self.origin(key, _line(event)), "a second document begins here")
        return root

    def origin(self, key: Key, line: int) -> Origin:
        """Return the origin of a key in this text."""
        return Origin(self.file, None if self.file is None else line, dotted(key))

    def _value(self, event: yaml.Event, key: Key, depth: int) -> Written:
        """Return the value that begins with an event; remember it if it has an anchor."""
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event, key, depth)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        self._count(event, key, values=1, depth=depth)
        # `!!python/object` and the like have run code in many a program; no tag is of use here.
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            hint = "quote a value to make it text"
            self._complain(event, key, f"tags are not allowed, got {shown(tag)}", hint)
        if event.anchor is None:
            return self._written(event, key, depth)
        # The depth is counted anew from here on, to learn how high this value alone is.
        before, deepest, self.deepest = self.values, self.deepest, depth
        # None marks it as being read, so that an alias inside it is found out.
        self._anchors[event.anchor] = None
        written = self._written(event, key, depth)
        anchored = _Anchored(written, self.values - before + 1, self.deepest - depth)
        self._anchors[event.anchor] = anchored
        self.deepest = max(self.deepest, deepest)
        return written

    def _written(self, event: yaml.NodeEvent, key: Key, depth: int) -> Written:
        """Return the scalar, mapping or list that begins with an event."""
        if isinstance(event, yaml.ScalarEvent):
            written = self._at(event, self._scalar(event, key))
            is_number = type(written.value) in (int, float)
            return replace(written, number=event.value) if is_number else written
        if isinstance(event, yaml.MappingStartEvent):
            return self._at(event, self._mapping(key, depth))
        return self._at(event, self._sequence(key, depth))

    def _at(self, event: yaml.Event, value: Scalar | dict[str, Written] | list[Written]) -> Written:
        """Return a value with the line of an event."""
        return Written(value, self.file, None if self.file is None else _line(event))

    def _scalar(self, event: yaml.ScalarEvent, key: Key) -> Scalar:
        """Return the value of a scalar; a quoted one is always text."""
        if UNUSABLE.search(event.value):
            self._complain(
                event, key, f"holds a character that no text may contain: {shown(event.value)}"
            )
        return event.value if event.style else resolve(event.value)

    def _sequence(self, key: Key, depth: int) -> list[Written]:
        """Return the entries up to the end of a list."""
        entries: list[Written] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            entries.append(self._value(event, (*key, len(entries)), depth + 1))
        return entries

    def _mapping(self, key: Key, depth: int) -> dict[str, Written]:
        """Return the entries up to the end of a mapping; a repeated key is a problem."""
        entries: dict[str, Written] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._name(event, key)
            line = self._at(event, None).line
            # The line of the key, not of its value: that is where a reader looks for it.
            value = replace(self._value(next(self._events), (*key, name), depth + 1), line=line)
            if name in entries:
                first = entries[name].line
                where = "" if first is None else f"; line {first} has the first one"
                self._complain(event, (*key, name), f"a second key {shown(name)}{where}")
            # The first one stays, so that what is wrong inside it is told as well.
            entries.setdefault(name, value)
        return entries

    def _name(self, event: yaml.Event, key: Key) -> str:
        """Return a key as written: `1`, `no` and `null` are text if they are keys."""
        if not isinstance(event, yaml.ScalarEvent):
            # A list or mapping as a key has no name that the rest of the program could use.
            _fail(self.origin(key, _line(event)), "a key must be plain text")
        # YAML 1.2 has no merge keys, and readers of 1.1 disagree on which value wins.
        if event.value == "<<" and not event.style:
            hint = "use 'extends', or an alias for the whole mapping"
            self._complain(event, (*key, "<<"), "merge keys are not allowed", hint)
        if event.tag is not None or event.anchor is not None:
            self._complain(event, (*key, event.value), "tags and anchors on keys are not allowed")
        self._scalar(event, key)
        return event.value

    def _aliased(self, event: yaml.AliasEvent, key: Key, depth: int) -> Written:
        """Return the value that an alias stands for."""
        if event.anchor not in self._anchors:
            self._complain(event, key, f"no anchor {shown(event.anchor)} before this alias")
            return self._at(event, None)
        anchored = self._anchors[event.anchor]
        if anchored is None:
            self._complain(
                event, key, f"the alias {shown(event.anchor)} stands inside its own value"
            )
            return self._at(event, None)
        # Nine aliases of nine aliases and so on ("billion laughs") are few events and very many
        # values.
        self._count(event, key, values=anchored.values, depth=depth + anchored.height)
        return anchored.written

    def _count(self, event: yaml.Event, key: Key, *, values: int, depth: int) -> None:
        """Add to the numbers of values and depth; fail if a limit is exceeded."""
        self.values += values
        self.deepest = max(self.deepest, depth)
        if depth > MAX_DEPTH:
            # The key is cut: at this depth it would fill the screen.
            _fail(self.origin(key[:8], _line(event)), f"is nested deeper than {MAX_DEPTH} levels")
        if self.values > MAX_VALUES:
            message = f"holds more than {MAX_VALUES} values, aliases included"
            _fail(self.origin(key[:8], _line(event)), message)

    def _complain(self, event: yaml.Event, key: Key, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(self.origin(key, _line(event)), message, hint))


def _line(event: yaml.Event) -> int:
    """Return the line of an event, from 1."""
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _fail(origin: Origin, message: str) -> NoReturn:
    """Raise a `ConfigError` with one problem."""
    raise ConfigError([Problem(origin, message)])
