"""Span: the answer to a question as a part of a text, from logits `(B, L, 2)` over its tokens.

A text that is too long has several windows, each of which is a sample here: metrics and predictions
take the most probable answer of all windows of a text.

Letters: B samples, L tokens, N samples of a split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config.loss_keys import ImportLoss, Loss
from finetune.config.metric_keys import SpanMetric
from finetune.config.task_keys import SpanTask
from finetune.data.batches import Batch
from finetune.data.samples import (
    BETWEEN_ANSWERS,
    CHARACTERS,
    IGNORED,
    RIGHT_ANSWERS,
    TOKEN_ENDS,
    TOKEN_STARTS,
    WINDOW_OF,
)
from finetune.tasks.answer_scores import AnswerScore, score_of
from finetune.tasks.collecting import CollectingMetric
from finetune.tasks.conditions import Always
from finetune.tasks.losses import build_loss
from finetune.tasks.metrics import build_measures, target_of
from finetune.tasks.records import Asked
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import UnfitOutputsError, misfit
from finetune.tasks.weighted_loss import WeightedLoss


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """What is predicted as the answer to a question."""

    answer: str
    """Empty for no answer."""
    start: int
    """Its first character in the text, from 0."""
    end: int
    """The position behind its last character."""
    probability: float
    """Probability of its first token times that of its last, of all tokens of its window."""
    none: float
    """The same for no answer; -1 where the task has none."""

    def row(self) -> dict[str, Any]:
        """Return the answer, its place and its probability."""
        if self.is_none:
            return {"answer": "", "start": 0, "end": 0, "probability": max(self.none, 0.0)}
        names = ("answer", "start", "end", "probability")
        return {name: getattr(self, name) for name in names}

    @property
    def is_none(self) -> bool:
        """Whether no answer is predicted."""
        return not self.answer or self.none > self.probability

    def moved(self, by: int) -> "PredictedAnswer":
        """Return the answer that a window gives as one of the text that the window is cut from.

        Args:
            by: First character of the window.
        """
        return replace(self, start=self.start + by, end=self.end + by)

    @classmethod
    def of_windows(cls, windows: Sequence["PredictedAnswer"]) -> "PredictedAnswer":
        """Return the answer of a text by those of its windows.

        See `answer_of_text`.
        """
        found = answer_of_text(windows)
        return replace(windows[found.window], none=found.none)


class BestAnswer(NamedTuple):
    """The most probable answer of a sample: characters of its window, and probabilities."""

    start: int
    end: int
    probability: float
    none: float


class _OfWindow(Protocol):
    """Anything with the probabilities of an answer, and of no answer, in a window."""

    @property
    def probability(self) -> float: ...
    @property
    def none(self) -> float: ...


class _OfText(NamedTuple):
    """Which window gives the answer of a text, and the probabilities that count for the text."""

    window: int
    probability: float
    none: float

    @property
    def is_none(self) -> bool:
        """Whether no answer is predicted."""
        return self.none > self.probability


def answer_of_text(windows: Sequence[_OfWindow]) -> _OfText:
    """Return which of a text's windows gives its answer; metrics, predictions and pictures agree.

    It is the most probable answer of all windows, of equal ones the first. There is no answer in a
    text if there is none in any window, so that the least probability of no answer counts.
    """
    best = max(range(len(windows)), key=lambda number: windows[number].probability)
    return _OfText(best, windows[best].probability, min(one.none for one in windows))


def span(config: SpanTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: an imported loss or metric cannot be built.
    """
    feeds = {name: partial(_scored, config, name) for name in ("f1", "exact_match")}
    return Task(
        tuple(_loss(node, facts, n) for n, node in enumerate(config.chosen_losses)),
        build_measures(config.metrics, _mean_score, facts, feed=_outputs_and_places, feeds=feeds),
        partial(_read, config),
    )


def _loss(node: Loss, facts: TaskFacts, place: int) -> WeightedLoss:
    """Build one loss; one of the user's own sees outputs and targets as they are.

    The loss of a sample is (CE(first) + CE(last)) / 2, where CE is the cross entropy over its
    tokens: the mean of both, as `ForQuestionAnsweringLoss` of transformers (loss/loss_utils.py)
    and `BertForQuestionAnswering` have it. Here padding and the tokens of the question have no
    part in it, so that a loss does not depend on the batch.
    """
    if isinstance(node, ImportLoss):
        return build_loss(node, facts, place)
    return WeightedLoss(node.label, node.weight, _losses, count=_num_learnt)


def _losses(outputs: Any, batch: Batch) -> Tensor:
    """Return the loss of each sample, `(B,)`; 0 where the answer is not learnt."""
    logits = _logits(outputs, batch)
    first, last = (
        F.cross_entropy(logits[..., side], target, ignore_index=IGNORED, reduction="none")
        for side, target in enumerate(target_of(batch).unbind(1))
    )
    return (first + last) / 2


def _num_learnt(batch: Batch) -> Tensor:
    """Return how many samples of a batch are learnt, `()`."""
    return (target_of(batch)[:, 0] != IGNORED).sum()


def _logits(outputs: Any, batch: Batch) -> Tensor:
    """Return logits `(B, L, 2)` as float32, minus infinity for tokens that are no part of a text.

    The first token stays: it stands for no answer.

    Raises:
        UnfitOutputsError: the outputs are no two logits a token.
    """
    starts = batch.columns[TOKEN_STARTS]
    is_fit = isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[2] == 2
    if not is_fit or outputs.shape[1] < starts.shape[1]:
        raise UnfitOutputsError(
            "two logits for each token (B, L, 2) are needed",
            "output: logits of a transformers layer; or output: hidden, and "
            "{name: head, type: Linear, out_features: 2} behind it",
        )
    # A batch of stored rows may be padded further than its own tokens go.
    is_open = F.pad(starts, (0, outputs.shape[1] - starts.shape[1]), value=-1) >= 0
    is_open[:, 0] = True
    logits: Tensor = outputs.float().masked_fill(~is_open[..., None], -torch.inf)
    return logits


