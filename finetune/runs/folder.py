"""The run folder: which files it has, what a run may touch in it, what is written at the start.

A folder is known as a run's by its lock file, which a run makes before anything else. A run never
writes into another folder that is not empty, and only removes files that runs write.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from finetune import disk
from finetune.config.run import RunConfig
from finetune.errors import CheckpointError
from finetune.reading import read_own_json
from finetune.runs.kept import Checkpoints
from finetune.runs.kept_pictures import KeptPicture, as_document
from finetune.runs.lock import LOCK, locked, read_holder
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.runs.own_files import DOCUMENTS, PICTURES, RESULTS, TRACKED, clear, tensorboard_files
from finetune.runs.owner import ORIGIN, is_run, origin_of, refuse_foreign_place
from finetune.runs.progress import Progress
from finetune.whole_folders import REPLACED, holds_only, placed

_BEFORE_A_RUN = {LOCK, ".config.yaml.tmp"}
"""What the folder may hold before it holds a run's config: a killed start leaves these."""
_HINT = "choose another --run; --fresh clears only folders of runs"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder `runs/<name>`; nothing is written before `held` or `begin`."""

    path: Path
    documents: Mapping[str, str] = field(default_factory=dict)
    """Files that describe the run, name to text; written when it begins."""
    is_fresh: bool = False
    """Whether files of an earlier run are removed when this one begins."""
    origin: "RunFolder | None" = None
    """Another run to continue from: its checkpoints and curves are copied here."""
    elsewhere: Path | None = None
    """Folder of the checkpoints, if they are not kept in the run folder."""
    is_written: bool = True
    """Whether this process writes it; of several processes of a run only the first one does."""

    @classmethod
    def of(cls, path: Path, config: RunConfig) -> Self:
        """Return the folder of a run, with the place for checkpoints that its config names."""
        named = config.train.checkpoint.path
        # Written out, the usual place must not be locked twice.
        is_usual = named is None or (path / named).resolve() == path.resolve() / "checkpoints"
        return cls(path, elsewhere=None if named is None or is_usual else path / named)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, in the run folder or elsewhere."""
        return self.elsewhere or self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Path of `metrics.jsonl`, which has one line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def files(self) -> Iterator[Path]:
        """Yield the paths that a run makes: documents, results, checkpoints and curves."""
        yield from (self.path / name for name in (*DOCUMENTS, *RESULTS, LOCK))
        for folder in (self.checkpoints, self.tensorboard):
            yield from folder.rglob("*")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, lock it against other processes, and begin the run.

        Raises:
            CheckpointError: another process holds it, it is no run's, or it cannot be written.
        """
        if not self.is_written:
            yield
            return
        # Before the lock is made: a lock file would turn a stranger's folder into a run's.
        self.refuse_foreign()
        with ExitStack() as stack:
            with self._writing():
                disk.make_folder(self.path)
                stack.enter_context(locked(self.path))
                if self.elsewhere is not None:
                    disk.make_folder(self.elsewhere)
                    # A second lock: two runs that name one place would remove each other's
                    # checkpoints.
                    stack.enter_context(locked(self.elsewhere, run=self.path))
                if self.is_fresh:
                    clear(self.path, self.checkpoints, self.tensorboard)
            self.begin()
            yield

    def begin(self) -> None:
        """Copy checkpoints and curves of `origin`, if there is one; then write the documents.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with self._writing():
            disk.make_folder(self.path)
            if self.origin is not None:
                # Before the checkpoints: whoever finds them must find where they come from.
                disk.replace_file(self.path / ORIGIN, _naming(self.origin.path).encode())
                self._copy_from(self.origin)
            for name, text in self.documents.items():
                disk.replace_file(self.path / name, text.encode())

    def refuse_foreign(self) -> None:
        """Raise unless a run may write this folder, and the one of checkpoints elsewhere.

        Raises:
            CheckpointError: it holds something but no run, or a name that runs use is taken by a
                link, a pipe or a device.
        """
        self.refuse_links()
        if not self.is_empty() and not is_run(self.path):
            raise CheckpointError("is not empty and holds no run", where=str(self.path), hint=_HINT)
        if self.elsewhere is not None:
            refuse_foreign_place(self.elsewhere, self.path)

    def refuse_links(self) -> None:
        """Raise if a name that runs use here is taken by a link, a pipe or a device.

        Raises:
            CheckpointError: one is taken. The message names it.
        """
        try:
            for name in (*DOCUMENTS, *RESULTS, LOCK):
                disk.refuse_unless_file(self.path / name)
            disk.refuse_unless_folder(self.tensorboard)
            for path in _entries(self.tensorboard):
                if not disk.is_folder(path):
                    disk.refuse_unless_file(path)
            # A place outside the run folder was named by the user, who may name a link.
            if self.elsewhere is None:
                disk.refuse_unless_folder(self.checkpoints)
        except disk.NotOursError as error:
            raise _named(error, self.checkpoints) from error

    def refuse_links_anywhere(self) -> None:
        """Raise if there is a link, pipe or device at any depth in the checkpoints or curves.

        Raises:
            CheckpointError: there is one. The message names it.
        """
        # A copied link would bring a private file into the new run, which may be given away.
        self.refuse_links()
        for top in (self.checkpoints, self.tensorboard):
            for path in disk.strange_below(top):
                raise CheckpointError(
                    "is a link, a pipe or a device, which is not copied",
                    where=str(path),
                    hint="remove it from the run that --resume names",
                )

    def metrics_of_end(self, progress: Progress) -> dict[str, float] | None:
        """Return the last metrics, if the run here has ended at that step; else None.

        Also None for a damaged summary, which is then written anew, and for one that does not say
        of the proofs what the checkpoint says.
        """
        try:
            summary = self.read_json("summary.json")
            is_done = summary["status"] == "done" and summary["steps"] == progress.step
            is_done = is_done and summary["proof_intact"] is progress.proof_intact
            metrics = {name: float(value) for name, value in summary["metrics"].items()}
        except (CheckpointError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None
        return metrics if is_done else None

    def began_from(self, run: Path) -> bool:
        """Tell whether this folder belongs to `run`, or continues a checkpoint copied from it."""
        if run.resolve() == self.path.resolve():
            return True
        return origin_of(self.path) == str(run.resolve())

    def is_empty(self) -> bool:
        """Tell whether the folder is missing, or holds only what a killed start leaves."""
        if not self.path.is_dir():
            return True
        holder = read_holder(self.path)
        if holder is not None and holder.run:
            return False  # it is reserved for another run's checkpoints, of which there is none yet
        return {path.name for path in self.path.iterdir()} <= _BEFORE_A_RUN

    def write_proof(self, proofs: Sequence[Mapping[str, Any]]) -> None:
        """Write `freeze_proof.json`: the proof of each phase so far, and whether all are intact.

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

    def write_pictures(self, pictures: Iterable[KeptPicture]) -> None:
        """Write `pictures.json`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self._write_json(PICTURES, as_document(pictures))

    def tracked_id(self) -> str:
        """Return the id by which trackers of other programs know the run; written if there is none.

        Raises:
            CheckpointError: the file is damaged, or the folder cannot be written.
        """
        if not disk.is_file(self.path / TRACKED):
            self._write_json(TRACKED, {"id": secrets.token_hex(8)})
        document = self.read_json(TRACKED)
        given = document.get("id") if isinstance(document, dict) else None
        # It becomes a part of file names and of a query.
        if not isinstance(given, str) or not re.fullmatch("[0-9a-f]{16}", given):
            raise CheckpointError(
                "missing or damaged", where=str(self.path / TRACKED), hint="remove it"
            )
        return given

    def note_unread(self, part: str, row: int) -> None:
        """Note in `data.json` that a sample of a part could not be made: it may be mended later.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not self.is_written:
            return
        document = self.read_json("data.json")
        unread = document["identity"].setdefault("unread", {})
        unread[part] = sorted({*unread.get(part, ()), row})
        self._write_json("data.json", document)

    def read_json(self, name: str) -> Any:
        """Return the contents of a JSON file in this folder.

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
        """Copy another run's checkpoints and curves, unless that was done before.

        The documents are written last: if they are missing, an earlier copy was interrupted.
        """
        if not self.is_fresh and disk.is_file(self.path / "config.yaml"):
            return
        origin.refuse_links_anywhere()
        if disk.is_file(origin.metrics):
            disk.copy_file(origin.metrics, self.metrics)
        disk.make_folder(self.tensorboard)
        for path in tensorboard_files(origin.tensorboard):
            disk.copy_file(path, self.tensorboard / path.name)
        disk.make_folder(self.checkpoints)
        for path in Checkpoints(origin.checkpoints, keep_last=1).all():
            if holds_only(path, NAMES_OF_FILES):
                self._copy_checkpoint(path)

    def _copy_checkpoint(self, path: Path) -> None:
        """Copy one checkpoint; it appears here whole, under its usual name."""
        final = self.checkpoints / path.name.removeprefix(REPLACED)
        with placed(final, NAMES_OF_FILES) as temporary:
            for file in _entries(path):
                disk.copy_file(file, temporary / file.name)

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace a JSON file of this folder durably, if this process writes it."""
        if not self.is_written:
            return
        with self._writing():  # a folder that was removed meanwhile is not created again
            disk.replace_file(self.path / name, f"{json.dumps(document, indent=1)}\n".encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an `OSError` of the block into a `CheckpointError` that names the folder."""
        try:
            yield
        except disk.NotOursError as error:
            raise _named(error, self.checkpoints) from error
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder: {disk.reason_of(error)}", where=str(self.path)
            ) from error


def _naming(run: Path) -> str:
    """Return the text of `origin.json` for a run folder."""
    return json.dumps({"run": str(run.resolve())}) + "\n"


def _entries(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted by name; none if there is no folder."""
    return sorted(folder.iterdir()) if disk.is_folder(folder) else []


def _named(error: disk.NotOursError, checkpoints: Path) -> CheckpointError:
    """Return the error for a name that is taken, with a hint on what to do."""
    where = Path(error.filename)
    hint = "remove it, or choose another --run"
    if where == checkpoints and where.is_symlink():
        hint = f"remove it; train.checkpoint.path: {str(where.readlink())!r} places them there"
    return CheckpointError(disk.reason_of(error), where=str(where), hint=hint)
