"""The trained network on new inputs, from Python or from files."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from finetune.config.data import TextFolderSource
from finetune.data.prepare import prepare_inputs
from finetune.errors import DataError
from finetune.models.declared import Network
from finetune.train.setup import evaluation_batch_size, located
from finetune.train.tasks import Prediction
from finetune.train.trained import TrainedRun, load_run

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained network with all that its inputs need. Call it with samples."""

    run: TrainedRun
    batch_size: int

    @property
    def model(self) -> Network:
        """The merged network, in evaluation mode."""
        return self.run.model

    def __call__(
        self, inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor
    ) -> list[Prediction]:
        """Return what the network says of each sample, in order.

        Args:
            inputs: Texts, image paths or arrays for a network of one input column; dicts of
                column to value otherwise; or whole columns by name.

        Raises:
            DataError: a column is missing, or a value cannot be read.
        """
        return list(self.stream(inputs))

    def stream(
        self, inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor
    ) -> Iterator[Prediction]:
        """Yield predictions batch by batch, so that outputs never pile up."""
        run = self.run
        with located(run.config):
            columns = _columns(inputs, run.facts.inputs)
            samples = prepare_inputs(
                columns, run.config.data, run.facts, run.preprocessing, trust=run.config.trust
            )
        quiet = (
            torch.inference_mode if run.config.inference.mode == "inference_mode" else torch.no_grad
        )
        for indices in torch.arange(len(samples)).split(self.batch_size):
            batch = samples.fetch(indices).to(run.device)
            with quiet():
                outputs = run.model(**batch.inputs)
            yield from run.task.readout(outputs)


def load_predictor(
    run_dir: str | Path, *, trust: Sequence[str] = (), batch_size: int | None = None
) -> Predictor:
    """Load the network of a run with its best or last weights.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import.
        batch_size: Samples of one forward pass; that of the config if left out.

    Raises:
        CheckpointError: the folder holds no usable run.
        TrustError: its config imports code that `trust` does not name.
    """
    run = load_run(run_dir, trust=frozenset(trust))
    return Predictor(run, batch_size or evaluation_batch_size(run.config))


def read_inputs(source: str, run: TrainedRun, stdin: TextIO) -> dict[str, list[Any]]:
    """Read the samples of a file, a folder or (`-`) standard input as columns.

    `.csv` and `.jsonl` give rows; any other text file is one text, an image file one image, a
    folder all files below it. Standard input gives one sample a line: a JSON object, or a text.

    Returns:
        The network's input columns, and `input`: a name for each sample.

    Raises:
        DataError: there is no such file, or it lacks a column.
    """
    if source == "-":
        rows = [_line_as_row(line, n, run) for n, line in enumerate(stdin, 1) if line.strip()]
    else:
        rows = list(_rows_of(Path(source), run))
    if not rows:
        raise DataError("holds no sample", where=source)
    for number, row in enumerate(rows, 1):
        missing = [name for name in run.facts.inputs if name not in row]
        if missing:
            raise DataError(
                f"sample {number} has no {missing[0]!r}, only {', '.join(map(repr, row))}",
                where=source,
            )
    return {name: [row[name] for row in rows] for name in ("input", *run.facts.inputs)}


def as_row(name: str, prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as the row that is written for it."""
    row: dict[str, Any] = {"input": name}
    if prediction.label is None:
        return row | {"values": list(prediction.values)}
    label = prediction.label if isinstance(prediction.label, str) else list(prediction.label)
    row["label"] = label
    if prediction.probability is not None:
        row["probability"] = prediction.probability
    return row | {"probabilities": prediction.probabilities}


def write_rows(rows: Iterator[dict[str, Any]], file: TextIO, *, as_csv: bool) -> int:
    """Write rows as JSON lines or as CSV with one column per class; return how many."""
    count = 0
    writer: csv.DictWriter[str] | None = None
    for count, row in enumerate(rows, 1):  # noqa: B007 - the count is returned
        if not as_csv:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            continue
        flat = _flat_row(row)
        if writer is None:
            writer = csv.DictWriter(file, list(flat))
            writer.writeheader()
        writer.writerow(flat)
    return count


def _columns(
    inputs: Sequence[Any] | Mapping[str, Sequence[Any]] | Tensor, names: tuple[str, ...]
) -> Mapping[str, Sequence[Any]]:
    """Bring every way to hand in samples to whole columns by name."""
    if isinstance(inputs, Mapping):
        return inputs
    if isinstance(inputs, str | bytes):
        raise DataError("needs a list of samples, got a single text", hint="put it in a list")
    rows = list(inputs)
    if rows and isinstance(rows[0], Mapping):
        return {name: [row[name] for row in rows] for name in names}
    if len(names) > 1:
        raise DataError(f"the network takes {len(names)} columns: hand in dicts of {names!r}")
    return {names[0]: rows}


def _rows_of(path: Path, run: TrainedRun) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        match file.suffix:
            case ".csv":
                yield from _csv_rows(file)
            case ".jsonl":
                yield from _jsonl_rows(file)
            case _:
                yield {"input": str(file), run.facts.inputs[0]: _content(file, run)}


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            yield {"input": f"{path}:{number}"} | row


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            yield {"input": f"{path}:{number}"} | _json_row(line, f"{path}:{number}")


def _content(path: Path, run: TrainedRun) -> Any:
    """Return an image by its path, and anything else as text in the encoding of the training."""
    if path.suffix.lower() in _IMAGES:
        return str(path)
    source = run.config.data.source or run.config.data.train
    encoding, errors = "utf-8", "strict"
    if isinstance(source, TextFolderSource):
        encoding, errors = source.encoding, source.errors
    try:
        return path.read_text(encoding=encoding, errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(f"is not {encoding} text", where=str(path)) from error


def _line_as_row(line: str, number: int, run: TrainedRun) -> dict[str, Any]:
    if line.lstrip().startswith("{"):
        return {"input": f"-:{number}"} | _json_row(line, f"-:{number}")
    return {"input": f"-:{number}", run.facts.inputs[0]: line.rstrip("\n")}


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError("is not JSON", where=where) from error
    if not isinstance(row, dict):
        raise DataError("is no JSON object", where=where)
    return row


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
    if isinstance(row.get("label"), list):
        flat["label"] = "|".join(row["label"])
    flat |= {f"probability/{name}": p for name, p in row.get("probabilities", {}).items()}
    return flat | {f"value/{n}": value for n, value in enumerate(row.get("values", ()))}
