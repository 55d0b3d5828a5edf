"""The predictor: a trained network that is called with new inputs, or over files of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import Batch
from finetune.data.incoming.incoming_part import Incoming
from finetune.data.readers.row_places import THE_INPUT, Places
from finetune.errors import FinetuneError
from finetune.models.declared import Network
from finetune.outfolder import Put
from finetune.predict.passes import Answer, OnBad, Passes
from finetune.predict.preparing import InputPreparer
from finetune.predict.tap import Tap
from finetune.predict.windowed import ReadyInputs
from finetune.tasks.records import PicturedRecord, PredictionRecord
from finetune.train.after.known_rows_of_run import KnownToRun
from finetune.train.after.trained import TrainedRun, load_run
from finetune.train.build import evaluation_batch_size, located


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained network with the steps that prepare its inputs. Call it with samples."""

    run: TrainedRun
    preparing: InputPreparer
    """Makes samples of what is handed in."""
    passes: Passes
    """Runs the network, in batches."""

    @property
    def model(self) -> Network:
        """The network with its trained weights, in evaluation mode."""
        return self.run.model

    @property
    def batch_size(self) -> int:
        """Samples of one forward pass."""
        return self.passes.batch_size

    def __call__(
        self, inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor
    ) -> list[PredictionRecord]:
        """Return the prediction for each sample, in order.

        Args:
            inputs: Texts, image paths, or an array with samples first for a network of one input
                column; dicts of column to value otherwise; or whole columns by name.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        return list(self.stream(inputs))

    def stream(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Iterator[PredictionRecord]:
        """Yield predictions batch by batch, so that outputs never pile up.

        Args:
            inputs: As for a call.
            places: Row and file of each sample, for messages.
            tell: Receives lines on values that were converted or cut.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        ready = self.preparing.prepare(inputs, places=places, tell=tell)
        yield from ready.of_rows(self._stream(ready))

    def _stream(self, ready: ReadyInputs) -> Iterator[PredictionRecord]:
        """Yield the prediction for each sample, batch by batch."""
        for batch in self.batches(ready):
            outputs = self.outputs(batch, ready)
            # Outside of inference mode: between two predictions the caller's code runs, and
            # autograd must be as the caller has it.
            yield from self.read(outputs, batch, ready)

    def batches(self, ready: ReadyInputs) -> Iterator[Batch]:
        """Yield the samples in batches, in order, on the device of the network."""
        if ready.samples is None:
            return
        for indices in torch.arange(len(ready.samples)).split(self.batch_size):
            with located(self.run.config):
                yield ready.samples.fetch(indices).to(self.run.device)

    def outputs(self, batch: Batch, ready: ReadyInputs) -> Any:
        """Return the network's outputs for a batch, computed without a graph."""
        assert ready.samples is not None
        return self.passes.outputs(ready.samples, batch)

    def read(self, outputs: Any, batch: Batch, ready: ReadyInputs) -> list[PredictionRecord]:
        """Return the predictions that outputs for a batch are read as, in order."""
        return self.passes.records(outputs, ready.columns, batch)

    def answers(
        self,
        inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor,
        *,
        places: Places = THE_INPUT,
        tell: Callable[[str], None] = lambda _: None,
        bad: OnBad | None = None,
    ) -> Iterator[Answer]:
        """Yield the position of each sample with its prediction, and with its embedding if asked.

        Args:
            inputs: As for a call.
            places: Row and file of each sample, for messages.
            tell: Receives lines on values that were converted or cut.
            bad: Receives samples that cannot be predicted, which are passed over; None to raise.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        if bad is None:
            ready = self.preparing.prepare(inputs, places=places, tell=tell)
            yield from ready.answers(self.passes, None)
            return
        ready, rows = self.preparing.prepare_readable(inputs, places, tell, bad)
        for answer in ready.answers(self.passes, lambda row, why: bad(rows[row], why)):
            yield Answer(rows[answer.position], answer.record, answer.embedding)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that a regression predicts: its target columns; else none."""
        run = self.run
        if run.config.task.learns != "numbers" or run.facts.target is None:
            return ()
        target = run.config.data.target
        return target if isinstance(target, tuple) else (run.facts.target,)

    def rows(
        self,
        parts: Iterable[Incoming],
        tell: Callable[[str], None] = lambda _: None,
        put: Put | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield one plain row for each sample of files: its name and its prediction.

        Args:
            parts: The samples.
            tell: Receives lines on values that were converted or cut.
            put: Writes the pictures of predictions that have some; None to write none.

        Raises:
            DataError: a value cannot be read.
        """
        for part in parts:
            for answer in self.answers(part.columns, places=part.places, tell=tell):
                name = part.names[answer.position]
                yield {"input": name} | self.plain(answer, name, put)

    def plain(self, answer: Answer, name: str, put: Put | None = None) -> dict[str, Any]:
        """Return an answer as plain values by name, and write its picture if it has one."""
        file: dict[str, Any] = {}
        if put is not None and isinstance(answer.record, PicturedRecord):
            file = {str(self.run.task.picture): put(name, answer.record.picture())}
        row = file | answer.record.row()
        return row if answer.embedding is None else row | {"embedding": answer.embedding.tolist()}

    @contextmanager
    def knowing(self, tell: Callable[[str], None]) -> Iterator["Predictor"]:
        """Yield a predictor that answers from rows of the activation cache where it has them.

        Args:
            tell: Receives a line on how many samples were answered.
        """
        run = self.run
        known = KnownToRun(run.config, run.model, run.inference, run.device, tell)
        with closing(known):
            yield replace(self, passes=replace(self.passes, known=known))

    def tapped(self, layer: str) -> "Predictor":
        """Return a predictor whose answers hold the output of a layer as their embedding.

        Args:
            layer: Name of the layer, as `model.named_modules()` has it.

        Raises:
            FinetuneError: the network has no such layer, or it runs as compiled code.
        """
        if self.run.inference.is_compiled:
            raise FinetuneError(
                "compiled code does not give the outputs of single layers",
                where="--embeddings",
                hint="-o inference.compile=false runs the network itself",
            )
        return replace(self, passes=replace(self.passes, tap=Tap.at(self.model, layer), known=None))


def load_predictor(
    run_dir: str | Path,
    *,
    trust: Sequence[str] = (),
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load the network of a run with its best or last weights.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import.
        batch_size: Samples of one forward pass; that of the config if left out.
        overrides: `key=value` each, for secrets that the saved config masks.

    Raises:
        CheckpointError: the folder holds no usable run.
        TrustError: its config imports code that `trust` does not name.
        DataError: its tokenizer, or a transform, cannot be loaded.
    """
    return predictor_of(load_run(run_dir, trust=trust, overrides=overrides), batch_size)


def predictor_of(run: TrainedRun, batch_size: int | None = None) -> Predictor:
    """Return the predictor of a run that was loaded.

    Args:
        run: The run.
        batch_size: Samples of one forward pass; that of the config if left out.

    Raises:
        DataError: its tokenizer, or a transform, cannot be loaded.
    """
    size = batch_size or evaluation_batch_size(run.config)
    return Predictor(run, InputPreparer.of(run, size), Passes(run, size))
