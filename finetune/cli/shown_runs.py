"""The server behind `finetune tensorboard`: every run under its own name, the questions in order.

TensorBoard names a run after the folder of its event files, which would be `digits/tensorboard`. So
it is given a folder of links, `digits/events…`, which is kept up to date while it serves.

Python runs this file by its path, without the current folder on its import path.
"""

import os
import shutil
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
_EXTRAS = ("projector_config.pbtxt", "embedding")
"""Beginnings of the names of other files that TensorBoard's projector reads. They are copied: it
reads no file that a link leads out of its folder to."""
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
        refresh(Path(runs), links)
        _start_refreshing(Path(runs), links)
        main_lib.global_init()
        board = program.TensorBoard(plugins=default.get_plugins(), server_class=make_server)
        board.configure(("tensorboard", "--logdir", str(links), *options))
        with suppress(KeyboardInterrupt):
            return int(board.main())
    return 130


def refresh(runs: Path, links: Path) -> None:
    """Make `links` hold a folder for each run, with a link to each of its event files.

    Links and copies whose file has gone are removed, so a run that was renamed appears under its
    new name.

    Args:
        runs: Folder of runs, or a run itself.
        links: A folder of our own.
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
    for link, file in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if file.name.startswith(_EXTRAS):
            _copy_if_changed(file, link)
        else:
            with suppress(FileExistsError):
                link.symlink_to(file)


def _copy_if_changed(file: Path, copy: Path) -> None:
    """Copy a file whose copy is missing, or older than the file."""
    if not copy.exists() or copy.stat().st_mtime_ns != file.stat().st_mtime_ns:
        shutil.copy2(file, copy)


def _event_files(runs: Path, links: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a link and its event file, for every event file below a folder of runs."""
    home = runs.resolve()
    for top in (runs, *_linked_runs(runs)):
        for place, _, files in os.walk(top):
            folder = Path(place)
            name = _name_of(folder.relative_to(runs)) or _name_of(home)
            for file in sorted(files):
                path = folder / file
                is_shown = file.startswith((EVENTS, *_EXTRAS)) and not path.is_symlink()
                if is_shown and path.is_file():
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


def _start_refreshing(runs: Path, links: Path) -> None:
    """Refresh the links every few seconds, in a thread that ends with the process."""
    pause = threading.Event()

    def work() -> None:
        while not pause.wait(_REFRESH_S):
            # A run that is removed while it is read: the next round sees it gone.
            with suppress(OSError):
                refresh(runs, links)

    threading.Thread(target=work, daemon=True, name="links to runs").start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
