"""The run folder: what is written when a run begins, and where everything lies."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.train.files import read_json, reason_of, replace_text
from finetune.train.lock import LOCK, locked

_ORIGIN = "origin.json"
"""Names the run that this one began from, where it began from another one."""
_BEFORE_A_RUN = {LOCK, ".config.yaml.tmp"}
"""What the folder may hold before it holds the config of a run."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/<name>`: nothing is written before it is `held`."""

    path: Path
    documents: Mapping[str, str] = field(default_factory=dict)
    """Files that describe the run, by name, written as it begins."""
    is_fresh: bool = False
    """Whether what an earlier run left here goes as this one begins."""
    origin: Path | None = None
    """Another run's folder, whose checkpoints and curves are copied: this one goes on there."""

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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, keep other processes out of it, and begin the run.

        Raises:
            CheckpointError: another process holds it, or it cannot be written.
        """
        with ExitStack() as stack:
            with self._writing():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path))
                if self.is_fresh:
                    self._clear()
            self.begin()
            yield

    def begin(self) -> None:
        """Take over what another run has left, if this one goes on there; write the documents.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if self.origin is not None:
                # Before the checkpoints: whoever finds them must find where they are from.
                replace_text(self.path / _ORIGIN, _naming(self.origin))
                self._copy_from(self.origin)
            for name, text in self.documents.items():
                replace_text(self.path / name, text)

    def is_done_at(self, step: int) -> bool:
        """Tell whether a run has ended here at that step, with nothing left to do.

        A summary that cannot be read is one to be written anew.
        """
        try:
            summary = self.read_json("summary.json")
            return bool(summary["status"] == "done" and summary["steps"] == step)
        except (CheckpointError, KeyError, TypeError):
            return False

    def began_from(self, run: Path) -> bool:
        """Tell whether the run of this folder is `run`, or began from a checkpoint of it."""
        if run.resolve() == self.path.resolve():
            return True
        try:
            return bool(read_json(self.path / _ORIGIN) == json.loads(_naming(run)))
        except (OSError, ValueError):
            return False

    def is_empty(self) -> bool:
        """Tell whether nothing lies here but what a kill leaves before a run has begun."""
        if not self.path.is_dir():
            return True
        return {path.name for path in self.path.iterdir()} <= _BEFORE_A_RUN

    def write_proof(self, proofs: Sequence[Mapping[str, Any]]) -> None:
        """Write `freeze_proof.json`: every phase so far, and whether all are intact."""
        document = {"intact": all(proof["intact"] for proof in proofs), "phases": list(proofs)}
        self._write_json("freeze_proof.json", document)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        self._write_json("summary.json", summary)

    def read_json(self, name: str) -> Any:
        """Read one of the folder's JSON files.

        Raises:
            CheckpointError: it is missing or no JSON.
        """
        try:
            return read_json(self.path / name)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                "missing or damaged", where=str(self.path / name), hint="is this a run folder?"
            ) from error

    def _copy_from(self, origin: Path) -> None:
        """Take over another run's checkpoints and curves, unless a kill came after that."""
        if self.checkpoints.exists():
            return
        if (origin / "metrics.jsonl").is_file():
            shutil.copyfile(origin / "metrics.jsonl", self.metrics)
        if (origin / "tensorboard").is_dir():
            shutil.copytree(origin / "tensorboard", self.tensorboard, dirs_exist_ok=True)
        aside = self.checkpoints.with_name(".checkpoints")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(origin / "checkpoints", aside, ignore=shutil.ignore_patterns(".*"))
        aside.rename(self.checkpoints)

    def _clear(self) -> None:
        """Remove what runs write, and nothing else: the folder may hold a user's own files."""
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "freeze_proof.json", "report.html", _ORIGIN):
            (self.path / name).unlink(missing_ok=True)

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        with self._writing():  # a folder that was removed meanwhile is not made again
            replace_text(self.path / name, json.dumps(document, indent=1) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder: {reason_of(error)}", where=str(self.path)
            ) from error


def _naming(run: Path) -> str:
    return json.dumps({"run": str(run.resolve())}) + "\n"
