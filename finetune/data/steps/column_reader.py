"""Read a column of samples as words or as numbers, for a step that is fitted on it.

Letters: N samples, D numbers of a sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cells import no_number
from finetune.data.gaps import numbers_of_gaps
from finetune.data.samples import Prepared
from finetune.data.table import Listed, Numbers
from finetune.data.vectors import Vectors
from finetune.errors import DataError, Key

Place = Callable[[int], str]
"""Returns the place of a row, for messages."""
Flat = NDArray[np.float64]
"""Numbers `(N, D)`; an empty cell is NaN."""


@dataclass(frozen=True, slots=True)
class ColumnReader:
    """Reads columns for one step.

    Args:
        step: Type of the step, for messages.
        key: Place of the step in the config, for messages.
    """

    step: str
    key: Key

    def words(
        self, name: str, column: Prepared, place: Place, *, allows_gaps: bool = False
    ) -> list[str]:
        """Return the cells of a column as words; numbers in their shortest form.

        Raises:
            DataError: a cell is empty, or no word.
        """
        if isinstance(column, Numbers) and column.values.ndim == 1:
            self._refuse_merged(name, column.values, place)
            words = [_word(value) for value in column.values.tolist()]
        elif isinstance(column, Listed) and all(isinstance(cell, str) for cell in column.values):
            words = list(column.values)
        else:
            raise self.error(f"{self.step} needs words, column {name!r} holds none")
        if not allows_gaps and "" in words:
            raise self.error(
                f"column {name!r} has an empty cell in {place(words.index(''))}",
                f"before this step: {{type: fill, columns: [{name}], with: most_frequent}}",
            )
        return words

    def _refuse_merged(self, name: str, values: Tensor, place: Place) -> None:
        """Raise if whole numbers are floats so large that two of them may have become one."""
        if not values.is_floating_point():
            return
        # From here on the next whole number is not a float of this type any more: ids merge.
        limit = 2 / torch.finfo(values.dtype).eps
        rows = torch.nonzero((values.abs() >= limit) & values.isfinite()).flatten()
        if len(rows):
            raise self.error(
                f"column {name!r} holds {values[rows[0]].item():.0f} in {place(int(rows[0]))}: "
                f"whole numbers above {limit:,.0f} with empty cells, or after a step that makes "
                "them floats, cannot be told apart",
                "write them as text, such as id16777217",
            )

    def numbers(self, name: str, column: Prepared, place: Place) -> Numbers:
        """Return a column of numbers, `(N,)` or `(N, D)`; raise for anything else."""
        if isinstance(column, Listed):
            if (gaps := numbers_of_gaps(column)) is None:
                raise no_number(name, column, place, self.key)
            column = gaps
        column = column.whole() if isinstance(column, Vectors) else column
        if not isinstance(column, Numbers) or column.values.ndim > 2:
            raise self.error(
                f"{self.step} needs a column of numbers, {name!r} holds none",
                "images are scaled by {type: ToDtype} and {type: Normalize}",
            )
        return column

    def flat(self, name: str, column: Prepared, place: Place) -> Flat:
        """Return a column of numbers as a float64 array `(N, D)`; D is 1 for one number a sample.

        Raises:
            DataError: the column holds something else than numbers.
        """
        values = self.numbers(name, column, place).values
        # In doubles: sums of squares of large numbers lose all digits in float32.
        flat: Flat = values.double().reshape(len(values), -1).numpy()
        return flat

    def with_values(self, name: str, flat: Flat) -> Flat:
        """Return numbers unchanged; raise if one of them is empty in every sample."""
        if bool(np.isnan(flat).all(axis=0).any()):
            raise self.error(
                f"column {name!r} has no value in the training part",
                f"leave it out, or give a number: {{type: fill, columns: [{name}], with: 0}}",
            )
        return flat

    def refuse_width(self, name: str, flat: Flat, figures: Sequence[float]) -> None:
        """Raise if samples have another number of values than those that were fitted on."""
        if flat.shape[1] != len(figures):
            raise self.error(
                f"column {name!r} has {flat.shape[1]} numbers a sample, training had {len(figures)}"
            )

    def error(self, message: str, hint: str | None = None) -> DataError:
        """Return an error at the place of the step."""
        return DataError(message, hint=hint, key=self.key)


def _word(number: float) -> str:
    """Return a number as the name of a category: 3 of one file and 3.0 of another are the same."""
    if math.isnan(number):
        return ""
    if float(number).is_integer() and abs(number) < 2**63:
        return str(int(number))
    # As float32, which a column with a fraction has; float64 would print more digits.
    return str(np.float32(number))
