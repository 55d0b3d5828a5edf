"""Steps that are fitted on the training samples: standardize, fill, categories, clip.

Letters: N samples, D numbers of a sample, K categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.config.fitted_keys import (
    CategoriesTransform,
    ClipTransform,
    FillTransform,
    FittedTransform,
    StandardizeTransform,
)
from finetune.data.gaps import numbers_of_gaps
from finetune.data.samples import Columns, Prepared, Sample, replaced
from finetune.data.short_values import in_short
from finetune.data.steps.column_reader import ColumnReader, Flat, Place
from finetune.data.steps.learnt import (
    MOST_CATEGORIES,
    Figures,
    Filling,
    Known,
    Learnt,
    Limits,
    Scale,
)
from finetune.data.table import Listed, Numbers
from finetune.data.vectors import OneHot, Vectors
from finetune.errors import Faults, Key

_MOST_ONE_HOT = 1000
"""Most categories of a one-hot column: each adds 4 bytes to every sample of a batch."""

FAR = 10
"""Deviations from the mean of training beyond which a number counts as far."""


@dataclass(slots=True)
class Met:
    """A running count of what a step met in one column."""

    num_cells: int = 0
    num_empty: int = 0
    num_unknown: int = 0
    unknown: str = ""
    """The first unknown category, with its place."""
    num_far: int = 0
    """Numbers that are many deviations from the mean of training."""


@dataclass(frozen=True, slots=True)
class FittedStep:
    """One step and what it has kept of the training samples; not fitted yet without that."""

    node: FittedTransform
    key: Key
    figures: Mapping[str, Figures] | None = None
    met: dict[str, Met] = field(default_factory=dict, compare=False, repr=False)
    """Counts by column; mutated by each call."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the step reads and replaces."""
        return self.node.columns

    @property
    def learnt(self) -> Learnt:
        """What a run keeps of the step."""
        makes_positions = isinstance(self.node, CategoriesTransform) and self.node.as_ == "index"
        return Learnt(self.node.type, self.figures or {}, makes_positions)

    @property
    def _read(self) -> ColumnReader:
        """Reads columns as words or numbers; its errors name this step."""
        return ColumnReader(self.node.type, self.key)

    def given(self, name: str) -> tuple[str, ...]:
        """Return the columns that take the place of one that it takes."""
        is_flagged = isinstance(self.node, FillTransform) and self.node.flag
        return (name, f"{name}_missing") if is_flagged else (name,)

    def with_figures(self, learnt: Learnt) -> "FittedStep":
        """Return the step with what a run has kept, counting from zero."""
        return replace(self, figures=learnt.columns, met={})

    def fitted(self, columns: Columns, place: Place) -> "FittedStep":
        """Return the step fitted on the training samples.

        Raises:
            FinetuneError: a column is of another kind, or has no value. Faults of several columns
                are reported at once.
        """
        figures: dict[str, Figures] = {}
        faults = Faults()
        for name in self.columns:
            with faults.noted():
                figures[name] = self._fitted(name, columns[name], place)
        faults.raise_if_any()
        return replace(self, figures=figures, met={})

    def __call__(self, sample: Sample) -> Sample:
        """Return one sample with its columns replaced."""
        columns: Columns = {
            name: Numbers(value.unsqueeze(0))
            if isinstance(value, Tensor)
            else Listed([value], "text")
            for name, value in sample.items()
            if name in self.columns
        }
        # As columns of one row: a sample gets the same bits alone and in its column.
        whole = self.whole(columns, lambda _: "this sample")
        for name in self.columns:
            new = {other: whole[other][0] for other in self.given(name)}
            sample = replaced(sample, [name], new)
        return sample

    def whole(self, columns: Columns, place: Place) -> Columns:
        """Return the columns with those of the step replaced.

        Args:
            columns: All columns.
            place: Names a row for a message.

        Raises:
            DataError: the step was not fitted, or a column is of another kind.
        """
        for name in self.columns:
            if self.figures is None or (figures := self.figures.get(name)) is None:
                raise self._read.error(f"{self.node.type} of {name!r} was not fitted")
            values = self._applied(name, columns[name], figures, place)
            new = dict(zip(self.given(name), values, strict=True))
            columns = replaced(columns, [name], new)
        return columns

    def _fitted(self, name: str, column: Prepared, place: Place) -> Figures:
        """Return what this step learns from one column of training samples; nothing is changed.

        That is mean and deviation, limits, what fills empty cells, or the known categories. Raises
        `DataError` if the column has no such values; `place` names a row.
        """
        match self.node:
            case StandardizeTransform():
                return self._scale(name, self._read.flat(name, column, place))
            case ClipTransform() as node if node.quantiles is not None:
                low, high = np.nanquantile(
                    self._read.with_values(name, self._read.flat(name, column, place)),
                    node.quantiles,
                    axis=0,
                )
                return Limits(tuple(low.tolist()), tuple(high.tolist()))
            case ClipTransform() as node:
                # Limits that are given need no samples, only how many numbers a sample has.
                width = self._read.flat(name, column, place).shape[1]
                ends = (None if end is None else (end,) * width for end in (node.low, node.high))
                return Limits(*ends)
            case FillTransform() as node:
                return self._filling(node, name, column, place)
            case CategoriesTransform() as node:
                return self._known(node, name, self._read.words(name, column, place))
            case _:
                assert_never(self.node)

    def _applied(
        self, name: str, column: Prepared, figures: Figures, place: Place
    ) -> Sequence[Numbers | Listed | Vectors]:
        """Return the columns that take the place of one, in the order of `given`."""
        match figures:
            case Filling(value=value):
                return self._filled(name, column, value, place)
            case Known(names=names):
                return (self._coded(name, self._read.words(name, column, place), names, place),)
        raw = self._read.numbers(name, column, place)
        flat = self._read.flat(name, raw, place)
        match figures:
            case Scale(mean=mean, deviation=deviation):
                # A constant becomes 0, and any other value keeps its distance from it.
                divisor = [one or 1.0 for one in deviation]
                self._read.refuse_width(name, flat, mean)
                flat = (flat - np.asarray(mean)) / np.asarray(divisor)
                met, is_scaled = self.met.setdefault(name, Met()), _have_size(mean, deviation)
                met.num_cells += len(flat) * int(is_scaled.sum())
                met.num_far += int((np.abs(flat[:, is_scaled]) > FAR).sum())
            case Limits(low=low, high=high):
                for end in (low, high):
                    self._read.refuse_width(name, flat, end or (0.0,) * flat.shape[1])
                flat = np.clip(flat, low, high) if low or high else flat
            case _:
                assert_never(figures)
        return (_as_column(flat, raw),)

    def _scale(self, name: str, flat: Flat) -> Scale:
        """Return mean and standard deviation of each number of a sample, over the samples.

        Divided by the count, not the count less one, as scikit-learn's `StandardScaler` does; 0 for
        numbers that are all equal.
        """
        flat = self._read.with_values(name, flat)
        mean, deviation = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
        # Compared, not computed: the mean of large equal numbers differs from them in the last bit,
        # and to divide by that difference would make noise as large as a signal.
        least = np.nanmin(flat, axis=0)
        is_constant = least == np.nanmax(flat, axis=0)
        mean, deviation = np.where(is_constant, least, mean), np.where(is_constant, 0.0, deviation)
        return Scale(tuple(mean.tolist()), tuple(deviation.tolist()))

    def _filling(self, node: FillTransform, name: str, column: Prepared, place: Place) -> Filling:
        """Return what goes into the empty cells of one column."""
        if isinstance(column, Listed) and numbers_of_gaps(column) is None:
            return Filling(self._most_frequent_word(node, name, column, place))
        flat = self._read.flat(name, column, place)
        if isinstance(node.with_, float):
            # Before values are asked for: a given number fills a column without any, too.
            return Filling((float(node.with_),) * flat.shape[1])
        flat = self._read.with_values(name, flat)
        match node.with_:
            case "mean":
                return Filling(tuple(np.nanmean(flat, axis=0).tolist()))
            case "median":
                return Filling(tuple(np.nanmedian(flat, axis=0).tolist()))
            case "most_frequent":
                return Filling(tuple(_most_frequent(one) for one in flat.T))
            case _:
                assert_never(node.with_)

    def _most_frequent_word(
        self, node: FillTransform, name: str, column: Listed, place: Place
    ) -> str:
        """Return the most frequent text of a column, of equals the first in sorted order."""
        words = self._read.words(name, column, place, allows_gaps=True)
        if node.with_ != "most_frequent":
            row = next(row for row, word in enumerate(words) if word)
            what = "a number" if isinstance(node.with_, float) else f"a {node.with_}"
            raise self._read.error(
                f"column {name!r} holds words, such as {in_short(words[row])} in {place(row)}, "
                f"and its cells cannot be filled with {what}",
                "with: most_frequent",
            )
        found, counts = np.unique([word for word in words if word], return_counts=True)
        return str(found[counts.argmax()])

    def _known(self, node: CategoriesTransform, name: str, words: Sequence[str]) -> Known:
        """Return the categories of one column, sorted."""
        # Sorted, so that positions do not depend on the order of the rows.
        names = tuple(sorted(set(words)))
        if len(names) > MOST_CATEGORIES:
            raise self._read.error(
                f"column {name!r} has {len(names):,} categories, at most {MOST_CATEGORIES:,} are "
                "kept",
                "nearly every sample has one of its own: leave the column out of data.inputs, or "
                "group its values",
            )
        if node.as_ == "one_hot" and len(names) > _MOST_ONE_HOT:
            raise self._read.error(
                f"column {name!r} has {len(names):,} categories, at most {_MOST_ONE_HOT:,} make a "
                "vector",
                "as: index, for a layer {type: Embedding, num_embeddings: categories}",
            )
        return Known(names)

    def _filled(
        self, name: str, column: Prepared, value: str | tuple[float, ...], place: Place
    ) -> Sequence[Numbers | Listed]:
        """Return a column with its empty cells filled, and which cells they were if asked for."""
        if isinstance(value, str):
            words = self._read.words(name, column, place, allows_gaps=True)
            empty = np.array([word == "" for word in words])
            filled: Numbers | Listed = Listed([word or value for word in words], "text")
            flags = Numbers(torch.from_numpy(empty.astype(np.float32)))
        else:
            raw = self._read.numbers(name, column, place)
            flat = self._read.flat(name, raw, place)
            self._read.refuse_width(name, flat, value)
            empty = np.isnan(flat)
            filled = _as_column(np.where(empty, np.asarray(value), flat), raw)
            flags = _as_column(empty, raw)
        met = self.met.setdefault(name, Met())
        met.num_cells += empty.size
        met.num_empty += int(empty.sum())
        return (filled, flags) if len(self.given(name)) > 1 else (filled,)

    def _coded(
        self, name: str, words: Sequence[str], names: Sequence[str], place: Place
    ) -> Numbers | Vectors:
        """Return categories as positions `(N,)`, or as vectors `(N, K)`."""
        # From 1: position 0 is that of all unknown categories.
        number = {word: position for position, word in enumerate(names, 1)}
        positions = np.array([number.get(word, 0) for word in words], dtype=np.int64)
        met, unknown = self.met.setdefault(name, Met()), np.flatnonzero(positions == 0)
        if len(unknown) and not met.num_unknown:
            met.unknown = f"{in_short(words[unknown[0]])} in {place(int(unknown[0]))}"
        met.num_cells, met.num_unknown = met.num_cells + len(words), met.num_unknown + len(unknown)
        if isinstance(self.node, CategoriesTransform) and self.node.as_ == "index":
            return Numbers(torch.from_numpy(positions))
        return Vectors((OneHot.of(torch.from_numpy(positions), len(names)),))


def _most_frequent(numbers: Flat) -> float:
    """Return the most frequent of some numbers, of equals the smallest; empty ones do not count."""
    found, counts = np.unique(numbers[~np.isnan(numbers)], return_counts=True)
    return float(found[counts.argmax()])


def _have_size(mean: Sequence[float], deviation: Sequence[float]) -> NDArray[np.bool_]:
    """Tell of which numbers of a sample others can be far: neither constant, nor 0 and 1 alone."""
    means, deviations = np.asarray(mean), np.asarray(deviation)
    # The variance of 0 and 1; a rare 1 is many deviations away, and as good as any.
    is_flag = np.isclose(deviations**2, means * (1 - means), rtol=1e-6, atol=0)
    return np.asarray((deviations > 0) & ~is_flag)


def _as_column(flat: Flat, like: Numbers) -> Numbers:
    """Return numbers `(N, D)` in float32, in the shape of the column that they came from."""
    values = torch.from_numpy(flat.astype(np.float32))
    return Numbers(values.reshape(like.values.shape))
