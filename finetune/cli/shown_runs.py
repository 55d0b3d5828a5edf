"""The server behind `finetune tensorboard`: every run under its own name, the questions in order.

TensorBoard names a run after the folder of its event files, which would be `digits/tensorboard`. So
it is given a folder of links, `digits/events…`, which is kept up to date while it serves. The files
of the projector are copied: it reads no file that a link leads out of its folder to.

Python runs this file by its path, without the current folder on its import path: `main` adds the
package, which functions import from.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

EVENTS = "events.out.tfevents."
"""Beginning of the names of event files, which TensorBoard looks for."""
FOLDER = "tensorboard"
"""Folder of the event files in a run."""
_REFRESH_S = 3.0
"""TensorBoard itself looks for new points every five seconds."""


def main(arguments: Sequence[str]) -> int:
    """Serve the runs below a folder until a signal comes.

    Args:
        arguments: The folder of runs, what follows the server's address in the browser, and
            TensorBoard's own options.
    """
    runs, page, *options = arguments
    from tensorboard import default, main_lib, program  # type: ignore[import-untyped]

    # Where the package itself was found; at the end, so that it hides no other one.
    sys.path.append(str(Path(__file__).parents[2]))
    from finetune.visible import tell

    def make_server(app: Any, flags: Any) -> Any:
        server = program.create_port_scanning_werkzeug_server(app, flags)
        address = server.get_url().rstrip("/")
        tell(f"loss and main metric first: {address}/{page}", sys.stderr)
        return server

    with tempfile.TemporaryDirectory(prefix="finetune-tensorboard-") as folder:
        links = Path(folder)
        told: set[str] = set()
        _refresh_and_tell(Path(runs), links, told)
        _start_refreshing(Path(runs), links, told)
        main_lib.global_init()
        board = program.TensorBoard(plugins=default.get_plugins(), server_class=make_server)
        board.configure(("tensorboard", "--logdir", str(links), *options))
        with suppress(KeyboardInterrupt):
            return int(board.main())
    return 130


def refresh(runs: Path, links: Path) -> list[str]:
    """Make `links` hold a folder for each run, with a link to each of its event files.

    Links and copies whose file has gone are removed, so a run that was renamed appears under its
    new name. A file that cannot be read hides no other one.

    Args:
        runs: Folder of runs, or a run itself.
        links: A folder of our own.

    Returns:
        A line for each file that is not shown or not up to date, with the reason.
    """
    wanted = dict(_event_files(runs, links))
    for place, folders, files in os.walk(links, topdown=False):
        for name in files:
            if Path(place, name) not in wanted:
                Path(place, name).unlink()
        for name in folders:
            # Only an empty folder goes.
            with suppress(OSError):
                Path(place, name).rmdir()
    faults = []
    for link, file in wanted.items():
        try:
            # A file that was removed meanwhile: the next round sees it gone.
            with suppress(FileNotFoundError):
                _show(file, link)
        except OSError as error:
            faults.append(f"{file} is not shown: {error.strerror or error}")
    return faults


def _show(file: Path, link: Path) -> None:
    """Make a link to an event file, or a copy of a file of the projector.

    Raises:
        OSError: the file cannot be read, or the link not be made.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    if file.name.startswith(EVENTS):
        with suppress(FileExistsError):
            link.symlink_to(file)
    else:
        _copy_if_changed(file, link)


def _copy_if_changed(file: Path, copy: Path) -> None:
    """Copy a file whose copy is missing or has another time; no link is followed.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    from finetune import disk

    # Before it is copied: if it is written meanwhile, the next round copies it again.
    found = file.lstat()
    if not copy.exists() or copy.stat().st_mtime_ns != found.st_mtime_ns:
        disk.copy_file(file, copy)
        os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))


def _event_files(runs: Path, links: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a link and its file, for every file below a folder of runs that TensorBoard reads.

    Those of the projector count only in a folder where runs write them: elsewhere, a file of such a
    name may be anything, of any size.
    """
    from finetune.tracking.projector_files import PROJECTOR_FILES

    home = runs.resolve()
    for top in (runs, *_linked_runs(runs)):
        for place, _, files in os.walk(top):
            folder = Path(place)
            name = _name_of(folder.relative_to(runs)) or _name_of(home)
            for file in sorted(files):
                path = folder / file
                is_ours = file in PROJECTOR_FILES and folder.resolve().name == FOLDER
                is_shown = file.startswith(EVENTS) or is_ours
                if is_shown and not path.is_symlink() and path.is_file():
                    yield links / name / file, path.resolve()


def _name_of(folder: Path) -> str:
    """Return the name of the run that a folder of event files belongs to.

    A relative folder gives a relative name, empty for the folder of runs itself; an absolute one
    gives the last part alone.
    """
    run = folder.parent if folder.name == FOLDER else folder
    if folder.is_absolute():
        return run.name or "run"
    return "" if run == Path() else str(run)


def _linked_runs(runs: Path) -> Iterator[Path]:
    """Yield links to runs in the same folder, such as `best`; no other link is followed."""
    home = runs.resolve()
    for path in sorted(runs.iterdir()):
        if path.is_symlink() and path.is_dir() and path.resolve().parent == home:
            yield path


def _refresh_and_tell(runs: Path, links: Path, told: set[str]) -> None:
    """Refresh the links, and print what is not shown; `told` holds the lines printed so far."""
    from finetune.visible import tell

    for line in refresh(runs, links):
        if line not in told:
            told.add(line)
            tell(line, sys.stderr)


def _start_refreshing(runs: Path, links: Path, told: set[str]) -> None:
    """Refresh the links every few seconds, in a thread that ends with the process."""
    pause = threading.Event()

    def work() -> None:
        while not pause.wait(_REFRESH_S):
            # A run that is removed while it is read: the next round sees it gone.
            with suppress(OSError):
                _refresh_and_tell(runs, links, told)

    threading.Thread(target=work, daemon=True, name="links to runs").start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
