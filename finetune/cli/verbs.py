"""Typer's group of verbs, with hidden characters in its error messages made visible."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from finetune.cli.completing import one_short_line
from finetune.errors import FinetuneError
from finetune.visible import one_line

# Typer's message for an argument too many, as several versions word it.
_EMPTY_OPTION = re.compile(r"(--[\w-]+)=")
_UNKNOWN_OPTION = re.compile(r"No such option: --([\w.-]+)")
_UNKNOWN_VERB = re.compile(r"No such command '([\w-]+)'")
_OVERRIDE = re.compile(r"unexpected extra argument(?:s|\(s\))? \(([\w.]+=[^ )]*)")


class Verbs(TyperGroup):
    """The group of all verbs; its messages on a wrong command line have no hidden characters.

    Typer itself escapes only control characters there.
    """

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the arguments before the verb."""
        with _visible_mistakes():
            return super().make_context(*args, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb; refuse arguments that are empty."""
        found = super().resolve_command(ctx, args)
        _refuse_empty(found[-1])
        return found

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the verbs that a shell offers, each with one line that says what it does."""
        found = super().shell_complete(ctx, incomplete)
        for item in found:
            item.help = one_short_line(item.help)
        return found

    def invoke(self, ctx: Any) -> Any:
        """Parse the verb and its arguments, and run it."""
        with _visible_mistakes():
            return super().invoke(ctx)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise if an argument is empty, as a shell variable without a value gives it.

    An empty path would be the current folder, and an empty key of a store every store.

    Raises:
        FinetuneError: one is empty.
    """
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        if option := _EMPTY_OPTION.fullmatch(argument):
            where = option[1]
        elif argument == "":
            where = before if before.startswith("-") else f"argument {position + 1}"
        else:
            continue
        raise FinetuneError(
            "is empty", where=where, hint="a path, a name or a value is needed; . is this folder"
        )


@contextmanager
def _visible_mistakes() -> Iterator[None]:
    """Make an error of the command line safe to print, with a hint if one fits; it still raises."""
    try:
        yield
    except Exception as error:
        # the class of these errors has no public name
        if hasattr(error, "format_message") and hasattr(error, "message"):
            hint = _override_hint(error.message) or _verb_hint(error.message)
            error.message = one_line(error.message) + hint
            if hint and hasattr(error, "possibilities"):
                error.possibilities = []  # options of like spelling, which are not meant
        raise


_OTHER_VERBS = {
    **dict.fromkeys(("fit", "run", "start", "finetune", "tune", "resume"), "train"),
    **dict.fromkeys(("test", "evaluate", "score"), "eval"),
    **dict.fromkeys(("infer", "inference", "classify"), "predict"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("dry-run", "preview", "summary"), "plan"),
    **dict.fromkeys(("list", "ls"), "runs"),
    **dict.fromkeys(("new", "create"), "init"),
    **dict.fromkeys(("help", "version"), "--"),
}
"""Words that other tools have for verbs, each with ours; `--` before one is an option."""


def _verb_hint(message: str) -> str:
    """Return a hint if an unknown verb is another tool's word for one; else an empty text."""
    found = _UNKNOWN_VERB.search(message)
    word = found[1] if found else ""
    ours = _OTHER_VERBS.get(word)
    if ours is None:
        return ""
    return f" It is finetune {f'--{word}' if ours == '--' else ours}."


def _override_hint(message: str) -> str:
    """Return a hint if an argument is a key of the config without `-o`; else an empty text."""
    found = _OVERRIDE.search(message)
    setting = found[1] if found else _key_of_option(message)
    return f"; to set a key of the config, write -o {one_line(setting)}" if setting else ""


def _key_of_option(message: str) -> str | None:
    """Return `key=VALUE` if a message is about an unknown option that is a key of the config."""
    found = _UNKNOWN_OPTION.search(message)
    if found is None:
        return None
    # They load pydantic, which the other mistakes do without.
    from finetune.config.hints import places_of
    from finetune.config.run import RunConfig

    given = found[1].replace("-", "_")
    if given in RunConfig.model_fields:
        return f"{given}=VALUE"
    places = places_of(given.rpartition(".")[2], RunConfig)
    # As it was given; else a key of training, which such options mostly are with other tools.
    places.sort(key=lambda key: (not key.endswith(given), not key.startswith("train.")))
    return f"{places[0]}=VALUE" if places else None
