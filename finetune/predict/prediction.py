"""One prediction over new samples: each piece read, predicted and turned into plain rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from finetune.counting import Counting
from finetune.data.incoming_part import Incoming
from finetune.errors import FinetuneError
from finetune.outfolder import Put
from finetune.predict.beside import Beside
from finetune.predict.predictor import Predictor
from finetune.predict.remarks import Remarks


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked of a prediction.

    Args:
        on_error: Whether a sample that cannot be predicted ends it, or is passed over.
        columns: Whether the input's columns are written beside the predictions.
    """

    on_error: Literal["stop", "skip"] = "stop"
    columns: bool = True


class Piece(NamedTuple):
    """The rows of one piece of the input, and how many of its samples were passed over."""

    rows: list[dict[str, Any]]
    num_bad: int


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
        self._predictor = predictor
        self._asking = asking
        self._told = told
        self.beside = Beside(told.note)
        self.remarks = Remarks(predictor.run, told.note)
        self._counting: Counting | None = None
        self._count = 0

    def pieces(self, parts: Iterable[Incoming], put: Put | None = None) -> Iterator[Piece]:
        """Yield the rows of each piece.

        Args:
            parts: The pieces of the input.
            put: Writes the pictures of predictions that have some; None to write none.

        Raises:
            FinetuneError: a sample cannot be predicted, and none is to be passed over.
        """
        for part in parts:
            self.remarks.on(part)
            yield self.piece(part, put)
            self._count += len(part.names)

    def piece(self, part: Incoming, put: Put | None = None) -> Piece:
        """Return the rows of one piece; see `pieces`."""
        if not part.names:
            return Piece([], 0)
        said, num_bad = self._said(part, put)
        if not said:
            return Piece([], num_bad)
        beside: list[dict[str, Any]] = [{} for _ in part.names]
        if self._asking.columns:
            beside = self.beside.rows(part, next(iter(said.values())))
        rows = [{"input": part.names[at]} | beside[at] | row for at, row in said.items()]
        return Piece(rows, num_bad)

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
            at = good[answer.position]
            said[at] = self._predictor.plain(answer, part.names[at], put)
            self._counting.at(self._count + at)
        return said, num_bad

    def _pass_over(self, part: Incoming, at: int, error: FinetuneError) -> None:
        """Tell that a sample is passed over, and why."""
        where = error.where or part.names[at]
        self._told.bad(f"passed over: {where}: {error.message}")
