"""How a run ends: done, stopped on request, or failed with an error that is told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from finetune.activations.cache import ActivationCache
from finetune.errors import CheckpointError, DataError, FinetuneError, FrozenWeightError
from finetune.runs.folder import RunFolder
from finetune.runs.own_files import REPORT
from finetune.train.evaluator import Evaluator
from finetune.train.fitted_on_validation import kept_of_validation
from finetune.train.saver import Saver
from finetune.train.shown.reporting import Reporter
from finetune.train.shown.summary import summarise
from finetune.train.stopping import Stop, StopRequest
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfRun:
    """Writes the summary of a run, and the page about it, however the run ends."""

    folder: RunFolder
    timeline: Timeline
    evaluator: Evaluator
    cache: ActivationCache
    saver: Saver
    reporter: Reporter
    stop: Stop
    writes_page: bool

    @contextmanager
    def told(self) -> Iterator[None]:
        """Write the summary of a run that is stopped or fails in the block, and raise the cause.

        A block that ends well has written its own. In each case the page about the run follows.

        Raises:
            StoppedError: the run was asked to stop.
        """
        try:
            yield
            self._write_page()
        except StopRequest:
            self.sum_up("stopped")
            self._write_page()
            raise self.stop.error(self.timeline.progress.step, self.folder.path) from None
        except (FinetuneError, FrozenWeightError) as error:
            if isinstance(error, DataError):
                self._note_unread(error)
            # The folder, or the last save, may be what has failed: neither must hide the first
            # error.
            with suppress(FinetuneError):
                self.sum_up("failed", reason=getattr(error, "message", str(error)))
                self._write_page()
            raise

    def sum_up(
        self,
        status: str,
        never_moved: Sequence[str] | None = None,
        reason: str | None = None,
    ) -> None:
        """Write `summary.json`, after the last checkpoint is on disk.

        Args:
            status: `done`, `stopped` or `failed`.
            never_moved: Trained tensors that still have their first values; None before the end.
            reason: What has failed.

        Raises:
            FinetuneError: the last checkpoint, or the summary, cannot be written.
        """
        if not self.folder.is_written:
            return
        self.reporter.tracker.ends(status)
        # A summary of a run whose last checkpoint fails to be written would be false.
        self.saver.checkpoints.worker.wait()
        is_done, progress = status == "done", self.timeline.progress
        # A run that was stopped has chosen no threshold and fitted no temperature yet.
        task, step = self.evaluator.task, progress.step_in_use
        kept = kept_of_validation(task, step) if is_done else {}
        self.folder.write_summary(
            kept
            | summarise(
                progress,
                self.evaluator.precision.device,
                self.cache.statistics,
                status=status,
                reason=reason,
                metrics=self.saver.figures() if is_done else progress.metrics,
                never_moved=never_moved,
                never_ran=[phase.name for phase in self.timeline.following],
            )
        )

    def _write_page(self) -> None:
        """Write `report.html`; if that fails, the run only says so."""
        if not self.writes_page:
            return
        try:
            # Jinja takes a while to load, and is needed only now.
            from finetune.report.page import write_page

            self.evaluator.looking.settle()
            write_page(self.folder.path)
            self.reporter.tracker.file(self.folder.path / REPORT)
        # Whatever it is: the run is done, and its page can be made again by `finetune report`.
        except Exception as error:  # noqa: BLE001
            why = getattr(error, "message", f"{type(error).__name__}: {error}")
            self.reporter.message(f"report.html was not written: {why}")

    def _note_unread(self, error: DataError) -> None:
        """Note a sample that cannot be made, if nothing that the run has depends on it yet."""
        # A file that has changed was read once, and may have been trained on.
        if error.unread is None or error.is_of_change or self.timeline.has_used(*error.unread):
            return
        # A damaged folder must not hide what ended the run.
        with suppress(CheckpointError, AttributeError, KeyError, TypeError):
            self.folder.note_unread(*error.unread)
