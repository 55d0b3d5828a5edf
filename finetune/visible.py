"""Text for people: characters that control a terminal or do not show are written as escapes.

Labels, file and column names, samples and library messages are other people's text. An escape
sequence in them would colour, move or retitle the terminal, a line feed would forge a line of
ours, and a lone surrogate cannot be encoded at all.
"""

import json
import math
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import Any, TextIO, cast

_HIDDEN = (
    # controls except tab and line feed, among them ESC and C1; separators; non-characters
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufff9-\ufffb\ufffe\uffff"
    # Default_Ignorable_Code_Point of Unicode 17: zero width, bidi overrides, fillers, tags;
    # without U+FE0E and U+FE0F, which are part of many harmless emoji
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_IN_A_TEXT = re.compile(f"[{_HIDDEN}]")
_IN_A_LINE = re.compile(f"[{_HIDDEN}\t\n]")
_ON_A_STREAM = re.compile(f"(?!^\r|\r\n)[{_HIDDEN}]")
"""Spares carriage returns: progress bars of libraries use them to return to the line's start."""


def visible(text: str) -> str:
    r"""Return a text with invisible characters as `\x1b`, `\u202e`, ...; tabs and line feeds stay.

    A second call changes nothing.
    """
    return _IN_A_TEXT.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return a text as `visible` does, and with `\n` and `\t` for line feeds and tabs."""
    return _IN_A_LINE.sub(_escape, text)


def tell(text: str, file: TextIO) -> None:
    """Print a text as one line, with hidden characters and line feeds escaped."""
    print(one_line(text), file=file)


def tell_error(error: Exception) -> None:
    """Print an error on standard error, with hidden characters escaped but its lines kept."""
    print(visible(str(error)), file=sys.stderr)


def tell_json(value: Any, file: TextIO, *, indent: int | None = None) -> None:
    """Print a JSON document, with hidden characters escaped."""
    print(json_text(value, file, indent=indent), file=file)


def json_text(value: Any, file: TextIO | None = None, *, indent: int | None = None) -> str:
    """Return JSON that is safe to print: hidden characters are escaped, others stay readable.

    NaN and infinity, which JSON has not, become null.

    Args:
        value: Anything that `json.dumps` takes.
        file: The stream that will get it; a stream that is not Unicode gets only ASCII.
        indent: As in `json.dumps`.
    """
    encoding = getattr(file, "encoding", None) or "utf-8"
    is_ascii = not encoding.lower().startswith("utf")
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=is_ascii, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), indent=indent, ensure_ascii=is_ascii)
    return visible_json(text)


def visible_json(text: str) -> str:
    """Return JSON, or lines of it, with hidden characters as escapes of JSON."""
    # Between values there are only spaces and line feeds, and those are not replaced.
    # JSON writes U+007F as it is, and `json.dumps` of one character does so too.
    return _IN_A_TEXT.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), text)


def finite(value: Any) -> Any:
    """Return a value with None in place of numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class VisibleStream:
    """A text stream that escapes hidden characters; all else is passed to the stream `raw`.

    Consoles of rich bypass it, because of their colours: `finetune.terminal` escapes what our own
    consoles show, and `finetune.cli` what typer shows.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream below, under the name by which rich looks for it."""
        return self.raw

    def write(self, text: str) -> int:
        """Write a text with hidden characters escaped; return the text's own length."""
        self.raw.write(_ON_A_STREAM.sub(_escape, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, each as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def visible_streams() -> Iterator[None]:
    """Escape hidden characters in all that is printed in the block, by us or by a library.

    Characters that the terminal's encoding lacks are escaped too, and so is the traceback of an
    exception that leaves the block.
    """
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            # a closed stream is None
            if stream is not None and not isinstance(stream, VisibleStream):
                stack.enter_context(_lenient(stream))
                stack.enter_context(redirect(cast("TextIO", VisibleStream(stream))))
        try:
            yield
        except Exception:
            # Python prints the traceback after the block, when the streams are the old ones again.
            sys.excepthook = _print_traceback
            raise


@contextmanager
def _lenient(stream: TextIO) -> Iterator[None]:
    """Let a stream escape characters that it cannot encode, instead of raising."""
    errors, reconfigure = getattr(stream, "errors", None), getattr(stream, "reconfigure", None)
    if reconfigure is None:
        yield
        return
    with suppress(OSError, ValueError):  # it cannot be flushed: the next write raises that
        reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            reconfigure(errors=errors)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if sys.stderr is not None:
        lines = traceback.format_exception(kind, error, trace)
        sys.stderr.write(visible("".join(lines)))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
