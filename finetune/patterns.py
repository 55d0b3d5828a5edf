"""Run regular expressions of a config with the rules of `re`, in an engine that can be stopped.

Python's `re` cannot be interrupted, and `(a+)+b` keeps it busy forever on a name of forty letters.
The package `regex` takes a time limit. It knows more syntax than `re`, so whatever the two read
differently is refused here: what remains means the same to both.
"""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import regex  # type: ignore[import-untyped]

from finetune.errors import Key, SelectorError

MAX_CHARACTERS = 1000
"""Most characters of a regular expression or glob."""
MAX_REPEATS = 10_000
"""Upper bound on the product of the smallest counts of all repetitions (`{3}`, `{3,}`).

`regex` writes them out as it compiles, and no time limit stops that: `(a?){1000000000}` took 28 s
and 6 GB.
"""
LIMIT_S = 1.0
"""Seconds of processor time that one list of selectors may spend on its expressions."""

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
    """Yield what is wrong with a regular expression: one fault, or nothing if it may be used."""
    if len(text) > MAX_CHARACTERS:
        yield f"is longer than {MAX_CHARACTERS} characters"
    elif (foreign := _foreign(text)) is not None:
        yield foreign
    else:
        yield from _compilation(text)


class TimeLimit:
    """A budget of processor time, shared by the regular expressions of one list.

    Args:
        limit_s: Seconds in all.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = self._left_s = limit_s

    def full_matches(self, text: str, names: Iterable[str], *, key: Key = ()) -> frozenset[str]:
        """Return those of `names` that a regular expression matches from end to end.

        Args:
            text: The expression; `faults_of_expression` must have found nothing in it.
            names: The names to try it on.
            key: Its position in the config.

        Raises:
            SelectorError: the budget is spent.
        """
        compiled = regex.compile(text)
        return frozenset(n for n in names if self._match(compiled.fullmatch, compiled, n, key))

    def first_groups(self, text: str, names: Iterable[str], *, key: Key = ()) -> list[str | None]:
        """Return for each name what the first group matches where an expression is first found.

        None stands for a name in which it is not found, or finds nothing for the group.

        Args:
            text: The expression; `faults_of_expression` must have found nothing in it.
            names: The names to look into.
            key: Its position in the config.

        Raises:
            SelectorError: the budget is spent.
        """
        compiled = regex.compile(text)
        found = (self._match(compiled.search, compiled, name, key) for name in names)
        return [None if match is None else match[1] for match in found]

    def _match(self, function: Any, compiled: Any, name: str, key: Key) -> Any:
        """Return the match of an expression in a name; take the time it needs off the budget."""
        # Of this thread: time that other threads or processes take is not the fault of the
        # expression.
        began = time.thread_time()
        try:
            return function(name, timeout=self._left_s)
        except (TimeoutError, MemoryError) as error:
            raise SelectorError(
                f"regular expression {compiled.pattern!r} is too slow: {self._limit_s:g} s are "
                f"over at {_cut(name)!r}",
                hint="repetitions inside repetitions, as in (a+)+, try every way to part a name",
                key=key,
            ) from error
        finally:
            # Never 0, which some versions take for no limit.
            self._left_s = max(self._left_s - (time.thread_time() - began), 1e-3)


def _compilation(text: str) -> Iterator[str]:
    """Yield why `re` or `regex` cannot compile an expression."""
    try:
        re.compile(text)
        regex.compile(text)
    except (re.error, regex.error, OverflowError) as error:
        yield f"not a regular expression: {error}"
    except (RecursionError, MemoryError):
        yield "not a regular expression: nested too deeply"


def _foreign(text: str) -> str | None:
    """Return what `re` and `regex` would read differently in an expression, or what costs much."""
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
