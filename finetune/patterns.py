"""Regular expressions of a config: the rules of `re`, run by an engine that can be stopped.

Python's `re` cannot be interrupted, and `(a+)+b` keeps it busy for ever on a name of forty letters.
The package `regex` takes a time limit. It knows more syntax than `re`, so whatever the two read
differently is refused here: what is left means the same to both.
"""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import regex  # type: ignore[import-untyped]

from finetune.errors import Key, SelectorError

MAX_CHARACTERS = 1000
"""Most characters of an expression, or of a glob."""
MAX_REPEATS = 10_000
"""Most that the smallest counts of all repetitions (`{3}`, `{3,}`) may multiply to.

`regex` writes them out as it compiles, and no time limit stops that: `(a?){1000000000}` took 28 s
and 6 GB.
"""
LIMIT_S = 1.0
"""Most seconds of processor time for the expressions of one list of selectors, on all names."""

_TOKEN = re.compile(
    r"""
      \\.                                                    # an escaped character
    | \[ \^?+ (?P<members> \]?+ (?:\\.|[^\]\\])* ) \]          # a set of characters
    | \{ (?P<least>[0-9]*) (?P<comma>,[0-9]*)? \}            # a repetition, but for `{}`
    | (?P<brace>\{)
    | (?P<open>\[)                                           # a set that never ends
    | (?P<comment>\(\?[A-Za-z-]*[x\#])                       # a comment, or the flag for such
    """,
    re.VERBOSE | re.DOTALL,
)
_SET_OPERATION = re.compile(r"\\.|(--|&&|~~|\|\||\[)", re.DOTALL)


def faults_of_expression(text: str) -> Iterator[str]:
    """Yield what is wrong with a regular expression, if anything: at most one fault."""
    if len(text) > MAX_CHARACTERS:
        yield f"is longer than {MAX_CHARACTERS} characters"
    elif (foreign := _foreign(text)) is not None:
        yield foreign
    else:
        yield from _compilation(text)


class TimeLimit:
    """Processor time that the regular expressions of one list of selectors may take together."""

    def __init__(self) -> None:
        self._left_s = LIMIT_S

    def full_matches(self, text: str, names: Iterable[str], *, key: Key = ()) -> frozenset[str]:
        """Return those of `names` that a regular expression fits from end to end.

        Args:
            text: The expression, of which `faults_of_expression` has nothing to say.
            names: What it is tried on.
            key: Where it stands in the config.

        Raises:
            SelectorError: the time is used up.
        """
        compiled = regex.compile(text)
        return frozenset(name for name in names if self._fits(compiled, name, key))

    def _fits(self, compiled: Any, name: str, key: Key) -> bool:
        began = time.thread_time()
        try:
            return compiled.fullmatch(name, timeout=self._left_s) is not None
        except (TimeoutError, MemoryError) as error:
            raise SelectorError(
                f"regular expression {compiled.pattern!r} is too slow: {LIMIT_S:g} s are over at "
                f"{_cut(name)!r}",
                hint="repetitions inside repetitions, as in (a+)+, try every way to part a name",
                key=key,
            ) from error
        finally:
            # Never 0, which some versions take for no limit.
            self._left_s = max(self._left_s - (time.thread_time() - began), 1e-3)


def _compilation(text: str) -> Iterator[str]:
    """Yield why neither engine, or only one of them, compiles an expression."""
    try:
        re.compile(text)
        regex.compile(text)
    except (re.error, regex.error, OverflowError) as error:
        yield f"not a regular expression: {error}"
    except (RecursionError, MemoryError):
        yield "not a regular expression: nested too deeply"


def _foreign(text: str) -> str | None:
    """Return what in an expression is read differently by `re` and `regex`, or costs too much."""
    repeats = 1
    for token in _TOKEN.finditer(text):
        if token["brace"] or token[0] == "{}":
            return r"has a brace that is no repetition; write \{ for the character itself"
        if token["open"]:
            return r"has a set without an end; write \[ for the character itself"
        if token["comment"]:
            return "has a comment, or the flag 'x' for comments"
        if token["members"] and any(one[1] for one in _SET_OPERATION.finditer(token["members"])):
            return r"has '[', '--', '&&', '~~' or '||' inside a set; write \[ or \- for a character"
        repeats *= max(int(token["least"] or 1), 1)
        if repeats > MAX_REPEATS:
            return f"repeats more than {MAX_REPEATS} times"
    return None


def _cut(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."
