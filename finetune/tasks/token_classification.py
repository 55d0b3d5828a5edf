"""Token classification: a class for each word of a text, from logits `(B, L, C)` over its tokens.

The first token of a word has the word's class as its target; all others have -100 and count
neither in the loss nor in the metrics.

Letters: B texts, L tokens, C classes, W words of all texts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.config.loss_keys import CrossEntropyLoss, FocalLoss, ImportLoss
from finetune.config.metric_keys import TokenMetric
from finetune.config.task_keys import TokenClassificationTask
from finetune.data.batches import Batch
from finetune.data.samples import IGNORED, WORDS_OF
from finetune.data.targets.words import words_of
from finetune.errors import FinetuneError, named
from finetune.tasks.cross_entropies import class_logits
from finetune.tasks.each_class import with_each_class
from finetune.tasks.entities import entities_of, other_tags, types_of
from finetune.tasks.losses import build_losses
from finetune.tasks.metrics import Metric, build_measures, target_of
from finetune.tasks.records import Asked
from finetune.tasks.running_metrics import ByClass, RunningMetric, metric_of_classes
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import misfit, one_tensor
from finetune.tasks.weighted_loss import Count, WeightedLoss

_OF_ENTITIES: tuple[TokenMetric, ...] = ("f1", "precision", "recall")


@dataclass(frozen=True, slots=True)
class PredictedEntity:
    """An entity that was predicted in a text."""

    text: str
    label: str
    start: int
    """Its first character in a text, its first word in a list of words, from 0."""
    end: int
    """The position behind its last character or word."""
    probability: float
    """Mean over its words of the probability of the class that each was given."""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """The classes predicted for the words of one text."""

    tags: tuple[str | None, ...]
    """One for each word; None for a word without a token, as where a text is cut."""
    spans: tuple[PredictedEntity, ...]

    def row(self) -> dict[str, Any]:
        """Return the spans and the tags."""
        spans = [
            {name: getattr(span, name) for name in ("text", "label", "start", "end", "probability")}
            for span in self.spans
        ]
        return {"spans": spans, "tags": list(self.tags)}


def token_classification(config: TokenClassificationTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: all words are of one class, or entities are counted of tags that have none.
    """
    classes = facts.names
    if len(classes) < 2:
        raise FinetuneError(
            f"every word is of the same class, {named(classes)}", key=("data", "target")
        )
    asked = [name for name in config.metrics if name in _OF_ENTITIES]
    if asked and (others := other_tags(classes)):
        raise FinetuneError(
            f"metric {asked[0]!r} counts entities, and {named(others)} "
            f"{'is' if len(others) == 1 else 'are'} neither 'O' nor a type behind B- or I-",
            hint="metrics: [accuracy] is the share of words with the right class",
            key=("task", "metrics"),
        )

    def built_in(metric: TokenMetric) -> Metric:
        if metric == "accuracy":
            return metric_of_classes(metric, classes)
        return _metric_of_entities(metric, classes)

    measures = build_measures(
        config.metrics,
        built_in,
        facts,
        feed=partial(_of_words, classes),
        feeds=dict.fromkeys(_OF_ENTITIES, partial(_of_texts, classes)),
    )
    return Task(
        _losses(config, facts),
        with_each_class(measures) if config.per_class else measures,
        partial(_read, classes),
    )


def _losses(config: TokenClassificationTask, facts: TaskFacts) -> tuple[WeightedLoss, ...]:
    """Return the losses; those of the user's own see outputs and targets as they are.

    Raises:
        FinetuneError: a loss compares samples, each of which has one class, or learns numbers.
    """
    nodes = config.chosen_losses
    losses = build_losses(nodes, facts)
    for number, (node, loss) in enumerate(zip(nodes, losses, strict=True)):
        if isinstance(node, CrossEntropyLoss | FocalLoss | ImportLoss):
            continue
        fault = "compares samples that have one class each, and here words have one"
        if not loss.whole_window:
            # It would take the number of tokens to leave out for one to learn.
            fault = "takes numbers, not the classes of words"
        raise FinetuneError(
            f"{node.type} {fault}",
            hint="cross_entropy and focal learn the class of each word",
            key=("task", "losses", number),
        )
    return tuple(
        loss if isinstance(node, ImportLoss) else _over_tokens(loss)
        for node, loss in zip(nodes, losses, strict=True)
    )


def _over_tokens(loss: WeightedLoss) -> WeightedLoss:
    """Return a loss of samples as one of tokens, each of them a sample with one class."""

    def losses(outputs: Tensor, batch: Batch) -> Any:
        _refuse_other_lengths(outputs, target_of(batch))
        flat = replace(batch, target=target_of(batch).flatten())
        return loss.function(outputs.flatten(0, 1), flat)

    # A loss with weights counts them itself, and leaves -100 out.
    return replace(loss, function=losses, count=_num_words if loss.count is len else loss.count)


def _num_words(batch: Batch) -> Count:
    """Return the number of words whose class is learnt, `()`."""
    is_word: Tensor = target_of(batch) != IGNORED
    return is_word.sum()


def _refuse_other_lengths(outputs: Tensor, target: Tensor) -> None:
    """Raise `ValueError` unless outputs `(B, L, ...)` are of the tokens that have the targets."""
    if one_tensor(outputs).shape[:2] != target.shape:
        raise ValueError("the network must give an output for each token")


