"""What an evaluation has seen of each task of a list, and the pictures of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.data.batches import Batch
from finetune.pictures.drawing import Picture
from finetune.tasks.views import View
from finetune.train.looks.seen import Curve, Inputs, Seen


@dataclass(frozen=True, slots=True)
class SeenTasks:
    """One collection for each task; the samples without a target of a task are not in its own."""

    by_view: Mapping[View, Seen]
    _met: set[View] = field(default_factory=set)
    """Tasks that a sample had a target of: the others have nothing to show."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take the outputs of all tasks, by name."""
        for view, seen in self.by_view.items():
            own, known = view.of(outputs, batch)
            if len(known):
                seen.add(own, known)
                self._met.add(view)

    def shown(self) -> Sequence[int]:
        """Return the samples that the pictures of all tasks show."""
        return [number for _, seen in self._seen() for number in seen.shown()]

    def pictures(self, show: Mapping[int, Inputs]) -> dict[str, Picture]:
        """Return the pictures of each task, with its name before theirs."""
        return {
            f"{view.task}/{name}": replace(picture, title=f"{view.task}: {picture.title}")
            for view, seen in self._seen()
            for name, picture in seen.pictures(show).items()
        }

    def curves(self) -> list[Curve]:
        """Return the curves of each task, with its name before theirs."""
        return [
            curve._replace(name=f"{view.task}/{curve.name}")
            for view, seen in self._seen()
            for curve in seen.curves()
        ]

    def _seen(self) -> list[tuple[View, Seen]]:
        return [(view, seen) for view, seen in self.by_view.items() if view in self._met]
