"""Similarity: how much pairs or triplets are alike, from their embeddings `(B, K, D)`.

Letters: B samples, K embeddings of a sample, 2 of a pair and 3 of a triplet; D numbers of one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from finetune.config.loss_keys import (
    ContrastiveLoss,
    ImportLoss,
    InBatchNegativesLoss,
    Loss,
    TripletLoss,
)
from finetune.config.task_keys import SimilarityTask
from finetune.data.batches import Batch
from finetune.errors import FinetuneError
from finetune.tasks.distances import contrastive_given, in_batch_negatives, triplet_given
from finetune.tasks.losses import build_loss
from finetune.tasks.metrics import build_measures, target_of
from finetune.tasks.pair_metrics import metric_of_pairs
from finetune.tasks.records import Asked
from finetune.tasks.task import Task
from finetune.tasks.task_facts import TaskFacts
from finetune.tasks.unfit_outputs import UnfitOutputsError, misfit
from finetune.tasks.weighted_loss import WeightedLoss


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much the members of a pair or triplet are alike."""

    cosine: float
    """Cosine of the embeddings of a pair, or of the first two of a triplet."""
    score: float | None = None
    """The cosine in the range of the scores; None without a `score_range`."""
    cosine_of_other: float | None = None
    """Cosine of the first and the last embedding of a triplet; None for a pair."""

    def row(self) -> dict[str, Any]:
        """Return what there is, by name."""
        found = {
            "cosine": self.cosine, "score": self.score, "cosine_of_other": self.cosine_of_other
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


def similarity(config: SimilarityTask, facts: TaskFacts) -> Task:
    """Build the task.

    Raises:
        FinetuneError: there are several target columns, or a loss or metric cannot be built.
    """
    if len(facts.outputs) > 1:
        raise FinetuneError(
            f"a pair has one score, and there are {len(facts.outputs)} target columns",
            key=("data", "target"),
        )
    number = 3 if config.compares == "triplets" else 2
    learnt = partial(_learnt, config.score_range)
    of_scores = partial(cosines_and_scores, config.score_range)
    ranked = partial(_partners, number)
    return Task(
        tuple(
            _loss(node, facts, place, number, learnt)
            for place, node in enumerate(config.chosen_losses)
        ),
        build_measures(
            config.chosen_metrics,
            metric_of_pairs,
            facts,
            # An imported metric gets what the usual one does.
            feed=of_scores if config.compares == "scores" else ranked,
            feeds={"triplet_accuracy": _two_cosines},
        ),
        partial(_read, number, config.score_range),
    )


def _loss(
    node: Loss,
    facts: TaskFacts,
    place: int,
    number: int,
    learnt: Callable[[Batch], Tensor],
) -> WeightedLoss:
    """Build one loss; one of the user's own sees outputs and targets as they are.

    Args:
        node: Its node.
        facts: What the task is built from.
        place: Its place in the config.
        number: Number of embeddings of a sample.
        learnt: Returns the cosine that each sample of a batch shall have, `(B,)`.
    """
    made = partial(WeightedLoss, node.label, node.weight)
    match node:
        case InBatchNegativesLoss(scale=scale, symmetric=symmetric):
            return made(
                lambda outputs, batch: in_batch_negatives(
                    scale, embeddings(number, outputs), symmetric=symmetric
                ),
                # Each sample is compared with all of its step: two half windows have another loss.
                whole_window=True,
            )
        case TripletLoss(margin=margin, distance=distance):
            return made(
                lambda outputs, batch: triplet_given(margin, distance, embeddings(number, outputs))
            )
        case ContrastiveLoss(margin=margin, distance=distance):
            return made(
                lambda outputs, batch: contrastive_given(
                    margin, distance, embeddings(number, outputs), learnt(batch)
                )
            )
        case ImportLoss():
            return build_loss(node, facts, place)
        case _:
            of_numbers = build_loss(node, facts, place)

            def of_cosines(outputs: Any, batch: Batch) -> Any:
                cosines = _cosines(embeddings(number, outputs))[:, 0]
                return of_numbers.function(cosines, replace(batch, target=learnt(batch)))

            return replace(of_numbers, function=of_cosines)


def embeddings(number: int, outputs: Any) -> Tensor:
    """Return outputs `(B, number, D)` as float32.

    Raises:
        UnfitOutputsError: they are something else.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or outputs.shape[1] != number:
        raise UnfitOutputsError(
            f"{number} embeddings a sample (B, {number}, D) are needed",
            "end the network with the embeddings side by side: {type: stack, inputs: "
            + ("[first, second, third]}" if number == 3 else "[first, second]}"),
        )
    # In half precision the cosines of near neighbours are equal.
    return outputs.float()


def _cosines(found: Tensor) -> Tensor:
    """Return the cosine of the first embedding and each of the others, `(B, K - 1)`."""
    return F.cosine_similarity(found[:, :1], found[:, 1:], dim=2)


def _learnt(score_range: tuple[float, float] | None, batch: Batch) -> Tensor:
    """Return the cosine that each sample shall have, `(B,)`, from its score."""
    scores = target_of(batch).float().reshape(len(batch))
    if score_range is None:
        return scores
    low, high = score_range
    return (scores - low) / (high - low)


def cosines_and_scores(
    score_range: tuple[float, float] | None, outputs: Any, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return cosines and the cosines that they shall be, `(B,)` each.

    Args:
        score_range: The scores that are learnt as cosine 0 and 1; None if scores are cosines.
        outputs: Embeddings `(B, 2, D)`.
        batch: The pairs, with their scores.

    Raises:
        UnfitOutputsError: the outputs are something else.
    """
    return _cosines(embeddings(2, outputs))[:, 0], _learnt(score_range, batch)


def _partners(number: int, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return embeddings of length 1 of samples and their partners, `(B, D)` each."""
    found = F.normalize(embeddings(number, outputs), dim=2)
    return found[:, 0], found[:, 1]


def _two_cosines(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cosines of a sample with its like and with the other, `(B,)` each."""
    of_like, of_other = _cosines(embeddings(3, outputs)).unbind(1)
    return of_like, of_other


def _read(
    number: int,
    score_range: tuple[float, float] | None,
    outputs: Any,
    asked: Asked | None = None,
) -> list[Likeness]:
    """Return how much each pair or triplet is alike."""
    try:
        rows = _cosines(embeddings(number, outputs)).tolist()
    except ValueError as error:
        raise misfit("a prediction", outputs, None, error) from error
    low, high = score_range or (0.0, 1.0)
    return [
        Likeness(
            row[0],
            None if score_range is None else low + row[0] * (high - low),
            row[1] if number == 3 else None,
        )
        for row in rows
    ]
