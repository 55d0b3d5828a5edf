"""How a run goes on after a broken-off step: loss or gradient not finite, or no memory left."""

from dataclasses import dataclass

from finetune.errors import CheckpointError, FinetuneError, NonFiniteError
from finetune.tasks.whole_windows import memory_for_whole_windows
from finetune.train.reporting import Reporter
from finetune.train.saver import Saver
from finetune.train.stepper import Stepper
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Undoes a broken-off step, and does what `train.nan` says or takes smaller passes."""

    timeline: Timeline
    stepper: Stepper
    saver: Saver
    reporter: Reporter

    def begin(self) -> None:
        """Save the first step if the run may have to go back before it saves another one."""
        if self.timeline.settings.nan == "rollback" and not self.saver.checkpoints.all():
            self.saver.save()

    @property
    def is_left_out(self) -> bool:
        """Whether the next window was found bad before the run went back in time."""
        progress = self.timeline.progress
        return progress.step in progress.left_out

    def goes_back(self, error: NonFiniteError) -> bool:
        """Leave a window out, or go back to the last good checkpoint; return whether it did.

        Raises:
            NonFiniteError: the config says to stop, or too many windows are left out already.
        """
        progress, settings = self.timeline.progress, self.timeline.settings
        self.stepper.undo()
        if settings.nan == "stop":
            raise error
        left_out = [*progress.left_out, progress.step]
        if len(left_out) > settings.nan_limit:
            raise NonFiniteError(
                f"{error.message}; {settings.nan_limit} windows are left out already",
                hint=error.hint,
            ) from error
        if settings.nan == "skip":
            progress.left_out = left_out
            self.reporter.message(f"{error.message}: its window is left out")
            return False
        if not self.saver.load_newest():
            folder = str(self.saver.checkpoints.folder)
            raise CheckpointError("no whole checkpoint to go back to", where=folder) from error
        # the checkpoint does not know of it: it is older than the window
        self.timeline.progress.left_out = left_out
        self.reporter.message(f"{error.message}: back to step {self.timeline.progress.step}")
        self.reporter.begin()
        return True

    def halve_passes(self, samples: int) -> None:
        """Answer a lack of memory: cut the same window, and all after it, into smaller passes.

        Args:
            samples: Those of the window.

        Raises:
            FinetuneError: a single sample is too much, or a loss needs whole windows.
        """
        self.stepper.undo()
        size, task = min(self.timeline.pass_size, samples), self.stepper.task
        if task.whole_window_losses:
            raise memory_for_whole_windows(task, size)
        if size == 1:
            raise FinetuneError(
                "memory does not hold a single sample", key=("train", "micro_batch")
            )
        self.timeline.progress.micro_batch = size // 2
        self.reporter.message(
            f"out of memory with {size} samples in a pass: {size // 2} from now on"
        )
