"""What `finetune` alone shows: every verb in a group, with an example that its parser takes."""

import shlex

import pytest
import typer

from finetune.cli import app

VERBS = typer.main.get_command(app).commands


def test_every_verb_stands_in_a_group():
    assert all(verb.rich_help_panel for verb in VERBS.values())


@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_a_verb_is_one_that_it_takes(name):
    verb = VERBS[name]
    finetune, called, *arguments = shlex.split(verb.epilog.removeprefix("Example: "))
    assert (finetune, called) == ("finetune", name)
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    context = verb.make_context(name, arguments)
    assert context.args == []


def test_alone_it_shows_groups_and_examples(finetune):
    shown = finetune()
    assert "Before a run" in shown.out
    for verb in VERBS.values():
        assert " ".join(verb.epilog.removeprefix("Example: ").split()[:2]) in shown.out