def _outputs_and_places(outputs: Any, batch: Batch) -> tuple[Any, Tensor]:
    """Return outputs and first and last tokens `(B, 2)`, as imported metrics get them."""
    return outputs, target_of(batch)


def _mean_score(metric: SpanMetric) -> CollectingMetric:
    """Return a metric that is fed with what `_scored` returns."""
    return CollectingMetric(_mean_over_texts, Always, higher_is_better=True)


def _mean_over_texts(
    rows: Tensor, probability: Tensor, none: Tensor, score: Tensor, of_none: Tensor
) -> Tensor:
    """Return the mean score over all texts, `()`, each with the answer of all its windows.

    Args:
        rows: The text that each sample is a window of, `(N,)`.
        probability: Of the most probable answer of each window, `(N,)`.
        none: Probability of no answer, `(N,)`; negative where the task has none.
        score: Score of that most probable answer, `(N,)`.
        of_none: Score of no answer, `(N,)`.
    """
    columns = (each.tolist() for each in (probability, none, score, of_none))
    texts: dict[int, list[_Scored]] = {}
    for row, window in zip(rows.tolist(), map(_Scored, *columns), strict=True):
        texts.setdefault(row, []).append(window)
    # In the order of the texts, however their batches came: the sum is rounded by its order.
    scores = [_score_of_text(texts[row]) for row in sorted(texts)]
    return torch.tensor(scores, dtype=torch.float64).mean()


class _Scored(NamedTuple):
    """Probabilities of a window, and the scores of its answer and of no answer."""

    probability: float
    none: float
    score: float
    of_none: float


def _score_of_text(windows: Sequence[_Scored]) -> float:
    """Return the score of a text by those of its windows."""
    found = answer_of_text(windows)
    window = windows[found.window]
    return window.of_none if found.is_none else window.score


def _scored(config: SpanTask, metric: SpanMetric, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
    """Return text, probabilities and scores of each sample, as `_mean_over_texts` takes them."""
    found = best_answers(config, outputs, batch)
    contexts, right = (batch.columns[name].tolist() for name in (CHARACTERS, RIGHT_ANSWERS))
    scores, of_none = list[float](), list[float]()
    for codes, one, written in zip(contexts, found, right, strict=True):
        answers = right_answers(written)
        scores.append(_figure(metric, score_of(text_of_codes(codes[one.start : one.end]), answers)))
        of_none.append(_figure(metric, score_of("", answers)))
    probability, none = ([getattr(one, name) for one in found] for name in ("probability", "none"))
    figures = map(torch.tensor, (probability, none, scores, of_none))
    return batch.columns[WINDOW_OF], *figures


def _figure(metric: SpanMetric, score: AnswerScore) -> float:
    """Return the figure of a metric."""
    return score.f1 if metric == "f1" else score.exact_match


def right_answers(codes: Sequence[int]) -> list[str]:
    """Return the right answers that are written as numbers of characters, padded with -1."""
    answers, begins = [], 0
    for place, code in enumerate(codes):
        if code == BETWEEN_ANSWERS:
            answers.append(text_of_codes(codes[begins:place]))
            begins = place + 1
    return answers


def text_of_codes(codes: Sequence[int]) -> str:
    """Return the text of characters that are given as numbers."""
    return "".join(map(chr, codes))


def best_answers(config: SpanTask, outputs: Any, batch: Batch) -> list[BestAnswer]:
    """Return the most probable answer of each sample."""
    first, last = _logits(outputs, batch).softmax(1).nan_to_num(0).unbind(2)
    none = (first[:, 0] * last[:, 0]).tolist() if config.may_be_unanswered else [-1.0] * len(first)
    # The first token stands for no answer, and is a part of none.
    first = torch.cat([torch.zeros_like(first[:, :1]), first[:, 1:]], dim=1)
    # For each first token the last ones of all answers that are short enough, `(B, L, longest)`.
    longest = min(config.longest_answer, last.shape[1])
    ends = F.pad(last, (0, longest - 1)).unfold(1, longest, 1)
    best, places = (first[:, :, None] * ends).flatten(1).max(1)
    found = []
    for number, (probability, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
        begin, more = divmod(place, longest)
        start, end = 0, 0
        # At probability 0 the place may be a token outside of the text, which has -1.
        if probability > 0:
            start = int(batch.columns[TOKEN_STARTS][number, begin])
            end = int(batch.columns[TOKEN_ENDS][number, begin + more])
        found.append(BestAnswer(start, end, probability, none[number]))
    return found


def _read(config: SpanTask, outputs: Any, asked: Asked | None = None) -> list[PredictedAnswer]:
    """Return the answer to each question."""
    assert asked is not None  # outputs alone do not tell where tokens are in a text
    try:
        found = best_answers(config, outputs, asked.batch)
    except ValueError as error:
        raise misfit("a prediction", outputs, None, error) from error
    read = []
    for number, (start, end, probability, none) in enumerate(found):
        _, text = asked.sample(number).values()
        # Tokens of bytes, as of GPT-2, begin with the blank before a word.
        said = text[start:end].lstrip()
        begin = end - len(said)
        said = said.rstrip()
        read.append(PredictedAnswer(said, begin, begin + len(said), probability, none))
    return read
