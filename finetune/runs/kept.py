"""The checkpoints of a run: which are whole, which one a run resumes from, which are removed."""

import itertools
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune import disk
from finetune.errors import CheckpointError, FinetuneError
from finetune.runs.background import Worker
from finetune.runs.checkpoint_folder import (
    Signature,
    has_manifest,
    is_leftover_name,
    own_fault,
    read_progress,
    signature_of,
    step_of,
)
from finetune.runs.disk_space import Room
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.runs.progress import Progress
from finetune.whole_folders import REPLACED, holds_only, placed, remove_at_once

_GO_ON = "the same command again goes on from the newest checkpoint that can be used"
_HINT_MISFIT = "restore the files that `model:` names, or start afresh with --fresh"


def fits_anything(path: Path) -> str | None:
    """Return None, for any checkpoint; the default where the run's network is not known."""
    return None


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder of a run's checkpoints. Folders with other names in it are left alone.

    Args:
        folder: `runs/<name>/checkpoints`.
        keep_last: How many of the newest are kept.
        room: What they will take on the disk; None if nothing will be saved.
        worker: Runs the saves, maybe in a thread.
        misfit: Returns why a whole checkpoint does not fit the run, or None if it fits.
        is_written: Whether this process saves here; of several processes of a run only one does.
    """

    folder: Path
    keep_last: int
    room: Room | None = None
    worker: Worker = field(default_factory=Worker)
    misfit: Callable[[Path], str | None] = fits_anything
    is_written: bool = True
    _set_aside: list[str] = field(default_factory=list, repr=False)
    """One line for each foreign folder that was renamed to make room for a checkpoint."""
    # Digests are computed over all bytes: results are kept until a file changes.
    _judged: dict[Path, tuple[Signature, str | None]] = field(default_factory=dict, repr=False)

    @contextmanager
    def in_use(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Prepare the folder for a run that saves here; at the end wait for the last save.

        Leftovers of killed saves are removed. The caller must hold the lock of the run folder.

        Args:
            tell: Receives a line if the disk may not hold all checkpoints.

        Raises:
            CheckpointError: the disk cannot hold even one checkpoint, or a save failed.
        """
        if not self.is_written:
            yield
            return
        # Here and not where checkpoints are listed: only under the lock is nobody saving.
        self.sweep()
        line = self.room.lack_in(self.folder, len(self.all())) if self.room is not None else None
        if line is not None:
            tell(line)
        try:
            yield
        except BaseException:
            # The error that ended the run matters more; that of a save is only reported.
            try:
                self.worker.close()
            except FinetuneError as error:
                tell(str(error))
            raise
        self.worker.close()
        for note in self._set_aside:
            tell(note)

    def add(self, step: int, fill: Callable[[Path], None], wanted: Collection[int] = ()) -> Path:
        """Write the checkpoint of a step, then delete old ones; return the path of the new one.

        The folder gets this name only when all files are written. If the process is killed at any
        point, all other checkpoints stay usable, and so does an older one of the same step. If
        saves run in a thread, the call returns before the files are written.

        Args:
            step: Step of the run.
            fill: Writes the files, each durably, into the folder that it gets.
            wanted: Steps whose checkpoints are not deleted, beside the newest `keep_last`.

        Raises:
            CheckpointError: the checkpoint cannot be written. If saves run in a thread, the error
                is that of the previous save.
        """
        final = self.folder / f"step-{step:08d}"

        def write() -> None:
            try:
                disk.make_folder(self.folder)
                if disk.kind_of(final) is not None and not holds_only(final, NAMES_OF_FILES):
                    self._set_aside.append(_set_aside(final))
                with placed(final, NAMES_OF_FILES) as temporary:
                    fill(temporary)
            except OSError as error:
                raise CheckpointError(
                    f"cannot save: {disk.reason_of(error)}", hint=_GO_ON, where=str(final)
                ) from error
            # It was written just now: to read it back would only cost time.
            self._judged[final] = signature_of(final), None
            # Last: until the new one has its name, the older ones are all that there is.
            self._prune(step, {step, *wanted})

        self.worker.run(write)
        return final

    def path_of(self, step: int) -> Path:
        """Return the path of a step's checkpoint, whether it exists or not."""
        final = self.folder / f"step-{step:08d}"
        replaced = final.with_name(f"{REPLACED}{final.name}")
        # A save of the same step was killed between its two renames: the old one is still the only
        # one.
        is_aside = disk.is_folder(replaced) and disk.kind_of(final) is None
        return replaced if is_aside else final

    def all(self) -> list[Path]:
        """Return the paths of all checkpoints, oldest first."""
        if not disk.is_folder(self.folder):
            return []
        kinds = (stat.S_IFDIR, stat.S_IFLNK)  # a link is listed, so that its fault is reported
        steps = {step_of(p) for p in self.folder.iterdir() if disk.kind_of(p) in kinds}
        return [self.path_of(step) for step in sorted(step for step in steps if step is not None)]

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None if it is whole and fits the run.

        All its bytes are read, unless no file has changed since the last call.
        """
        signature = signature_of(path)
        known = self._judged.get(path)
        if known is None or known[0] != signature:
            known = self._judged[path] = signature, own_fault(path) or self.misfit(path)
        return known[1]

    def whole(self, step: int) -> Path:
        """Return the path of a step's checkpoint, after waiting for a save that runs.

        Raises:
            CheckpointError: it is damaged or missing.
        """
        self.worker.wait()
        path = self.path_of(step)
        if (fault := self.fault(path)) is not None:
            raise CheckpointError(fault, hint=_GO_ON, where=str(path))
        return path

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """Return the newest whole checkpoint, or None, and a line for each damaged one skipped."""
        self.worker.wait()
        damaged: list[str] = []
        # From the newest on, and no further than needed: to judge one reads all its bytes.
        for path in reversed(self.all()):
            if (fault := self.fault(path)) is None:
                return path, damaged
            damaged.append(f"{path}: {fault}; passed over")
        return None, damaged

    def start(self) -> tuple[Path | None, list[str]]:
        """Return the checkpoint to resume from, or None, and a line for each one skipped.

        Preferred is the newest whole one whose best checkpoints are whole too: from there the run
        ends as if it was never stopped. If there is none, it is the newest whole one.
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
        """Raise if a checkpoint is whole but does not fit the run: it must not be trained anew.

        Raises:
            CheckpointError: there is one; the message is about the newest.
        """
        # A whole checkpoint that does not fit means that the config's files changed, not that the
        # disk failed.
        for path in reversed(self.all()):
            if own_fault(path) is None and (why := self.misfit(path)) is not None:
                raise CheckpointError(why, hint=_HINT_MISFIT, where=str(path))

    def lost_with(self, path: Path) -> list[str]:
        """Return a line for each damaged or missing best checkpoint that a whole one refers to."""
        return self._lost(read_progress(path))

    def forget_lost(self, progress: Progress) -> list[str]:
        """Remove from `progress` best checkpoints that are damaged or missing; a line for each.

        The next best one that is left becomes the best.
        """
        lost = self._lost(progress)
        progress.forget_best(lambda step: self.fault(self.path_of(step)) is None)
        return [f"{line}: another one will be the best" for line in lost]

    def chosen(self) -> Path:
        """Return the checkpoint with the run's final weights: the best one, or the last one.

        Raises:
            CheckpointError: there is none, or it is damaged. Another one would predict otherwise
                than the run has reported, so none is taken in its place.
        """
        paths = self.all()
        if not paths:
            raise CheckpointError(
                "no checkpoint", where=str(self.folder), hint="train the run first"
            )
        newest = self._usable(paths[-1])
        best = read_progress(newest).best.step
        return newest if best is None else self._usable(self.path_of(best))

    def orphans(self) -> list[Path]:
        """Return the folders that killed saves have left; the next run here removes them."""
        if not disk.is_folder(self.folder):
            return []
        named = sorted(path for path in self.folder.iterdir() if is_leftover_name(path))
        kept = self.all()
        return [p for p in named if p not in kept and holds_only(p, NAMES_OF_FILES)]

    def sweep(self) -> None:
        """Remove what killed saves left; rename a checkpoint that they moved aside back.

        Failures are ignored: what stays only takes space, and the next run tries again.
        """
        for path in self.all():
            if path.name.startswith(REPLACED):
                with suppress(OSError):
                    disk.rename(path, path.with_name(path.name.removeprefix(REPLACED)))
        for path in self.orphans():
            with suppress(OSError):
                disk.remove(path)

    def _usable(self, path: Path) -> Path:
        """Return the path of a checkpoint; raise if it has a fault."""
        if (fault := self.fault(path)) is not None:
            hint = "`finetune train` goes on from the newest whole one, and writes it anew"
            raise CheckpointError(fault, hint=hint, where=str(path))
        return path

    def _lost(self, progress: Progress) -> list[str]:
        """Return a line for each best checkpoint named by `progress` that has a fault."""
        wanted = {progress.best.step, progress.phase_best.step}
        paths = [self.path_of(step) for step in sorted(step for step in wanted if step is not None)]
        return [f"{p}: {fault}" for p in paths if (fault := self.fault(p)) is not None]

    def _prune(self, step: int, wanted: Collection[int]) -> None:
        """Remove checkpoints older than the last `keep_last` whole ones up to `step`.

        A damaged one does not count, so it never pushes out a whole one. A folder without a
        readable manifest may be somebody else's and stays; so does one that cannot be removed.
        """
        # Later steps are of a run that went further before it was continued from here; they are not
        # touched.
        older = [path for path in reversed(self.all()) if (step_of(path) or 0) <= step]
        num_whole = 0
        for path in older:
            if num_whole < self.keep_last:
                num_whole += self.fault(path) is None
            elif step_of(path) not in wanted and has_manifest(path):
                with suppress(OSError):
                    remove_at_once(path, NAMES_OF_FILES)


def _set_aside(path: Path) -> str:
    """Rename a foreign folder or file to a free name; return the line to report it."""
    names = (path.with_name(f"foreign-{number}-{path.name}") for number in itertools.count(1))
    aside = next(name for name in names if disk.kind_of(name) is None)
    disk.rename(path, aside)
    return f"{path}: held something that no run has saved; it is {aside.name} now"
