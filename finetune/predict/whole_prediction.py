"""A whole prediction, from the input to a file or a stream; one that was interrupted goes on."""

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

import torch

from finetune.data.incoming.incoming_part import Incoming
from finetune.data.incoming.incoming_pieces import Wanted, pieces_of
from finetune.errors import FinetuneError
from finetune.freezing.proof import fingerprints
from finetune.outfile import OutputForm, is_regular, output_file, output_form, refuse_replacing
from finetune.outfolder import Put, pictures_in
from finetune.predict.journal import ChangedInputError, Journal
from finetune.predict.passes import window_size
from finetune.predict.prediction import Asking, PiecewisePrediction, SoFar, Told
from finetune.predict.predictor import Predictor
from finetune.predict.written_rows import write_file, write_rows


@dataclass(frozen=True, slots=True)
class Input:
    """Where the samples come from: a path, or `-` for the stream."""

    source: str
    stdin: TextIO


@dataclass(frozen=True, slots=True)
class WholePrediction:
    """A prediction over all of an input."""

    predictor: Predictor
    input: Input
    asking: Asking
    told: Told

    def to_stream(self, stream: TextIO) -> None:
        """Write a JSON line for each sample.

        Raises:
            FinetuneError: the input cannot be read, or a sample cannot be predicted.
        """
        prediction = PiecewisePrediction(self.predictor, self.asking, self.told)
        write_rows(self._rows(prediction, self._parts(None)), stream, as_csv=False)

    def to_file(self, out: Path, folder: Path | None, *, raw: bool) -> int:
        """Write a file by its ending; return how many rows it has.

        Args:
            out: The file.
            folder: Folder for the pictures of predictions; None for none.
            raw: Whether to write texts in CSV as they are.

        Raises:
            FinetuneError: the input cannot be read, a sample cannot be predicted, or the file
                cannot be written.
        """
        # Asked once: what stands at the path may change while rows are made.
        form = output_form(out)
        if folder is None and is_regular(out):
            # Before the journal: an option that is refused must not cost the rows that are kept.
            prediction = PiecewisePrediction(self.predictor, self.asking, self.told)
            try:
                return self._journalled(prediction, out, form, raw=raw)
            except ChangedInputError as error:
                # What standard input held is gone.
                if self.input.source == "-":
                    raise
                self.told.note(f"begins anew: {error.message}")
                prediction.remarks.begin_anew()
                return self._journalled(prediction, out, form, raw=raw)
        if form == "parquet":
            raise FinetuneError(
                "Parquet is written to a regular file, and without pictures",
                where=str(out),
                hint="JSON lines go anywhere",
            )
        # A pipe cannot be taken back, and a folder of pictures is replaced as a whole: no journal.
        parts: Iterable[Incoming] = self._parts(out)
        files: list[Path] = []
        if folder is not None:
            # Names alone: whether one of them lies in the folder must be known first.
            parts = list(parts)
            files = [file for part in parts for file in part.files()]
        with nullcontext() if folder is None else pictures_in(folder, files) as put:
            prediction = PiecewisePrediction(self.predictor, self.asking, self.told)
            rows = self._rows(prediction, parts, put)
            return self._written(rows, prediction, out, form, raw=raw)

    def _journalled(
        self, prediction: PiecewisePrediction, out: Path, form: OutputForm, *, raw: bool
    ) -> int:
        """Write a regular file, by a journal that an interrupted prediction goes on from."""
        with Journal(out, self._fingerprint(), self.told.note) as journal:
            before = journal.before
            so_far = SoFar(before.names, before.num_odd, before.first_odd)
            prediction.go_on(before.rows, so_far)
            prediction.remarks.first()
            for part in journal.passed(prediction.heard(self._parts(out))):
                piece = prediction.piece(part)
                journal.add(piece, len(part.names), prediction.so_far)
            prediction.remarks.last()
            self._tell_counts(journal.num_bad, journal.num_predicted, journal.count)
            if form == "json":
                with output_file(out) as file:
                    file.writelines(journal.lines())
                return journal.count
            return self._written(journal, prediction, out, form, raw=raw)

    def _written(
        self,
        rows: Iterable[dict[str, Any]],
        prediction: PiecewisePrediction,
        out: Path,
        form: OutputForm,
        *,
        raw: bool,
    ) -> int:
        """Write the rows of a prediction to a file; return how many there are."""
        return write_file(
            rows,
            out,
            form,
            numbers=self.predictor.numbers,
            raw=raw,
            note=self.told.bad,
            example=lambda: prediction.example,
        )

    def _rows(
        self,
        prediction: PiecewisePrediction,
        parts: Iterable[Incoming],
        put: Put | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of each sample, and tell what is to be told of all of them."""
        prediction.remarks.first()
        num_bad = num_predicted = count = 0
        for piece in prediction.pieces(parts, put):
            num_bad += piece.num_bad
            num_predicted += piece.num_predicted
            count += len(piece.rows)
            yield from piece.rows
        prediction.remarks.last()
        self._tell_counts(num_bad, num_predicted, count)

    def _tell_counts(self, num_bad: int, num_predicted: int, count: int) -> None:
        """Tell how many samples were passed over, and how many predictions are not written.

        Raises:
            FinetuneError: all samples were passed over.
        """
        if num_bad and not num_predicted:
            raise FinetuneError(
                f"none of {num_bad:,} samples can be predicted", where=self.input.source
            )
        if num_bad:
            self.told.bad(f"{num_bad:,} of {num_bad + num_predicted:,} samples were passed over")
        if self.asking.below is not None:
            self.told.bad(
                f"{count:,} of {num_predicted:,} predictions have a probability below "
                f"{self.asking.below}"
            )

    def _parts(self, out: Path | None) -> Iterator[Incoming]:
        """Yield the input piece by piece; refuse to replace a file of it."""
        for part in pieces_of(self.input.source, self._wanted, self.input.stdin):
            if out is not None:
                refuse_replacing(out, part.files())
            yield part

    @property
    def _wanted(self) -> Wanted:
        run = self.predictor.run
        return Wanted(
            run.config.data,
            run.facts.kinds,
            run.facts.target,
            window_size(self.predictor.batch_size),
            passes=self.asking.on_error == "skip",
        )

    def _fingerprint(self) -> str:
        """Hash all that decides what the rows are, but for the input."""
        predictor, asked = self.predictor, asdict(self.asking)
        run = predictor.run
        # A bad sample may stop the first start and be passed over in the second.
        del asked["on_error"]
        names = [name for name, _ in run.model.named_parameters()]
        names += [name for name, _ in run.model.named_buffers()]
        about = {
            "weights": fingerprints(run.model, names),
            "data": run.folder.read_json("data.json"),
            "config": run.config.model_dump(mode="json", include={"data", "task", "inference"}),
            "precision": run.config.inference.precision or run.config.train.precision,
            "temperature": None if (t := run.task.temperature) is None else t.value,
            "source": self.input.source,
            "batch_size": predictor.batch_size,
            "asked": asked,
            "device": str(run.device),
            "versions": [torch.__version__, torch.get_num_threads()],
        }
        return blake2b(json.dumps(about, default=str).encode(), digest_size=16).hexdigest()
