"""Align answers with tokens, after question and text have been tokenized."""

from collections.abc import Callable

from finetune.data.lazy_tokens import LazyColumn
from finetune.data.ragged import Ragged
from finetune.data.samples import CHARACTERS, TOKEN_ENDS, TOKEN_STARTS, ForLoss
from finetune.data.steps.pipeline import Outcome
from finetune.data.table import Numbers, Table
from finetune.data.targets.answer_places import AnswerPlaces
from finetune.data.targets.answers import context_among
from finetune.errors import DataError


def with_answers(
    outcome: Outcome,
    for_loss: ForLoss,
    table: Table,
    tell: Callable[[str], None],
    part: str = "",
) -> tuple[Outcome, ForLoss]:
    """Take the places of tokens out of what the network takes, and give them to the loss.

    With a target they say which tokens an answer is, and a batch has the characters of the text
    for the metrics. Nothing changes where no column holds answers.

    Args:
        outcome: What steps have made of the columns.
        for_loss: The columns for the loss, the answers among them.
        table: The raw columns.
        tell: Receives a line on answers that are cut.
        part: `train`, `validation` or `test`; empty for samples that are no part of a run.

    Raises:
        DataError: no step has made tokens of question and text at once.
    """
    if (found := context_among(table.columns)) is None:
        return outcome, for_loss
    name, context = found
    starts, ends = (outcome.columns.get(each) for each in (TOKEN_STARTS, TOKEN_ENDS))
    if not isinstance(starts, Ragged | LazyColumn) or not isinstance(ends, Ragged | LazyColumn):
        raise DataError(
            f"answers are in {name!r}, and no step makes tokens of it and its question together",
            hint="leave data.transforms out, or begin it with {type: tokenize, columns: [question, "
            "context]}; no layer may take one of the two texts alone",
            key=("data", "transforms"),
        )
    of_tokens = {TOKEN_STARTS: starts, TOKEN_ENDS: ends}
    kept = {n: column for n, column in outcome.columns.items() if n not in of_tokens}
    more = {**for_loss.columns, **of_tokens}
    answers = for_loss.columns.get(for_loss.target or "")
    if isinstance(answers, Numbers):
        target = AnswerPlaces(starts, ends, answers.values)
        if cut := target.num_cut():
            # The name of the part may be empty.
            of = f"{len(target):,} {part} samples".replace("  ", " ")
            tell(
                f"in {cut:,} of {of} the answer is not whole in the tokens: these are not learnt, "
                "and no answer to them can be right"
            )
        # As numbers, since a batch holds tensors: metrics compare the texts of answers.
        codes = [[*map(ord, text)] for text in context.values]
        more[CHARACTERS] = Ragged.of(codes, pad=-1, length=None)
        more[for_loss.target or ""] = target
    return outcome._replace(columns=kept), for_loss._replace(columns=more)
