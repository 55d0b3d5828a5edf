"""Find the runs in the named folders, load them, and look again when told to."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.predict import Predictor, Predictors
from finetune.predict.predictor import predictor_of
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints
from finetune.runs.listing import find_runs
from finetune.runs.owner import is_run
from finetune.runs.saved_runs import saved_config
from finetune.train.after.bases import Bases
from finetune.train.after.trained import load_run


@dataclass(frozen=True, slots=True)
class Loading:
    """How runs are loaded."""

    trust: Sequence[str] = ()
    overrides: Sequence[str] = ()
    batch_size: int | None = None

    def load(self, path: Path, bases: Bases | None = None) -> Predictor:
        """Load the run in a folder; `bases` are networks of runs that are loaded with it."""
        run = load_run(path, trust=self.trust, overrides=self.overrides, bases=bases)
        return predictor_of(run, self.batch_size)


class ServedRuns:
    """The runs in some folders.

    Args:
        folders: Folders of runs, or of folders of runs.
        loading: How they are loaded.
        tell: Receives lines for the user.
    """

    def __init__(
        self, folders: Sequence[Path], loading: Loading, tell: Callable[[str], None]
    ) -> None:
        self._folders, self._loading, self._tell = folders, loading, tell
        self._stamps: dict[str, str] = {}
        self.predictors = Predictors()

    def load_all(self) -> None:
        """Load all runs.

        Raises:
            FinetuneError: a run that is named cannot be loaded, two have one name, or there is no
                usable run. One inside of a named folder that cannot be loaded is told.
        """
        found = self._found()
        # Runs that share a frozen base share its memory. One alone has nobody to share with.
        bases = Bases() if len(found) > 1 else None
        for name, path in found.items():
            # Before the loading: a run that is saved meanwhile is loaded again at the next look.
            stamp = _stamp(path)
            try:
                one = self._loading.load(path, bases)
                self.predictors.add(name, one)
            except FinetuneError as error:
                # A run that the user has named must not go missing with a note alone.
                if path in self._folders:
                    raise
                self._tell(f"note: {name} is not served: {error.in_one_line}")
                continue
            self._stamps[name] = stamp
            self._tell_notes(name, one)
        if not len(self.predictors):
            where = ", ".join(map(str, self._folders))
            raise FinetuneError("no run to serve", where=where, hint="train a run first")
        for line in self.predictors.notes():
            self._tell(line)

    def look_again(self, call: Callable[[Callable[[], None]], None]) -> None:
        """Load runs that are new or have changed, and drop those that are gone.

        Args:
            call: Calls a function while no network runs.
        """
        try:
            found = self._found()
        except FinetuneError as error:
            self._tell(f"the runs stay as they are: {error.in_one_line}")
            return
        # A list, since the mapping changes meanwhile.
        for name in [name for name in self.predictors if name not in found]:
            self._stamps.pop(name, None)
            call(lambda name=name: self.predictors.remove(name))  # type: ignore[misc]
            self._tell(f"{name} is gone: no longer served")
        for name, path in found.items():
            if (stamp := _stamp(path)) != self._stamps.get(name):
                self._load_anew(name, path, stamp, call)
        for line in self.predictors.notes():
            self._tell(line)

    def _load_anew(
        self, name: str, path: Path, stamp: str, call: Callable[[Callable[[], None]], None]
    ) -> None:
        try:
            # Read while requests are answered; only the trial of its prefix must wait for a pause.
            one = self._loading.load(path)
        except FinetuneError as error:
            stays = "stays as it was" if name in self.predictors else "is not served"
            self._tell(f"{name} {stays}: {error.in_one_line}")
            return
        word = "loaded anew" if name in self.predictors else "loaded"
        call(lambda: self.predictors.add(name, one))
        self._stamps[name] = stamp
        self._tell(f"{name} is {word}")
        self._tell_notes(name, one)

    def _tell_notes(self, name: str, one: Predictor) -> None:
        """Tell what is to be said of a run that was loaded, such as that it is not at its end."""
        for note in one.run.notes:
            self._tell(f"note: {name}: {note}")

    def _found(self) -> dict[str, Path]:
        """Return the folders of all runs by name, as they are now.

        Raises:
            FinetuneError: two runs have one name, or a folder cannot be read.
        """
        found: dict[str, Path] = {}
        for folder in self._folders:
            if not folder.is_dir() and self._stamps:
                continue  # looked at again: it has gone
            inside = [] if is_run(folder) else [folder / run.name for run in find_runs(folder)]
            for path in inside or [folder]:
                name = path.resolve().name
                if name in found and found[name].resolve() != path.resolve():
                    raise FinetuneError(
                        f"two runs are named {name!r}",
                        where=str(path),
                        hint=f"the other one is {found[name]}; rename the folder of one of them",
                    )
                found[name] = path
        return found


def _stamp(path: Path) -> str:
    """Return a text that changes when a run has other weights or another config."""
    try:
        files = [saved_config(path), path / "summary.json", path / "data.json"]
        # Checkpoints in another place are not looked at: the summary of a run changes with them.
        with suppress(FinetuneError):
            chosen = Checkpoints(RunFolder(path).checkpoints, keep_last=1).chosen()
            files += [chosen / "MANIFEST.json", chosen / "weights.safetensors"]
        stats = [file.stat() for file in files if file.is_file()]
    except (FinetuneError, OSError):
        return "not usable"
    # The inode as well: files are replaced by renaming, and two may have one size and one time.
    return " ".join(f"{one.st_ino} {one.st_mtime_ns} {one.st_size}" for one in stats)
