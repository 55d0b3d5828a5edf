"""How a run ends: done, stopped on request, or failed with an error that is told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from finetune.errors import CheckpointError, DataError, FinetuneError, FrozenWeightError
from finetune.runs.own_files import REPORT
from finetune.train.fitted_on_validation import kept_of_validation
from finetune.train.stopping import StopRequest
from finetune.train.summary import summarise

if TYPE_CHECKING:
    from finetune.train.loop import Trainer


@contextmanager
def telling_end(trainer: "Trainer") -> Iterator[None]:
    """Write the summary of a run that is stopped or fails in the block, and raise the cause.

    A block that ends well has written its own. In each case the page about the run follows.

    Raises:
        StoppedError: the run was asked to stop.
    """
    try:
        yield
        _write_page(trainer)
    except StopRequest:
        sum_up(trainer, "stopped")
        _write_page(trainer)
        raise trainer.stop.error(trainer.progress.step, trainer.folder.path) from None
    except (FinetuneError, FrozenWeightError) as error:
        if isinstance(error, DataError):
            _note_unread(trainer, error)
        # The folder, or the last save, may be what has failed: neither must hide the first error.
        with suppress(FinetuneError):
            sum_up(trainer, "failed", reason=getattr(error, "message", str(error)))
            _write_page(trainer)
        raise


def sum_up(
    trainer: "Trainer",
    status: str,
    never_moved: Sequence[str] | None = None,
    reason: str | None = None,
) -> None:
    """Write `summary.json`, after the last checkpoint is on disk.

    Args:
        trainer: The run.
        status: `done`, `stopped` or `failed`.
        never_moved: Trained tensors that still have their first values; None before the end.
        reason: What has failed.

    Raises:
        FinetuneError: the last checkpoint, or the summary, cannot be written.
    """
    if not trainer.folder.is_written:
        return
    trainer.reporter.tracker.ends(status)
    # A summary of a run whose last checkpoint fails to be written would be false.
    trainer.saver.checkpoints.worker.wait()
    is_done, progress = status == "done", trainer.progress
    # A run that was stopped has chosen no threshold and fitted no temperature yet.
    task, step = trainer.evaluator.task, progress.step_in_use
    kept = kept_of_validation(task, step) if is_done else {}
    trainer.folder.write_summary(
        kept
        | summarise(
            progress,
            trainer.stepper.precision.device,
            trainer.cache.statistics,
            status=status,
            reason=reason,
            metrics=trainer.saver.figures() if is_done else progress.metrics,
            never_moved=never_moved,
            never_ran=[phase.name for phase in trainer.timeline.following],
        )
    )


def _write_page(trainer: "Trainer") -> None:
    """Write `report.html`; if that fails, the run only says so."""
    if not trainer.writes_report:
        return
    try:
        # Jinja takes a while to load, and is needed only now.
        from finetune.report.page import write_page

        trainer.evaluator.looking.settle()
        write_page(trainer.folder.path)
        trainer.reporter.tracker.file(trainer.folder.path / REPORT)
    # Whatever it is: the run is done, and its page can be made again by `finetune report`.
    except Exception as error:  # noqa: BLE001
        why = getattr(error, "message", f"{type(error).__name__}: {error}")
        trainer.reporter.message(f"report.html was not written: {why}")


def _note_unread(trainer: "Trainer", error: DataError) -> None:
    """Note a sample that cannot be made, if nothing that the run has depends on it yet."""
    # A file that has changed was read once, and may have been trained on.
    if error.unread is None or error.is_of_change or trainer.timeline.has_used(*error.unread):
        return
    # A damaged folder must not hide what ended the run.
    with suppress(CheckpointError, AttributeError, KeyError, TypeError):
        trainer.folder.note_unread(*error.unread)
