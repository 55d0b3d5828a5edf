"""Weights of classes and labels in a loss: a list, by name, or balanced by the training samples.

Letters: C classes or labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from finetune.errors import FinetuneError, Key, did_you_mean, named
from finetune.tasks.task_facts import TaskFacts, TrainingCounts

Written = Literal["balanced"] | Sequence[float] | Mapping[str, float] | None
"""Weights as a config has them."""


def weights_of_classes(written: Written, facts: TaskFacts, key: Key) -> Tensor | None:
    """Return the weight of each class, `(C,)` float32; None if the config names none.

    `balanced` is n / (k * count), the formula of scikit-learn's `compute_class_weight`, where n is
    the number of training samples and k that of the classes that have any. A class without one
    weighs 1.

    Args:
        written: The weights in the config.
        facts: What the task is built from.
        key: Where they are in the config.

    Raises:
        FinetuneError: they do not fit the classes.
    """
    return _weights(written, facts, facts.names, _balanced_classes, key)


def weights_of_labels(written: Written, facts: TaskFacts, key: Key) -> Tensor | None:
    """Return the weight of the samples that have each label, `(C,)`; None if the config names none.

    `balanced` is the number of training samples without the label over that with it, as the
    documentation of `torch.nn.BCEWithLogitsLoss` has it. Where either is 0 the weight is 1. With
    two classes it is about the second one, for which there is one logit.

    Args:
        written: The weights in the config.
        facts: What the task is built from.
        key: Where they are in the config.

    Raises:
        FinetuneError: they do not fit the labels.
    """
    names = facts.names if facts.learns == "labels" else facts.names[1:]
    if written is not None and facts.learns != "labels" and len(names) != 1:
        raise FinetuneError(
            f"{key[-1]} needs labels, or two classes",
            hint="cross_entropy has class_weights" if facts.names else None,
            key=key,
        )
    return _weights(written, facts, names, _balanced_labels, key)


def _balanced_classes(counts: TrainingCounts) -> list[float]:
    total, known = sum(counts.by_class), sum(count > 0 for count in counts.by_class)
    return [total / (known * count) if count else 1.0 for count in counts.by_class]


def _balanced_labels(counts: TrainingCounts) -> list[float]:
    return [
        (counts.samples - count) / count if 0 < count < counts.samples else 1.0
        for count in counts.by_class
    ]


def _weights(
    written: Written,
    facts: TaskFacts,
    names: Sequence[str],
    balanced: Callable[[TrainingCounts], list[float]],
    key: Key,
) -> Tensor | None:
    """Return a weight for each class or label, `(names,)`; None if the config writes none.

    Args:
        written: A list, a mapping of names to weights, or a word that asks `balanced`.
        facts: What is known of the target.
        names: The classes or labels.
        balanced: Gives the weights by how often each class comes in training.
        key: The key of the config, for messages.

    Raises:
        FinetuneError: the weights do not fit the names, or cannot be counted.
    """
    if written is None:
        return None
    if not names:
        raise FinetuneError(f"{key[-1]} needs classes or labels, which this task has not", key=key)
    match written:
        case str():
            if facts.counts is None:
                raise FinetuneError(
                    "nobody has counted the training samples of each class",
                    hint=f"{key[-1]}: a list with a weight for each class, or {{class: weight}}",
                    key=key,
                )
            # With one logit for two classes the weight is that of the second.
            values = balanced(facts.counts)[-len(names) :]
        case Mapping():
            values = _by_name(written, names, key)
        case _:
            values = list(written)
            if len(values) != len(names):
                raise FinetuneError(
                    f"{len(values)} weights for {len(names)} classes: {named(names)}",
                    hint="{class: weight} names only some of them",
                    key=key,
                )
    if not any(values):
        raise FinetuneError("every weight is 0, so there is nothing to learn", key=key)
    return torch.tensor(values, dtype=torch.float32, device=facts.device)


def _by_name(written: Mapping[str, float], names: Sequence[str], key: Key) -> list[float]:
    """Return the weight of each name, 1 where none is written."""
    for name in written:
        if name not in names:
            raise FinetuneError(
                f"no class {name!r}; there are: {named(names)}",
                hint=did_you_mean(name, names),
                key=(*key, name),
            )
    return [written.get(name, 1.0) for name in names]
