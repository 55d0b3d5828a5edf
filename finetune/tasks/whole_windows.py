"""Losses that compare the samples of a window: no window of theirs is cut into micro-batches."""

from finetune.config.train import TrainConfig
from finetune.errors import FinetuneError, named
from finetune.tasks.tasks import Task


def refuse_cut_windows(task: Task, settings: TrainConfig) -> None:
    """Refuse micro-batches where a loss has said `whole_window = True`.

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
    """Return the error over a window that memory does not hold, and that must not be cut.

    Args:
        task: Its losses.
        size: Samples of the window.
    """
    return FinetuneError(
        f"memory does not hold a window of {size} samples, which {_needed_by(task)} whole "
        "(whole_window = True): it is not cut",
        hint="a smaller train.batch_size",
        key=("train", "batch_size"),
    )


def _needed_by(task: Task) -> str:
    names = task.whole_window_losses
    return f"loss {named(names)} needs" if len(names) == 1 else f"losses {named(names)} need"
