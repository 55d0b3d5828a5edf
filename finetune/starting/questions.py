"""Ask on a terminal what the data does not decide; an empty answer takes the proposal."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from finetune.errors import FinetuneError
from finetune.starting.chosen_columns import candidates
from finetune.starting.found_data import FoundData
from finetune.starting.judged_columns import MOST_CLASSES, Judged
from finetune.starting.wishes import Wishes, is_named_target
from finetune.visible import one_line, tell

_MOST_SHOWN = 12
_TRIES = 3


def ask_path() -> Path:
    """Ask for the data; an empty answer is the current folder."""
    return Path(_answer("Which file or folder holds your data?", ".")).expanduser()


def asked_wishes(wishes: Wishes, found: FoundData, by_name: Mapping[str, Judged]) -> Wishes:
    """Return the wishes with answers to what they and the data leave open.

    Raises:
        FinetuneError: no answer is one of those offered.
    """
    if not wishes.target:
        likely = candidates(by_name)
        # Where a name says it, or nothing else could be learnt, there is nothing to ask.
        if len(likely) > 1 and not is_named_target(likely[0]):
            wishes = replace(wishes, target=(_one_of("Which column is to be learnt?", likely),))
    name = wishes.target[0] if wishes.target else next(iter(candidates(by_name)), None)
    one = by_name.get(name) if name is not None else None
    if wishes.task is None and one is not None and len(wishes.target) < 2 and _is_either(one):
        text = f"Is {one_line(one.name)} a class, or a quantity?"
        wishes = replace(wishes, task=_one_of(text, ["classification", "regression"]))
    return wishes


def _is_either(one: Judged) -> bool:
    """Tell whether whole numbers may be classes as well as quantities."""
    return one.role == "number" and one.is_whole and 4 < one.distinct <= MOST_CLASSES


def _one_of(question: str, offered: Sequence[str]) -> str:
    """Return the answer to a question, which is one of those offered, or its number."""
    shown = offered[:_MOST_SHOWN]
    for number, name in enumerate(shown, start=1):
        tell(f"  {number}  {name}", sys.stderr)
    if len(offered) > len(shown):
        tell(f"  and {len(offered) - len(shown)} more", sys.stderr)
    # Not for ever: the input may be a program that gives the same answer again and again.
    for _ in range(_TRIES):
        said = _answer(question, shown[0])
        if said in offered:
            return said
        if said.isdecimal() and 0 < int(said) <= len(shown):
            return shown[int(said) - 1]
        tell("  please give one of these names, or its number", sys.stderr)
    raise FinetuneError("no answer that was offered", hint="flags answer too: finetune init --help")


def _answer(question: str, usual: str) -> str:
    """Return the answer that a person types; the usual one for an empty line."""
    try:
        # On standard error: the output is what was chosen, which a program may read as JSON.
        return str(typer.prompt(question, default=one_line(usual), err=True)).strip()
    except typer.Abort as error:
        raise FinetuneError("no answer: the input has ended", hint="--yes asks nothing") from error
