"""One prediction over new samples: each piece read, predicted and turned into plain rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from finetune.config.task_keys import ClassificationTask, SpanTask
from finetune.counting import Counting
from finetune.data.incoming.incoming_part import Incoming
from finetune.errors import FinetuneError
from finetune.outfolder import Put
from finetune.predict.beside import Beside
from finetune.predict.predictor import Predictor
from finetune.predict.remarks import Remarks
from finetune.process import end_if_asked
from finetune.train.after.trained import TrainedRun


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked of a prediction.

    Args:
        on_error: Whether a sample that cannot be predicted ends it, or is passed over.
        columns: Whether the input's columns are written beside the predictions.
        top_k: How many of the most probable classes are written; None for all of them.
        embeddings: Layer whose output is written too; None for none.
        below: Only predictions of a lower probability are written; None for all.
    """

    on_error: Literal["stop", "skip"] = "stop"
    columns: bool = True
    top_k: int | None = None
    embeddings: str | None = None
    below: float | None = None


class Piece(NamedTuple):
    """The rows of one piece of the input; how many samples were passed over, and predicted."""

    rows: list[dict[str, Any]]
    num_bad: int
    num_predicted: int


class SoFar(NamedTuple):
    """State that a later process needs to go on behind the pieces that were predicted."""

    names: Mapping[str, str]
    """Name of each of the input's columns beside the predictions."""
    num_odd: int
    """Predictions with a number that is not finite."""
    first_odd: str
    """Name of the first sample with one."""


class Told(NamedTuple):
    """Who receives lines for the user."""

    note: Callable[[str], None]
    """Receives notes."""
    bad: Callable[[str], None]
    """Receives the line for a sample that was passed over."""


class PiecewisePrediction:
    """Predicts one piece of the input after another.

    Args:
        predictor: The trained network.
        asking: What is asked.
        told: Who receives lines for the user.
    """

    def __init__(self, predictor: Predictor, asking: Asking, told: Told) -> None:
        _refuse_unfit(predictor.run, asking)
        self._predictor = predictor
        if asking.embeddings is not None:
            self._predictor = predictor.tapped(asking.embeddings)
        self._asking = asking
        self._told = told
        self.beside = Beside(told.note)
        self.remarks = Remarks(predictor.run, told.note)
        self.example: dict[str, Any] | None = None
        """A row, also if it is not to be written: the columns of a file without rows."""
        self._counting: Counting | None = None
        self._count = 0
        """Samples of the input before the present piece."""

    def pieces(self, parts: Iterable[Incoming], put: Put | None = None) -> Iterator[Piece]:
        """Yield the rows of each piece.

        Args:
            parts: The pieces of the input.
            put: Writes the pictures of predictions that have some; None to write none.

        Raises:
            FinetuneError: a sample cannot be predicted, and none is to be passed over.
        """
        for part in self.heard(parts):
            yield self.piece(part, put)

    def heard(self, parts: Iterable[Incoming]) -> Iterator[Incoming]:
        """Yield the pieces of the input, and tell how they were read."""
        for part in parts:
            end_if_asked()
            self.remarks.on(part)
            yield part

    def go_on(self, count: int, so_far: SoFar) -> None:
        """Go on behind `count` samples that were predicted before."""
        self._count, self.beside.names = count, dict(so_far.names)
        self.remarks.num_odd, self.remarks.first_odd = so_far.num_odd, so_far.first_odd

    @property
    def so_far(self) -> SoFar:
        """The state with which a later process can go on from here."""
        return SoFar(self.beside.names, self.remarks.num_odd, self.remarks.first_odd)

    def piece(self, part: Incoming, put: Put | None = None) -> Piece:
        """Return the rows of one piece that `heard` has yielded; see `pieces`."""
        if not part.names:
            return Piece([], 0, 0)
        said, num_bad = self._said(part, put)
        self._count += len(part.names)
        if not said:
            return Piece([], num_bad, 0)
        beside: list[dict[str, Any]] = [{} for _ in part.names]
        if self._asking.columns:
            beside = self.beside.rows(part, next(iter(said.values())))
        below = self._asking.below
        whole = {at: {"input": part.names[at]} | beside[at] | row for at, row in said.items()}
        self.example = self.example or next(iter(whole.values()))
        rows = [
            row
            for row in whole.values()
            # Not `<`: of a probability that is NaN nobody is sure.
            if below is None or not row["probability"] >= below
        ]
        return Piece(rows, num_bad, len(said))

    def _said(self, part: Incoming, put: Put | None) -> tuple[dict[int, dict[str, Any]], int]:
        """Return what is predicted of each sample by position, and how many were passed over."""
        good = [at for at in range(len(part.names)) if at not in part.bad]
        for at, error in part.bad.items():
            self._pass_over(part, at, error)
        if not good:
            return {}, len(part.bad)
        num_bad = len(part.bad)

        def bad(at: int, error: FinetuneError) -> None:
            nonlocal num_bad
            num_bad += 1
            self._pass_over(part, good[at], error)

        columns, places = part.columns, part.places
        if part.bad:
            columns = {name: [cells[at] for at in good] for name, cells in columns.items()}
            places = places.at(good)
        is_passing = self._asking.on_error == "skip"
        answers = self._predictor.answers(
            columns, places=places, tell=self.remarks.tell, bad=bad if is_passing else None
        )
        # From the first sample on: to load libraries takes its time as well.
        self._counting = self._counting or Counting("predicting", "rows")
        said = {}
        for answer in answers:
            end_if_asked()
            at = good[answer.position]
            row = self._predictor.plain(answer, part.names[at], put)
            self.remarks.predicted(row, part.names[at])
            said[at] = row if self._asking.top_k is None else with_top(row, self._asking.top_k)
            self._counting.at(self._count + at)
        return said, num_bad

    def _pass_over(self, part: Incoming, at: int, error: FinetuneError) -> None:
        """Tell that a sample is passed over, and why."""
        where = error.where or part.names[at]
        self._told.bad(f"passed over: {where}: {error.message}")


def with_top(row: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a row with its most probable classes as `label/1`, `score/1`, ..., not with all."""
    row = dict(row)
    by_class: dict[str, float] = row.pop("probabilities")
    # Of equal ones the first class counts first, as in `label`.
    best = sorted(by_class, key=lambda name: -by_class[name])[:count]
    for rank, name in enumerate(best, 1):
        row |= {f"label/{rank}": name, f"score/{rank}": by_class[name]}
    return row


def _refuse_unfit(run: TrainedRun, asking: Asking) -> None:
    """Raise if what is asked needs probabilities of classes that the run does not predict."""
    if asking.embeddings is not None and isinstance(run.config.task, SpanTask):
        raise FinetuneError(
            "gives one embedding for each row, and here a row may have several windows of its text",
            where="--embeddings",
            hint="leave it out",
        )
    asked = {"--top-k": asking.top_k, "--below": asking.below}
    option = next((name for name, value in asked.items() if value is not None), None)
    if option is None:
        return
    task, classes = run.config.task, run.facts.classes
    is_of_classes = isinstance(task, ClassificationTask) and not task.learns_embeddings
    if not is_of_classes or classes is None:
        raise FinetuneError(
            "is for a classification, where each prediction has a probability",
            where=option,
            hint=f"leave it out: the task of the run is {task.type}",
        )
    if asking.top_k is not None and asking.top_k > len(classes):
        raise FinetuneError(
            f"asks for {asking.top_k} classes, and the run knows {len(classes)}", where=option
        )
