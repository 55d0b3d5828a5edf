"""The command line as typer reads it, with hidden characters of a wrong one made visible."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from finetune.visible import one_line


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
            error.message = one_line(error.message)
        raise
