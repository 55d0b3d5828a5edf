"""The names behind the numbers of a network: classes of outputs, categories of inputs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from finetune.data.opening import DataFacts
from finetune.data.steps.learnt import Known, Learnt, read_learnt

META = "finetune"
"""Entry in the metadata of a file of weights that holds the `document_of` its run."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """The names of the classes and categories of a network, in the order of its numbers."""

    classes: tuple[str, ...] | None
    """Names of the classes in the order of the outputs; None if there are none."""
    categories: Mapping[str, tuple[str, ...]]
    """Categories by column, in the order of their positions or of their vectors."""

    @classmethod
    def of(cls, facts: DataFacts) -> Self:
        """Return the meaning that data gives to the numbers of a network."""
        return cls(facts.classes, _categories(facts.fitted))

    @classmethod
    def read(cls, document: object) -> Self | None:
        """Return the meaning in a run's `data.json`, or what `document_of` gave; else None."""
        if not isinstance(document, dict):
            return None
        classes: Any = document.get("classes")
        is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        try:
            fitted = read_learnt(document.get("fitted", []))
        except ValueError:
            return None
        return cls(tuple(classes) if is_list else None, _categories(fitted))


def document_of(facts: DataFacts) -> str:
    """Return the meaning as JSON, for the metadata of a file of weights."""
    fitted = [asdict(one) for one in facts.fitted if one.type == "categories"]
    document: dict[str, Any] = {"classes": facts.classes, "fitted": fitted}
    return json.dumps(document)


def _categories(fitted: tuple[Learnt, ...]) -> dict[str, tuple[str, ...]]:
    """Return the categories of each column that has some."""
    return {
        name: figures.names
        for one in fitted
        for name, figures in one.columns.items()
        if isinstance(figures, Known)
    }
