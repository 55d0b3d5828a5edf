"""The run folder: where everything lies, what a run may touch in it, what it writes at its start.

A folder counts as a run's by the lock that a run makes there before anything else. Nothing is
written into another folder that holds something, and only what runs write is ever removed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from finetune import disk
from finetune.config.loader import load_saved
from finetune.config.run import RunConfig
from finetune.errors import CheckpointError, ConfigError
from finetune.reading import read_own_json
from finetune.runs.kept import Checkpoints, is_checkpoint_name
from finetune.runs.lock import LOCK, locked, read_holder
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.runs.owner import ORIGIN, is_run, origin_of, refuse_foreign_place

_DOCUMENTS = ("config.yaml", "plan.json", "data.json")
_RESULTS = ("metrics.jsonl", "summary.json", "freeze_proof.json", ORIGIN)
"""What a run writes besides its documents; a fresh run removes it."""
_BEFORE_A_RUN = {LOCK, ".config.yaml.tmp"}
"""What the folder may hold before it holds the config of a run."""
_EVENTS = re.compile(r"events\.out\.tfevents\..+")
_HINT = "choose another --run; --fresh clears only folders of runs"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/<name>`: nothing is written before it is `held`."""

    path: Path
    documents: Mapping[str, str] = field(default_factory=dict)
    """Files that describe the run, by name, written as it begins."""
    is_fresh: bool = False
    """Whether what an earlier run left here goes as this one begins."""
    origin: "RunFolder | None" = None
    """Another run, whose checkpoints and curves are copied: this one goes on there."""
    elsewhere: Path | None = None
    """Where checkpoints lie, if not in the run folder."""

    @classmethod
    def of(cls, path: Path, config: RunConfig) -> Self:
        """Return the folder of a run with the place of checkpoints that its config names."""
        named = config.train.checkpoint.path
        is_usual = named is None or (path / named).resolve() == path.resolve() / "checkpoints"
        return cls(path, elsewhere=None if named is None or is_usual else path / named)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.elsewhere or self.path / "checkpoints"

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
            CheckpointError: another process holds it, it is not a run's, or cannot be written.
        """
        self.refuse_foreign()
        with ExitStack() as stack:
            with self._writing():
                disk.make_folder(self.path)
                stack.enter_context(locked(self.path))
                if self.elsewhere is not None:
                    disk.make_folder(self.elsewhere)
                    stack.enter_context(locked(self.elsewhere, run=self.path))
                if self.is_fresh:
                    self._clear()
            self.begin()
            yield

    def begin(self) -> None:
        """Copy what another run has left, if this one goes on there; write the documents.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with self._writing():
            disk.make_folder(self.path)
            if self.origin is not None:
                # Before the checkpoints: whoever finds them must find where they are from.
                disk.replace_file(self.path / ORIGIN, _naming(self.origin.path).encode())
                self._copy_from(self.origin)
            for name, text in self.documents.items():
                disk.replace_file(self.path / name, text.encode())

    def refuse_foreign(self) -> None:
        """Raise where the folder, or the one of checkpoints elsewhere, is not a run's to write.

        Raises:
            CheckpointError: it holds something and no run, or a name of ours in it is a link, a
                pipe or a device.
        """
        self.refuse_links()
        if not self.is_empty() and not is_run(self.path):
            raise CheckpointError("is not empty and holds no run", where=str(self.path), hint=_HINT)
        if self.elsewhere is not None:
            refuse_foreign_place(self.elsewhere, self.path)

    def refuse_links(self) -> None:
        """Raise where a name that a run uses here is taken by a link, a pipe or a device.

        Raises:
            CheckpointError: one is. The message names it.
        """
        try:
            for name in (*_DOCUMENTS, *_RESULTS, LOCK):
                disk.refuse_unless_file(self.path / name)
            disk.refuse_unless_folder(self.tensorboard)
            for path in _entries(self.tensorboard):
                if not disk.is_folder(path):
                    disk.refuse_unless_file(path)
            if self.elsewhere is None:
                disk.refuse_unless_folder(self.checkpoints)
        except disk.NotOursError as error:
            raise _named(error, self.checkpoints) from error

    def refuse_links_anywhere(self) -> None:
        """Raise where anything in the checkpoints or curves is a link, a pipe or a device.

        Raises:
            CheckpointError: something is. The message names it.
        """
        self.refuse_links()
        for top in (self.checkpoints, self.tensorboard):
            for path in disk.strange_below(top):
                raise CheckpointError(
                    "is a link, a pipe or a device, which is not copied",
                    where=str(path),
                    hint="remove it from the run that --resume names",
                )

    def metrics_of_end(self, step: int) -> dict[str, float] | None:
        """Return the metrics of a run that has ended here at that step, with nothing left to do.

        None where it has not. A summary that is not what we write is one to be written anew.
        """
        try:
            summary = self.read_json("summary.json")
            is_done = summary["status"] == "done" and summary["steps"] == step
            metrics = {name: float(value) for name, value in summary["metrics"].items()}
        except (CheckpointError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None
        return metrics if is_done else None

    def began_from(self, run: Path) -> bool:
        """Tell whether the run of this folder is `run`, or began from a checkpoint of it."""
        if run.resolve() == self.path.resolve():
            return True
        return origin_of(self.path) == str(run.resolve())

    def is_empty(self) -> bool:
        """Tell whether nothing lies here but what a kill leaves before a run has begun."""
        if not self.path.is_dir():
            return True
        holder = read_holder(self.path)
        if holder is not None and holder.run:
            return False  # another run's place of checkpoints, which has none yet
        return {path.name for path in self.path.iterdir()} <= _BEFORE_A_RUN

    def write_proof(self, proofs: Sequence[Mapping[str, Any]]) -> None:
        """Write `freeze_proof.json`: every phase so far, and whether all are intact.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        document = {"intact": all(proof["intact"] for proof in proofs), "phases": list(proofs)}
        self._write_json("freeze_proof.json", document)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self._write_json("summary.json", summary)

    def read_json(self, name: str) -> Any:
        """Read one of the folder's JSON files.

        Raises:
            CheckpointError: it is missing or no JSON.
        """
        try:
            return read_own_json(self.path / name)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                "missing or damaged", where=str(self.path / name), hint="is this a run folder?"
            ) from error

    def _copy_from(self, origin: "RunFolder") -> None:
        """Copy another run's checkpoints and curves, unless that is done.

        The documents are written after it, so a folder without them was killed in between.
        """
        if not self.is_fresh and disk.is_file(self.path / "config.yaml"):
            return
        origin.refuse_links_anywhere()
        if disk.is_file(origin.metrics):
            disk.copy_file(origin.metrics, self.metrics)
        disk.make_folder(self.tensorboard)
        for path in _entries(origin.tensorboard):
            if _EVENTS.fullmatch(path.name):
                disk.copy_file(path, self.tensorboard / path.name)
        disk.make_folder(self.checkpoints)
        for path in Checkpoints(origin.checkpoints, keep_last=1).all():
            if disk.holds_only(path, NAMES_OF_FILES):
                self._copy_checkpoint(path)

    def _copy_checkpoint(self, path: Path) -> None:
        final = self.checkpoints / path.name.removeprefix(disk.REPLACED)
        with disk.placed(final, NAMES_OF_FILES) as temporary:
            for file in _entries(path):
                disk.copy_file(file, temporary / file.name)

    def _clear(self) -> None:
        """Remove what runs write, and nothing else: the folder may hold a user's own files."""
        for path in _entries(self.checkpoints):
            if is_checkpoint_name(path) and disk.holds_only(path, NAMES_OF_FILES):
                disk.remove(path)
        for path in _entries(self.tensorboard):
            if _EVENTS.fullmatch(path.name) and disk.is_file(path):
                disk.remove(path)
        for name in _RESULTS:
            disk.remove(self.path / name)

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        with self._writing():  # a folder that was removed meanwhile is not made again
            disk.replace_file(self.path / name, f"{json.dumps(document, indent=1)}\n".encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except disk.NotOursError as error:
            raise _named(error, self.checkpoints) from error
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder: {disk.reason_of(error)}", where=str(self.path)
            ) from error


def _naming(run: Path) -> str:
    return json.dumps({"run": str(run.resolve())}) + "\n"


def usual_folder(config: RunConfig) -> Path:
    """Return the folder of a run for which nobody names one."""
    return Path("runs") / config.run_name


def saved_config(path: Path) -> Path:
    """Return the config file of a run that was trained, where the run may be read.

    Raises:
        CheckpointError: it holds no run, or a name of ours in it is a link, a pipe or a device.
    """
    RunFolder(path).refuse_links()
    config = path / "config.yaml"
    if not disk.is_file(config):
        raise CheckpointError("no run here: there is no config.yaml", where=str(path))
    return config


def saved_folder(path: Path) -> RunFolder:
    """Return the folder of a run that was trained, with the place of its checkpoints.

    Raises:
        CheckpointError: as `saved_config`.
    """
    config = saved_config(path)
    try:
        return RunFolder.of(path, load_saved(config))
    except ConfigError:
        return RunFolder(path)  # whoever needs the config tells what is wrong with it


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name; nothing where there is none."""
    return sorted(folder.iterdir()) if disk.is_folder(folder) else []


def _named(error: disk.NotOursError, checkpoints: Path) -> CheckpointError:
    """Return the error of a name that is taken, with what to do instead."""
    where = Path(error.filename)
    hint = "remove it, or choose another --run"
    if where == checkpoints and where.is_symlink():
        hint = f"remove it; train.checkpoint.path: {str(where.readlink())!r} places them there"
    return CheckpointError(disk.reason_of(error), where=str(where), hint=hint)
