"""The process of one trial: start it, follow its evaluations, end it early, read how it ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from finetune import disk
from finetune.errors import FinetuneError, StoppedError
from finetune.process import INTERRUPTED
from finetune.runs.lock import holder_of
from finetune.sweep.claims import ClaimedTrial
from finetune.tracking.json_lines import read_metrics

_LOG_BYTES = 2000
"""How much of the end of a log is looked at for what a run said last."""


class Ending(Enum):
    """How the process of a trial ended."""

    DONE = auto()
    STOPPED = auto()
    """It was asked to stop; its run goes on when it is started again."""
    KILLED = auto()
    REFUSED = auto()
    """The config is wrong, the training diverged, memory ran out: another try ends the same."""


@dataclass(slots=True)
class TrialTraining:
    """The process that trains one trial in a run folder of its own.

    Where another process still trains in the folder, left over from a sweep that was killed, it
    is waited for; then the run is taken up, or found done.

    Args:
        claim: The trial.
        folder: Its run folder.
        arguments: Arguments of `finetune train` beside the folder: config, overrides, trust.
        environment: Environment variables that are set for it.
    """

    claim: ClaimedTrial
    folder: Path
    arguments: Sequence[str]
    environment: dict[str, str]
    is_pruned: bool = False
    """Whether it was asked to end early because others do better."""
    num_reported: int = 0
    """Evaluations that the study knows of."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        """The file that gets what the process says on standard error."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def ending(self) -> Ending | None:
        """Start the process if none trains in the folder; return how it ended, or None."""
        if self._process is None:
            holder = holder_of(self.folder) if self.folder.exists() else None
            if holder is None or holder.is_dead():
                self._start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            return Ending.DONE
        holder = holder_of(self.folder) if self.folder.exists() else None
        if holder is not None and not holder.is_dead():
            self._process = None  # a left-over process took the folder first: it is waited for
            return None
        # The signals themselves, too: they may come before the run has begun to listen.
        if code in (StoppedError.exit_code, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
            return Ending.STOPPED
        return Ending.KILLED if code < 0 else Ending.REFUSED

    def stop(self) -> None:
        """Ask the process to save its run and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> Ending | None:
        """Wait for the process, which was asked to stop; return how it ended, None without one."""
        if self._process is None:  # `ending` would start it
            return None
        self._process.wait()
        return self.ending()

    def kill(self) -> None:
        """End the process at once, and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def figures(self, metric: str) -> list[float]:
        """Return the figures of a metric, one for each evaluation so far that has it."""
        path = self.folder / "metrics.jsonl"
        try:
            lines = read_metrics(path) if disk.is_file(path) else []
        except FinetuneError:  # it is cut back at this moment by a run that goes on
            return []
        return [float(line[metric]) for line in lines if isinstance(line.get(metric), int | float)]

    def last_words(self) -> str:
        """Return the last line of what the process said, which is its error."""
        try:
            with disk.open_to_read(self.log) as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        # A hint is indented: the line before it says what is wrong.
        return next((line for line in reversed(lines) if line and not line.startswith(" ")), "")

    def _start(self) -> None:
        """Start `finetune train`; a run that the folder holds goes on."""
        # By `-P` no module of the current folder is imported in place of a library.
        command = [sys.executable, "-P", "-m", "finetune", "train", *self.arguments]
        with disk.open_to_append(self.log) as log:
            self._process = subprocess.Popen(
                [*command, "--run-dir", str(self.folder), "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                # A group of its own: Ctrl-C reaches the sweep alone, which passes it on once.
                # A second signal would end the run at once, without a checkpoint.
                process_group=0,
            )
