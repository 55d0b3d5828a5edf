"""The run folder: what is written when a run begins, and where everything lies."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError, FinetuneError
from finetune.reading import read_json_object


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/<name>`: nothing is written before `begin`."""

    path: Path
    documents: Mapping[str, str] = field(default_factory=dict)
    """Files that describe the run, by name, written as it begins."""
    is_fresh: bool = False
    """Whether `begin` removes what an earlier run left here."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    def begin(self) -> None:
        """Make the folder and write the documents.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            if self.is_fresh:
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            for name, text in self.documents.items():
                (self.path / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder: {error.strerror}", where=str(self.path)
            ) from error

    def is_done_at(self, step: int) -> bool:
        """Tell whether a run has ended here at that step, with nothing left to do."""
        if not (self.path / "summary.json").is_file():
            return False
        summary = self.read_json("summary.json")
        return summary.get("status") == "done" and summary.get("steps") == step

    def write_proof(self, proofs: Sequence[Mapping[str, Any]]) -> None:
        """Write `freeze_proof.json`: every phase so far, and whether all are intact."""
        document = {"intact": all(proof["intact"] for proof in proofs), "phases": list(proofs)}
        self._write_json("freeze_proof.json", document)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        self._write_json("summary.json", summary)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files.

        Raises:
            CheckpointError: it is missing or no JSON object.
        """
        try:
            return read_json_object(self.path / name)
        except FinetuneError as error:
            raise CheckpointError(
                "missing or damaged", where=str(self.path / name), hint="is this a run folder?"
            ) from error

    def _clear(self) -> None:
        """Remove what runs write, and nothing else: the folder may hold a user's own files."""
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "freeze_proof.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
