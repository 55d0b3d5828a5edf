"""The command line as typer reads it, with hidden characters of a wrong one made visible."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from finetune.visible import one_line

_OVERRIDE = re.compile(r"unexpected extra argument(?:s|\(s\))? \(([\w.]+=[^ )]*)")


class Verbs(TyperGroup):
    """All verbs. Of a wrong command line, typer itself escapes control characters and no more."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read what stands before the verb."""
        with _visible_mistakes():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the verb and what stands after it, and run it."""
        with _visible_mistakes():
            return super().invoke(ctx)


@contextmanager
def _visible_mistakes() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # the class of such a mistake has no public name
        if hasattr(error, "format_message") and hasattr(error, "message"):
            error.message = one_line(error.message) + _override_hint(error.message)
        raise


def _override_hint(message: str) -> str:
    """Return what to add where `key=value` stands without its `-o`, else nothing."""
    found = _OVERRIDE.search(message)
    return f"; to set a key of the config, write -o {one_line(found[1])}" if found else ""
