"""Weights & Biases: figures, pictures, settings and the page of a run; offline unless asked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune import disk
from finetune.importing import require
from finetune.pictures.finished_picture import Drawn
from finetune.tracking.run_names import PROJECT, Identity
from finetune.tracking.tracker import PLACE, Tracker

MODE = "WANDB_MODE"
"""Variable of wandb's own. Only a person who sets it to `online` has anything sent anywhere."""


class WandB(Tracker):
    """Sends a run to Weights & Biases, by its own process, which never holds up a step.

    What wandb collects by itself is off: the lines of the terminal, the command line with its
    options, git's remote, the machine. Some of these hold secrets, and the run tells what it has.

    Args:
        identity: Names of the run.
        settings: The settings of the run, with secrets masked.
    """

    def __init__(self, identity: Identity, settings: Mapping[str, str | float | bool]) -> None:
        # Before it is imported: it reports its own faults to its makers unless told otherwise.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb: Any = require("wandb", extra="wandb")
        # wandb imports it with the first picture: workers do so too, and are forked from then on.
        pillow: Any = require("PIL.Image", extra="wandb")
        pillow.preinit()
        self._identity, self._settings = identity, settings
        self._run: Any = None
        self._status = "stopped"

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Start the run, or continue that of an earlier process.

        wandb takes no step twice: a server drops points of steps that it has.
        """
        if self._run is not None:
            return
        mode = mode_of()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self._identity.id,
            name=os.environ.get("WANDB_NAME") or self._identity.name,
            dir=str(_folder(self._identity.place)),
            config=dict(self._settings),
            # Offline there is nobody to ask for the run before; the same id joins both parts.
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            settings=self._wandb.Settings(
                mode=mode,
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log the figures of a step."""
        figures = {
            tag: value
            for tag, value in values.items()
            if tag not in PLACE and not isinstance(value, str)
        }
        self._run.log(figures, step=step)

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Log a picture."""
        self._log(tag, self._wandb.Image(image.pixels), step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Log a histogram; without finite numbers, none."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self._log(tag, self._wandb.Histogram(finite), step)

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Keep the final metrics beside the settings, which were sent when the run began."""
        self._run.summary.update(dict(metrics))

    def file(self, path: Path) -> None:
        """Log a page as HTML; other files are not sent."""
        if path.suffix == ".html":
            with disk.open_to_read(path) as file:
                page = file.read().decode()
            # wandb would put a style of its own into the page.
            self._log(path.stem, self._wandb.Html(page, inject=False), 0)

    def ends(self, status: str) -> None:
        """Take how the run ends."""
        self._status = status

    def close(self) -> None:
        """End the run; what is still queued is written."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._status == "done" else 1)
            self._run = None

    def _log(self, tag: str, value: Any, step: int) -> None:
        """Log a value at a step, or at the present one if that has passed meanwhile.

        Pictures are drawn beside the steps, and wandb drops what comes for an earlier step.
        """
        self._run.log({tag: value}, step=max(step, self._run.step))


def mode_of() -> str:
    """Return the mode that the person's environment names; without one, nothing is sent."""
    return os.environ.get(MODE) or "offline"


def line_on(place: Path) -> str:
    """Return the line that tells where the run goes."""
    if os.environ.get(MODE):
        return f"wandb: {mode_of()}, as {MODE} says"
    return (
        f"wandb: offline, in {_folder(place) / 'wandb'}; `wandb sync` sends it, {MODE}=online does "
        "at once"
    )


def _folder(place: Path) -> Path:
    """Return the folder in which wandb makes its own: the one that the environment names, or ours.

    Args:
        place: The folder of the run's folder.
    """
    return Path(os.environ.get("WANDB_DIR") or place)