def _of_words(classes: Sequence[str], outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits `(W, C)` and class numbers `(W,)` of the words, as metrics of classes take."""
    target = target_of(batch)
    _refuse_other_lengths(outputs, target)
    is_word = target != IGNORED
    return class_logits(outputs[is_word].float(), classes), target[is_word]


def _of_texts(classes: Sequence[str], outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return predicted and right class numbers, `(B, L)` each."""
    target = target_of(batch)
    _refuse_other_lengths(outputs, target)
    return _predicted(classes, outputs).argmax(-1), target


def _predicted(classes: Sequence[str], outputs: Tensor) -> Tensor:
    """Return the probability of each class for each token, `(B, L, C)`.

    Raises:
        ValueError: there are not as many outputs as classes.
    """
    logits = class_logits(outputs.flatten(0, 1).float(), classes)
    if logits.shape[1:] != (len(classes),):
        raise ValueError(f"{len(classes)} classes need as many outputs")
    shares: Tensor = logits.softmax(-1)
    return shares.reshape(*outputs.shape[:2], -1)


class _AnyEntity:
    """The condition of a metric of entities: at least one of them."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._texts, self._found = 0, False

    def add(self, target: Tensor) -> None:
        """Add the targets of a batch, `(B, L)`."""
        self._texts += len(target)
        # Once one is found, no later batch is looked at: `tolist` waits for the device.
        self._found = self._found or any(
            entities_of([self._classes[number]])
            for number in target.unique().tolist()
            if number != IGNORED
        )

    def fault(self) -> str | None:
        """Return that no text holds an entity; None if one does."""
        return None if self._found else f"none of {self._texts} texts holds an entity"


def _metric_of_entities(score: TokenMetric, classes: Sequence[str]) -> RunningMetric:
    """Return a metric that is fed with predicted and right class numbers, `(B, L)` each.

    An entity is right if its type and both its ends are. All types count together.
    """
    types = types_of(classes)
    return RunningMetric(
        partial(_counts, classes, types),
        partial(_score, score),
        partial(_AnyEntity, classes),
        higher_is_better=True,
        by_class=ByClass(types, partial(_scores, score)),
    )


def _counts(classes: Sequence[str], types: Sequence[str], said: Tensor, so: Tensor) -> Tensor:
    """Count the entities that are both predicted and right, predicted, and right.

    Returns:
        Counts for each type, `(3, types)` int64.
    """
    counts = torch.zeros(3, len(types), dtype=torch.int64)
    number = {label: place for place, label in enumerate(types)}
    for predicted, right in zip(said.cpu(), so.cpu(), strict=True):
        # In predictions, too: other tokens learn nothing, and their tags would cut entities in two.
        is_word = right != IGNORED
        both = [
            set(entities_of([classes[number] for number in numbers[is_word].tolist()]))
            for numbers in (predicted, right)
        ]
        for row, found in enumerate((both[0] & both[1], *both)):
            for entity in found:
                counts[row, number[entity.label]] += 1
    return counts


def _score(score: TokenMetric, total: Tensor, _: int) -> Tensor:
    """Return a score of all types together from the counts of `_counts`, `()`."""
    return _share(score, total.sum(dim=1))


def _scores(score: TokenMetric, total: Tensor) -> Tensor:
    """Return a score of each type, `(types,)`; NaN for one of which there is no entity."""
    return torch.where(total[2] > 0, _share(score, total), torch.nan)


def _share(score: TokenMetric, counts: Tensor) -> Tensor:
    """Return a score from hits, predicted and right entities; 0 where nothing is predicted."""
    hits, said, so = counts.double().unbind()
    # F1 is the harmonic mean of precision and recall.
    parts = {"precision": (hits, said), "recall": (hits, so), "f1": (2 * hits, said + so)}
    part, whole = parts[score]
    # Where the whole is 0 the part is 0 as well.
    return part.div(whole.clamp(min=1))


def _read(classes: Sequence[str], outputs: Tensor, asked: Asked | None = None) -> list[TaggedText]:
    """Return classes and entities of the words of each text, from logits `(B, L, C)`."""
    assert asked is not None  # outputs alone do not tell where words begin
    column = next(name for name in asked.batch.columns if name.startswith(WORDS_OF))
    words = asked.batch.columns[column]
    try:
        _refuse_other_lengths(outputs, words)
        shares, best = _predicted(classes, outputs).max(-1)
    except ValueError as error:
        raise misfit("a prediction", outputs, None, error) from error
    read = []
    for number, begins in enumerate(words >= 0):
        given = asked.sample(number)[column.removeprefix(WORDS_OF)]
        tags = [classes[each] for each in best[number][begins].tolist()]
        places = words[number][begins].tolist()
        read.append(_tagged(given, tags, shares[number][begins].tolist(), places))
    return read


def _tagged(
    given: Any, tags: Sequence[str], shares: Sequence[float], places: Sequence[int]
) -> TaggedText:
    """Return what was predicted for one text.

    Args:
        given: The text, or its words.
        tags: The class of each word that has a token.
        shares: The probability of that class.
        places: The number of that word in the text.
    """
    words = words_of(given) or []
    is_text = isinstance(given, str) and given.split() == words
    # In characters of a text; in words of a list, also of one that is written as text.
    ends = (
        [found.span() for found in _WORD.finditer(given)]
        if is_text
        else [(place, place + 1) for place in range(len(words))]
    )
    spans = []
    for label, first, last in entities_of(tags):
        start, end = ends[places[first]][0], ends[places[last - 1]][1]
        text = given[start:end] if is_text else " ".join(words[start:end])
        spans.append(
            PredictedEntity(text, label, start, end, sum(shares[first:last]) / (last - first))
        )
    by_place = dict(zip(places, tags, strict=True))
    return TaggedText(tuple(map(by_place.get, range(len(words)))), tuple(spans))


_WORD = re.compile(r"\S+")
