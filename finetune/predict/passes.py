"""Passes of a network over samples: batches by length, in the order of the samples afterwards.

Letters: B samples of a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import Batch, Samples
from finetune.data.incoming.own_sizes import own_size
from finetune.data.loading.named_rows import rows_named
from finetune.errors import DataError, ModelError
from finetune.predict.tap import Tap
from finetune.tasks.records import Asked, PredictionRecord
from finetune.train.after.known_rows_of_run import KnownToRun
from finetune.train.after.trained import TrainedRun
from finetune.train.build import located

WINDOW = 1024
"""Samples among which those of like length are put together, at least one batch."""

OnBad = Callable[[int, DataError | ModelError], None]
"""Receives the position of a sample that cannot be predicted, and why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says of one sample.

    Args:
        position: Its position among the samples.
        record: The prediction.
        embedding: Output of the layer that was asked for; None if none was.
    """

    position: int
    record: PredictionRecord
    embedding: Tensor | None


@dataclass(frozen=True, slots=True)
class Passes:
    """Runs a trained network over samples."""

    run: TrainedRun
    batch_size: int
    tap: Tap | None = None
    """Takes the output of a layer, if one was asked for."""
    known: KnownToRun | None = None
    """Answers the frozen layers for samples with stored rows; None to run them all."""

    def over(
        self, samples: Samples, columns: Mapping[str, Sequence[Any]], bad: OnBad | None
    ) -> Iterator[Answer]:
        """Yield the answer for each sample, in order.

        Args:
            samples: The samples.
            columns: Their columns as they were handed in.
            bad: Receives samples that cannot be predicted; None to raise.

        Raises:
            DataError: a sample cannot be made.
            ModelError: the network cannot take a sample.
        """
        for window in torch.arange(len(samples)).split(window_size(self.batch_size)):
            lengths = samples.lengths(window)
            if lengths is None:
                # Nothing is padded: answers are passed on batch by batch, so that they never pile
                # up.
                cuts = list(window.split(self.batch_size))
                for answers in self._passes(samples, columns, cuts, bad):
                    yield from answers
                continue
            cuts = by_length(window, lengths, self.batch_size)
            # All answers of a window are there before the first is given: by length, they come out
            # of order.
            found = [one for part in self._passes(samples, columns, cuts, bad) for one in part]
            yield from sorted(found, key=lambda answer: answer.position)

    def _passes(
        self,
        samples: Samples,
        columns: Mapping[str, Sequence[Any]],
        cuts: Sequence[Tensor],
        bad: OnBad | None,
    ) -> Iterator[list[Answer]]:
        """Yield the answers of each batch; a batch with a bad sample is run again without it."""
        run = self.run
        done = 0
        while done < len(cuts):
            try:
                with located(run.config), closing(_fetched(samples, cuts[done:], run)) as batches:
                    for batch in batches:
                        yield self._answers(samples, columns, batch)
                        done += 1
                return
            except (DataError, ModelError):
                if bad is None:
                    raise
                # The error has ended the iterator of batches: fetching begins anew behind this one.
                good = self._without_bad(samples, columns, cuts[done], bad)
                if len(good):
                    yield self._answers(samples, columns, samples.fetch(good).to(run.device))
                done += 1

    def _without_bad(
        self, samples: Samples, columns: Mapping[str, Sequence[Any]], rows: Tensor, bad: OnBad
    ) -> Tensor:
        """Return the samples of a batch that can be predicted, found by halving; tell the others.

        Halves are smaller than the batch, so `bad` of one sample costs few passes.
        """
        try:
            self._answers(samples, columns, samples.fetch(rows).to(self.run.device))
        except (DataError, ModelError) as error:
            if len(rows) == 1:
                bad(int(rows[0]), error)
                return rows[:0]
            halves = rows.tensor_split(2)
            return torch.cat([self._without_bad(samples, columns, half, bad) for half in halves])
        return rows

    def _answers(
        self, samples: Samples, columns: Mapping[str, Sequence[Any]], batch: Batch
    ) -> list[Answer]:
        """Run the network on a batch and read its answers."""
        with nullcontext() if self.tap is None else self.tap.listening() as taken:
            outputs = self.outputs(samples, batch)
        # Outside of inference mode: autograd must be as the caller has it.
        records = self.records(outputs, columns, batch)
        embeddings: Sequence[Tensor | None] = [None] * len(records)
        if self.tap is not None and taken is not None:
            embeddings = self.tap.of(taken, batch)
        positions = batch.indices.tolist()
        return list(map(Answer, positions, records, embeddings))

    def outputs(self, samples: Samples, batch: Batch) -> Any:
        """Return the network's outputs for a batch, computed without a graph."""
        run = self.run.inference.outputs
        with rows_named(samples, batch):
            if self.known is None:
                return run(batch.inputs)
            return self.known.outputs(samples, batch, run)

    def records(
        self, outputs: Any, columns: Mapping[str, Sequence[Any]], batch: Batch
    ) -> list[PredictionRecord]:
        """Return the predictions that outputs for a batch are read as, in order."""
        given = partial(_given, columns, batch.indices)
        size = partial(self._size, given)
        return self.run.task.read(outputs, Asked(batch, given, size))

    def _size(
        self, given: Callable[[int], Mapping[str, Any]], number: int
    ) -> tuple[int, int] | None:
        """Return height and width of a sample's image as it was handed in."""
        return own_size(given(number), self.run.facts, self.run.config.data)


def window_size(batch_size: int) -> int:
    """Return how many samples are put together by length: whole batches, `WINDOW` or more."""
    return batch_size * max(1, WINDOW // batch_size)


def by_length(window: Tensor, lengths: Tensor, batch_size: int) -> list[Tensor]:
    """Return the samples of a window in batches of like length, which need least padding.

    The longest come first, so that memory that does not suffice shows at once. Samples of equal
    length keep their order.
    """
    # One batch needs no order, and so has the bits that a predictor called with it gives.
    if len(window) <= batch_size:
        return [window]
    order = lengths.argsort(descending=True, stable=True)
    return list(window[order].split(batch_size))


def _fetched(samples: Samples, cuts: Sequence[Tensor], run: TrainedRun) -> Any:
    """Yield the batches, on the device of the network."""
    for batch in samples.fetches(cuts, 0, run.device):
        yield batch.to(run.device)


def _given(columns: Mapping[str, Sequence[Any]], indices: Tensor, number: int) -> Mapping[str, Any]:
    """Return the columns of a sample of a batch as they were handed in."""
    return {name: values[int(indices[number])] for name, values in columns.items()}
