"""The checkpoints that a run keeps: which are whole, which one is taken up, which may go."""

import itertools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune import disk
from finetune.disk import REMOVED, REPLACED, TEMPORARY
from finetune.errors import CheckpointError, FinetuneError
from finetune.reading import read_own_json
from finetune.runs.background import Worker
from finetune.runs.consistency import contradiction
from finetune.runs.manifest import NAMES_OF_FILES, find_fault, read_manifest
from finetune.runs.progress import Progress
from finetune.runs.disk_space import Room

_NAME = re.compile(rf"({re.escape(REPLACED)})?step-(\d{{8,18}})")
_LEAVING = re.compile(
    rf"({'|'.join(map(re.escape, (TEMPORARY, REMOVED, REPLACED)))})step-\d{{8,18}}(-\d+)?"
)
"""Names of folders that a killed save or removal leaves."""
_GO_ON = "the same command again goes on from the newest checkpoint that can be used"
_HINT_MISFIT = "restore the files that `model:` names, or start afresh with --fresh"

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of a checkpoint and of each file in it."""


def fits_anything(path: Path) -> str | None:
    """Return None: where the run is not known, every checkpoint fits it."""
    return None


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder of a run's checkpoints. Folders in it of other names are left alone.

    Args:
        folder: `runs/<name>/checkpoints`.
        keep_last: How many of the newest survive.
        room: What they will take; unknown where nothing is going to be saved.
        worker: Writes them.
        misfit: Returns why a checkpoint that is whole does not fit the run, or None if it fits.
    """

    folder: Path
    keep_last: int
    room: Room | None = None
    worker: Worker = field(default_factory=Worker)
    misfit: Callable[[Path], str | None] = fits_anything
    _set_aside: list[str] = field(default_factory=list, repr=False)
    """A line for each folder that got another name, as a checkpoint took its place."""
    _judged: dict[Path, tuple[Signature, str | None]] = field(default_factory=dict, repr=False)

    @contextmanager
    def in_use(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Make ready for a run that will save here, and wait for the last save at its end.

        What killed saves have left goes. The caller holds the lock of the run folder.

        Args:
            tell: Receives a line where room will be short.

        Raises:
            CheckpointError: the disk cannot hold a single checkpoint; or a save fails.
        """
        self.sweep()
        line = self.room.lack_in(self.folder, len(self.all())) if self.room is not None else None
        if line is not None:
            tell(line)
        try:
            yield
        except BaseException:
            # What ended the run comes first, a save that failed meanwhile is told beside it.
            try:
                self.worker.close()
            except FinetuneError as error:
                tell(str(error))
            raise
        self.worker.close()
        for note in self._set_aside:
            tell(note)

    def add(self, step: int, fill: Callable[[Path], None], wanted: Collection[int] = ()) -> Path:
        """Write one checkpoint, under its own name only when it is whole; then prune.

        A kill at any point leaves the others usable, and the one of this step if there was one.

        Args:
            step: Its step.
            fill: Writes its files, each durably, into the folder it is given.
            wanted: Steps whose checkpoints survive whatever their age.

        Raises:
            CheckpointError: the disk refuses; or it has refused the save before, which ran in
                the background.
        """
        final = self.folder / f"step-{step:08d}"

        def write() -> None:
            try:
                disk.make_folder(self.folder)
                if disk.kind_of(final) is not None and not disk.holds_only(final, NAMES_OF_FILES):
                    self._set_aside.append(_set_aside(final))
                with disk.placed(final, NAMES_OF_FILES) as temporary:
                    fill(temporary)
            except OSError as error:
                raise CheckpointError(
                    f"cannot save: {disk.reason_of(error)}", hint=_GO_ON, where=str(final)
                ) from error
            self._judged[final] = _signature(final), None
            self._prune(step, {step, *wanted})

        self.worker.run(write)
        return final

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, whether there is one or not."""
        final = self.folder / f"step-{step:08d}"
        replaced = final.with_name(f"{REPLACED}{final.name}")
        is_aside = disk.is_folder(replaced) and disk.kind_of(final) is None
        return replaced if is_aside else final

    def all(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first."""
        if not disk.is_folder(self.folder):
            return []
        kinds = (stat.S_IFDIR, stat.S_IFLNK)  # a link is told, and never followed
        steps = {step_of(p) for p in self.folder.iterdir() if disk.kind_of(p) in kinds}
        return [self.path_of(step) for step in sorted(step for step in steps if step is not None)]

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None if it is whole and fits the run.

        All of it is read, unless no file has been written since it was last judged.
        """
        signature = _signature(path)
        known = self._judged.get(path)
        if known is None or known[0] != signature:
            known = self._judged[path] = signature, _fault(path) or self.misfit(path)
        return known[1]

    def whole(self, step: int) -> Path:
        """Return the checkpoint of a step, after the save that may still run.

        Raises:
            CheckpointError: it is damaged or gone.
        """
        self.worker.wait()
        path = self.path_of(step)
        if (fault := self.fault(path)) is not None:
            raise CheckpointError(fault, hint=_GO_ON, where=str(path))
        return path

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that is whole, and a line for each damaged one passed."""
        self.worker.wait()
        damaged: list[str] = []
        for path in reversed(self.all()):
            if (fault := self.fault(path)) is None:
                return path, damaged
            damaged.append(f"{path}: {fault}; passed over")
        return None, damaged

    def start(self) -> tuple[Path | None, list[str]]:
        """Return the checkpoint from which a run goes on, and a line for each one passed over.

        It is the newest that is whole and whose best checkpoints are: from it the run ends as if
        nothing had happened. Where there is none such, the newest that is whole.
        """
        self.worker.wait()
        lines: list[str] = []
        incomplete: list[tuple[Path, int]] = []
        for path in reversed(self.all()):
            fault = self.fault(path)
            if fault is None:
                lost = self._lost(read_progress(path))
                if not lost:
                    return path, lines
                incomplete.append((path, len(lines)))
                fault = f"it needs the best checkpoint, and {lost[0]}"
            lines.append(f"{path}: {fault}; passed over")
        if not incomplete:
            return None, lines
        path, place = incomplete[0]
        return path, lines[:place]

    def refuse_misfits(self) -> None:
        """Refuse to begin anew where checkpoints are whole and only do not fit the run.

        Raises:
            CheckpointError: there is one such; the newest is told.
        """
        for path in reversed(self.all()):
            if _fault(path) is None and (why := self.misfit(path)) is not None:
                raise CheckpointError(why, hint=_HINT_MISFIT, where=str(path))

    def lost_with(self, path: Path) -> list[str]:
        """Return a line for each best checkpoint that a whole one needs and that is not whole."""
        return self._lost(read_progress(path))

    def forget_lost(self, progress: Progress) -> list[str]:
        """Forget in `progress` the best checkpoints that are damaged or gone; a line for each.

        The next best one that is left takes the place of the best.
        """
        lost = self._lost(progress)
        progress.forget_best(lambda step: self.fault(self.path_of(step)) is None)
        return [f"{line}: another one will be the best" for line in lost]

    def chosen(self) -> Path:
        """Return the checkpoint with the weights of the run: the best one, or the last one.

        Raises:
            CheckpointError: there is none, or it is damaged: another one would give other
                predictions than the run has reported.
        """
        paths = self.all()
        if not paths:
            raise CheckpointError(
                "no checkpoint", where=str(self.folder), hint="train the run first"
            )
        newest = self._usable(paths[-1])
        best = read_progress(newest).best_step
        return newest if best is None else self._usable(self.path_of(best))

    def orphans(self) -> list[Path]:
        """Return what killed saves have left, and the next run here will remove."""
        if not disk.is_folder(self.folder):
            return []
        named = sorted(path for path in self.folder.iterdir() if _LEAVING.fullmatch(path.name))
        kept = self.all()
        return [p for p in named if p not in kept and disk.holds_only(p, NAMES_OF_FILES)]

    def sweep(self) -> None:
        """Remove what killed saves have left; a checkpoint moved aside gets its name back.

        What cannot be removed or renamed stays: it takes room, and the next save tries again.
        """
        for path in self.all():
            if path.name.startswith(REPLACED):
                with suppress(OSError):
                    disk.rename(path, path.with_name(path.name.removeprefix(REPLACED)))
        for path in self.orphans():
            with suppress(OSError):
                disk.remove(path)

    def _usable(self, path: Path) -> Path:
        if (fault := self.fault(path)) is not None:
            hint = "`finetune train` goes on from the newest whole one, and writes it anew"
            raise CheckpointError(fault, hint=hint, where=str(path))
        return path

    def _lost(self, progress: Progress) -> list[str]:
        wanted = {progress.best_step, progress.phase_best_step}
        paths = [self.path_of(step) for step in sorted(step for step in wanted if step is not None)]
        return [f"{p}: {fault}" for p in paths if (fault := self.fault(p)) is not None]

    def _prune(self, step: int, wanted: Collection[int]) -> None:
        """Remove what is older than the last `keep_last` whole ones up to `step`.

        A damaged one does not count, so it never pushes out a whole one. What bears no readable
        manifest is not ours to remove, and a fault in removing is left to the next time.
        """
        older = [path for path in reversed(self.all()) if (step_of(path) or 0) <= step]
        num_whole = 0
        for path in older:
            if num_whole < self.keep_last:
                num_whole += self.fault(path) is None
            elif step_of(path) not in wanted and _is_ours(path):
                with suppress(OSError):
                    disk.remove_at_once(path, NAMES_OF_FILES)


def read_progress(path: Path) -> Progress:
    """Read where the run stood at a checkpoint.

    Raises:
        CheckpointError: `progress.json` is not what this release writes.
    """
    progress = _read_unjudged(path)
    if (fault := contradiction(progress)) is not None:
        raise CheckpointError(f"progress.json: {fault}", where=str(path))
    return progress


def validated_at(path: Path) -> dict[str, float]:
    """Return the figures that the validation samples had at a checkpoint.

    Raises:
        CheckpointError: `progress.json` is not what this release writes.
    """
    metrics = read_progress(path).metrics
    return {tag: value for tag, value in metrics.items() if tag.startswith("validation/")}


def read_document(path: Path) -> dict[str, dict[str, object]]:
    """Read `progress.json`: progress, plain numbers of the optimizer, loss scale.

    Raises:
        CheckpointError: it is not what this release writes.
    """
    try:
        document = read_own_json(path / "progress.json")
    except (OSError, ValueError) as error:
        raise CheckpointError("progress.json cannot be read", where=str(path)) from error
    parts = ("progress", "optimizer", "scaler")
    if not isinstance(document, dict) or not all(
        isinstance(document.get(part), dict) for part in parts
    ):
        raise CheckpointError(f"progress.json lacks one of {parts}", where=str(path))
    return document


def _fault(path: Path) -> str | None:
    if (fault := find_fault(path)) is not None:
        return fault
    try:
        progress, manifest = _read_unjudged(path), read_manifest(path)
    except CheckpointError as error:
        return error.message
    if not progress.step == manifest.step == step_of(path):
        return f"holds step {progress.step}, and its manifest says {manifest.step}"
    if progress.phase != manifest.phase:
        return f"holds phase {progress.phase}, and its manifest says {manifest.phase}"
    fault = contradiction(progress)
    return None if fault is None else f"progress.json: {fault}"


def _read_unjudged(path: Path) -> Progress:
    return Progress.from_json(read_document(path)["progress"])


def _set_aside(path: Path) -> str:
    """Give what is no checkpoint of ours another name; return the line that tells it."""
    names = (path.with_name(f"foreign-{number}-{path.name}") for number in itertools.count(1))
    aside = next(name for name in names if disk.kind_of(name) is None)
    disk.rename(path, aside)
    return f"{path}: held something that no run has saved; it is {aside.name} now"


def is_checkpoint_name(path: Path) -> bool:
    """Tell whether a path bears the name of a checkpoint, or of what a killed save leaves."""
    return bool(_NAME.fullmatch(path.name) or _LEAVING.fullmatch(path.name))


def _is_ours(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint by its name; None if that is no name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else None


def _signature(path: Path) -> Signature:
    if not disk.is_folder(path):
        return ()
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        found = [("", path.lstat()), *((e.name, e.stat(follow_symlinks=False)) for e in entries)]
        return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found)
    except OSError:
        return ()
