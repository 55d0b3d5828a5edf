"""Align tags of words with tokens, after the words have been tokenized."""

from collections.abc import Callable, Sequence

from finetune.data.lazy_tokens import LazyColumn
from finetune.data.ragged import Ragged
from finetune.data.samples import WORDS, WORDS_OF, ForLoss
from finetune.data.steps.pipeline import Outcome
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.transforms import Step
from finetune.data.table import Table
from finetune.data.targets.word_tags import WordTags
from finetune.data.targets.words import words_among
from finetune.errors import DataError


def with_tags(
    outcome: Outcome,
    for_loss: ForLoss,
    table: Table,
    tell: Callable[[str], None],
    part: str = "",
) -> tuple[Outcome, ForLoss]:
    """Take the numbers of words out of what the network takes, and give them to the loss.

    With a target they place its tags; without one, as in prediction, a batch has them as the column
    `words of NAME`, where NAME is the column of words. Nothing changes where there is no such one.

    Args:
        outcome: What steps have made of the columns.
        for_loss: The columns for the loss, the tags among them.
        table: The raw columns, one of words.
        tell: Receives a line on words that are lost.
        part: `train`, `validation` or `test`; empty for samples that are no part of a run.

    Raises:
        DataError: no step has made tokens of the words at once.
    """
    if (found := words_among(table.columns)) is None:
        return outcome, for_loss
    name, _ = found
    words = outcome.columns.get(WORDS)
    if not isinstance(words, Ragged | LazyColumn):
        raise _without_tokens(name)
    kept = {each: column for each, column in outcome.columns.items() if each != WORDS}
    tags = for_loss.columns.get(for_loss.target or "")
    if not isinstance(tags, Ragged):
        more = {**for_loss.columns, f"{WORDS_OF}{name}": words}
        return outcome._replace(columns=kept), for_loss._replace(columns=more)
    target = WordTags(words, tags)
    if lost := target.num_lost:
        # One number behind all tags belongs to no word, see `Ragged`.
        of = f"{len(tags.values) - 1:,} {part} words".replace("  ", " ")
        tell(
            f"{lost:,} of {of} of {name!r} have no token, as those beyond max_length of "
            "{type: tokenize}: their tags are neither learnt nor measured"
        )
    # The loss compares tokens, so that tags of tokens take the place of those of words.
    columns = {**for_loss.columns, for_loss.target or "": target}
    return outcome._replace(columns=kept), for_loss._replace(columns=columns)


def refuse_words_without_tokens(table: Table, steps: Sequence[Step]) -> None:
    """Raise `DataError` if a column of words is never tokenized."""
    found = words_among(table.columns)
    tokenized = {name for step in steps if isinstance(step, Tokenize) for name in step.columns}
    if found is not None and found[0] not in tokenized:
        raise _without_tokens(found[0])


def _without_tokens(name: str) -> DataError:
    """Return the error for words whose tags belong to no token."""
    return DataError(
        f"the words of {name!r} have tags, and no step makes tokens of them",
        hint=f"data.transforms: [{{type: tokenize, column: {name}}}], before any step of your "
        "own; or a task of your own: task: {type: import, path: ...}",
        key=("data", "transforms"),
    )
