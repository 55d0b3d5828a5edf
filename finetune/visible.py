"""Text for people: characters that a terminal obeys or does not show are written as escapes.

Labels, names of files and columns, samples and messages of libraries are other people's text. An
escape sequence in them would colour, move or retitle the terminal, a line feed would forge a line
of our own, and a lone surrogate cannot be encoded at all.
"""

import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import Any, TextIO, cast

_HIDDEN = (
    # controls but for tab and line feed, among them ESC and C1; separators; what is no character
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufff9-\ufffb\ufffe\uffff"
    # Default_Ignorable_Code_Point of Unicode 17: zero width, bidi overrides, fillers, tags; but
    # for U+FE0E and U+FE0F, which are part of many an honest emoji
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_IN_A_TEXT = re.compile(f"[{_HIDDEN}]")
_IN_A_LINE = re.compile(f"[{_HIDDEN}\t\n]")
_ON_A_STREAM = re.compile(f"(?!^\r|\r\n)[{_HIDDEN}]")
"""Progress bars of libraries go back to the begin of their line with all that they write."""


def visible(text: str) -> str:
    r"""Return a text with `\x1b`, `\u202e`, ... for what is not seen; tabs and line feeds stay.

    A second call changes nothing.
    """
    return _IN_A_TEXT.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return a text as `visible` does, and with `\n` and `\t` for line feeds and tabs."""
    return _IN_A_LINE.sub(_escape, text)


def tell(text: str, file: TextIO) -> None:
    """Print one line for people."""
    print(one_line(text), file=file)


def tell_error(error: Exception) -> None:
    """Print an error on standard error: its own lines, as `FinetuneError` makes them."""
    print(visible(str(error)), file=sys.stderr)


def tell_json(value: Any, file: TextIO, *, indent: int | None = None) -> None:
    """Print a JSON document."""
    print(json_text(value, file, indent=indent), file=file)


def json_text(value: Any, file: TextIO | None = None, *, indent: int | None = None) -> str:
    """Return JSON that is safe on a terminal: hidden characters are escaped, others readable.

    Args:
        value: What JSON can hold.
        file: Where it will be written: a stream that is not Unicode gets nothing but ASCII.
        indent: As of `json.dumps`.
    """
    encoding = getattr(file, "encoding", None) or "utf-8"
    is_ascii = not encoding.lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    # between values there are only spaces and line feeds, and those are not replaced
    return _IN_A_TEXT.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), text)


class VisibleStream:
    """A text stream on which hidden characters are visible. In all else it is the stream `raw`.

    A console of rich writes past it, with its own colours: `finetune.terminal` makes visible what
    our consoles show, and typer shows texts of ours and the command line (`finetune.cli`).
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream below, by the name under which rich looks for it."""
        return self.raw

    def write(self, text: str) -> int:
        """Write a text; return how many characters it had."""
        self.raw.write(_ON_A_STREAM.sub(_escape, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def visible_streams() -> Iterator[None]:
    """Make visible whatever is printed in the block, by us or by a library.

    Characters that the encoding of the terminal lacks are written as escapes, too. So is the
    traceback of an exception that leaves the block.
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
            sys.excepthook = _print_traceback
            raise


@contextmanager
def _lenient(stream: TextIO) -> Iterator[None]:
    """Let a stream escape what it cannot encode, where it would raise."""
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
