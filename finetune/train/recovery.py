"""Continue after a step that failed: loss or gradient not finite, or out of memory."""

from dataclasses import dataclass

from finetune.errors import CheckpointError, FinetuneError, NonFiniteError
from finetune.tasks.whole_windows import memory_for_whole_windows
from finetune.train.saver import Saver
from finetune.train.shown.reporting import Reporter
from finetune.train.stepper import Stepper
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Undoes a failed step, then does what `train.nan` says, or halves the passes."""

    timeline: Timeline
    stepper: Stepper
    saver: Saver
    reporter: Reporter

    def begin(self) -> None:
        """Save a checkpoint at the start if `nan: rollback` would have none to go back to."""
        if self.timeline.settings.nan != "rollback":
            return
        # Of several processes the first one decides: it may have saved when another one looks.
        is_bare = not self.saver.checkpoints.all()
        if self.saver.alike.link.first_says(claim=is_bare):
            self.saver.save()

    @property
    def is_left_out(self) -> bool:
        """Whether the next window is to be left out: it was found bad before the run went back."""
        progress = self.timeline.progress
        return progress.step in progress.left_out

    def goes_back(self, error: NonFiniteError) -> bool:
        """Leave the window out, or load the last good checkpoint; return whether it was loaded.

        Raises:
            NonFiniteError: the config says to stop, or too many windows were left out.
            CheckpointError: there is no whole checkpoint.
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
        # The loaded progress is older than the window, so its list lacks it.
        self.timeline.progress.left_out = left_out
        self.reporter.message(f"{error.message}: back to step {self.timeline.progress.step}")
        # The trackers discard the lines of steps that will be taken again.
        self.reporter.begin()
        return True

    def halve_passes(self, samples: int) -> None:
        """Undo a step that ran out of memory; cut its window and all later ones into halves.

        Args:
            samples: Number of samples in the window.

        Raises:
            FinetuneError: a single sample is too much, or a loss needs whole windows.
        """
        self.stepper.undo()
        # A last window may be smaller than a pass: halving the limit alone might not cut it.
        size, task = min(self.timeline.pass_size, samples), self.stepper.task
        if task.whole_window_losses:
            raise memory_for_whole_windows(task, size)
        if size == 1:
            raise FinetuneError(
                "memory does not hold a single sample", key=("train", "micro_batch")
            )
        # Part of the progress, so that a resumed run does not run out of memory again.
        self.timeline.progress.micro_batch = size // 2
        self.reporter.message(
            f"out of memory with {size} samples in a pass: {size // 2} from now on"
        )
