"""TensorBoard: curves over optimizer steps, text, images, embeddings, settings beside results."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from finetune import disk
from finetune.errors import FinetuneError
from finetune.pictures.finished_picture import Drawn
from finetune.tracking.board import charts_of, layout, shown_tag
from finetune.tracking.projector import write_projector
from finetune.tracking.tracker import OF_PHASES, PLACE, Embedding, Tracker
from finetune.visible import one_line, visible


class TensorBoard(Tracker):
    """Writes event files into one folder, which TensorBoard shows as one run.

    The first call opens a file; each call raises `FinetuneError` if it cannot be written.

    Args:
        folder: Folder for the event files; made if it is missing.
        purge_step: For a resumed run, its next step: what an earlier process wrote for that step
            and later ones is no longer shown. `begin` sets it too.
        frozen_now: Returns the figures that only change between phases, by tag, which are repeated
            with each step so that they are drawn as steps. None for a run of one phase: these
            figures are not shown, as each would be a chart of a single point.
    """

    def __init__(
        self,
        folder: Path,
        purge_step: int | None = None,
        frozen_now: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._frozen_now = frozen_now
        self._writer: SummaryWriter | None = None
        self._last_step = 0
        self._seen: dict[str, None] = {}
        self._charts: dict[str, dict[str, str]] = {}

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Open a new event file; points after `step` in earlier files are no longer shown."""
        self.close()
        self._last_step = step
        self._purge_step = step + 1 if step else None
        # Entering the block opens the file: a folder that cannot be written fails now, not at a
        # later step.
        with self._writing():
            pass

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Add a point to each tag's curve. Text and the entries of `PLACE` get no curve."""
        self._last_step = step
        shown = self._shown(values)
        if not shown:
            return
        # One event for all tags costs a fraction of the event per tag that `add_scalar` writes.
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in shown.items()]
        self._add(Summary(value=points), step)
        if not shown.keys() <= self._seen.keys():
            self._seen |= dict.fromkeys(shown)
            self._lay_out(step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text in Markdown."""
        with self._writing() as writer:
            writer.add_text(one_line(shown_tag(tag)), visible(text), step)

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Add a picture."""
        # `add_image` would scale a copy in floating point and compress it anew.
        height, width, _ = image.pixels.shape
        shown = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=image.png
        )
        self._add(Summary(value=[Summary.Value(tag=one_line(shown_tag(tag)), image=shown)]), step)

    def pr_curve(self, tag: str, is_so: np.ndarray, score: np.ndarray, step: int) -> None:
        """Add a precision-recall curve."""
        finite = np.isfinite(score)
        with self._writing() as writer:
            writer.add_pr_curve(one_line(tag), is_so[finite], score[finite], step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Add a histogram; without finite numbers, none."""
        finite = values[np.isfinite(values)]
        if len(finite):
            with self._writing() as writer:
                writer.add_histogram(one_line(tag), finite, step)

    def embedding(self, embedding: Embedding, step: int) -> None:
        """Write the files of the projector."""
        with self._writing():
            write_projector(self._folder, embedding, step)

    def hparams(
        self, values: Mapping[str, str | float | int | bool], metrics: Mapping[str, float]
    ) -> None:
        """Show the settings of the run beside its results.

        `SummaryWriter.add_hparams` would make a second run below this one. TensorBoard reads each
        metric from the end of its curve; a metric without a curve gets a single point.
        """
        settings = {one_line(key): _setting(value) for key, value in values.items()}
        # The first of the three describes an experiment, and TensorBoard takes that of any one run
        # for all of them. Without it, it looks at every run and sorts first what differs.
        _, *summaries = hparams_summaries(settings, {})
        for summary in summaries:
            self._add(summary, self._last_step)
        # Without any point, TensorBoard shows no value for a metric beside the settings.
        unseen = {tag: value for tag, value in metrics.items() if one_line(tag) not in self._seen}
        if unseen:
            self.scalars(self._last_step, unseen)

    def close(self) -> None:
        """Write what is queued and close the event file."""
        if self._writer is not None:
            with self._writing() as writer:
                writer.close()
            self._writer = None

    def _shown(self, values: Mapping[str, float | str]) -> dict[str, float]:
        """Return the points of a line, by the tag that TensorBoard gets."""
        figures = {
            tag: float(value)
            for tag, value in values.items()
            if not isinstance(value, str) and tag not in PLACE
        }
        if self._frozen_now is None:
            figures = {tag: value for tag, value in figures.items() if tag not in OF_PHASES}
        elif any(tag.startswith("train/") for tag in figures):
            figures |= self._frozen_now()
        return {one_line(shown_tag(tag)): value for tag, value in figures.items()}

    def _lay_out(self, step: int) -> None:
        """Write the layout of the charts that now have points, if there is a new one."""
        charts = charts_of(self._seen)
        if charts != self._charts:
            self._charts = charts
            self._add(layout(charts), step)

    def _add(self, summary: Any, step: int) -> None:
        """Queue one event."""
        with self._writing() as writer:
            writer.file_writer.add_summary(summary, step)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Yield the writer, opened if it is not; turn `OSError` into a `FinetuneError`."""
        try:
            if self._writer is None:
                # It makes up the file's name by itself. That no link has such a name is checked
                # earlier, by the run folder.
                disk.make_folder(self._folder)
                # A queue of torch's default length, 10, makes training wait for the disk.
                self._writer = SummaryWriter(
                    str(self._folder),
                    purge_step=self._purge_step,
                    max_queue=1000,
                    flush_secs=10,
                )
                _quieten(self._writer)
            yield self._writer
        except OSError as error:
            reason = disk.reason_of(error)
            raise FinetuneError(f"cannot write: {reason}", where=str(self._folder)) from error


def _setting(value: str | float | bool) -> str | float:
    """Return a setting in a form that TensorBoard shows."""
    if isinstance(value, bool):
        # As YAML writes it.
        return str(value).lower()
    return one_line(value) if isinstance(value, str) else value


def _quieten(writer: SummaryWriter) -> None:
    """Keep the writer's thread from printing a traceback: the next call raises the same fault."""
    # There is no public way. Where a later release renames these, only the traceback comes back.
    files: Any = writer.file_writer
    with suppress(AttributeError):
        files.event_writer._async_writer._worker._invoke_excepthook = _do_nothing


def _do_nothing(_: Any) -> None:
    return
