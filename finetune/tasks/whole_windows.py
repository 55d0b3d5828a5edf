"""Errors for losses that need whole windows: these must not be cut into micro-batches."""

from finetune.config.train import TrainConfig
from finetune.errors import FinetuneError, named
from finetune.tasks.task import Task


def refuse_cut_windows(task: Task, settings: TrainConfig) -> None:
    """Raise if micro-batches are smaller than the window of a loss with `whole_window = True`.

    Raises:
        FinetuneError: windows would be cut.
    """
    if task.whole_window_losses and settings.pass_size < settings.batch_size:
        raise FinetuneError(
            f"micro_batch {settings.pass_size} cuts windows of {settings.batch_size} samples, "
            f"which {_needed_by(task)} whole (whole_window = True)",
            hint="leave out micro_batch, or bring batch_size down to it",
            key=("train", "micro_batch"),
        )


def memory_for_whole_windows(task: Task, size: int) -> FinetuneError:
    """Return the error for a window that does not fit the memory and must not be cut.

    Args:
        task: The task, with its losses.
        size: Number of samples in the window.
    """
    return FinetuneError(
        f"memory does not hold a window of {size} samples, which {_needed_by(task)} whole "
        "(whole_window = True): it is not cut",
        hint="a smaller train.batch_size",
        key=("train", "batch_size"),
    )


def _needed_by(task: Task) -> str:
    """Return the losses that need whole windows, with their verb."""
    names = task.whole_window_losses
    return f"loss {named(names)} needs" if len(names) == 1 else f"losses {named(names)} need"
