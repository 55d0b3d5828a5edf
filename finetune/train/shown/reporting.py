"""Report figures of steps, phases and evaluations to the trackers, by tag."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.activations.split_cache import Statistics
from finetune.data.batches import Samples
from finetune.data.loading.skipped import first_skipped
from finetune.errors import NonFiniteError, named
from finetune.freezing.plan import Phase
from finetune.freezing.report import mask_as_text, states_over_phases
from finetune.optim.groups import Group
from finetune.pictures.drawing import drawn
from finetune.pictures.freeze_map import FreezeMap, freeze_timeline
from finetune.runs.progress import Progress
from finetune.tracking.tracker import OF_PHASES, WEIGHTS_STEP, Tracker
from finetune.train.shown.summary import peak_memory_gib
from finetune.train.shown.telling import Telling
from finetune.train.step_figures import StepFigures
from finetune.train.timeline import Timeline

_BLOCKS_EVERY = 5
"""Logged steps from one with the figures of blocks to the next: of 40 blocks they are many."""


@dataclass(frozen=True, slots=True)
class StepStats:
    """Figures of one optimizer step."""

    loss: Tensor
    """Mean loss of the window's samples, a scalar on the device."""
    grad_norm: Tensor | None
    """Norm over all gradients before clipping; None if it was not measured."""
    seconds: float
    """Wall time of the step."""
    samples: int
    """Samples of the window."""
    figures: StepFigures | None
    """What is measured besides, in a step that is logged."""


class Waited(NamedTuple):
    """What came before a step."""

    data_s: float
    """Seconds that it waited for its samples."""
    cache: Statistics
    """What the activation cache has done so far."""


def _times(stats: StepStats, laps: Mapping[str, float], waited: Waited) -> dict[str, float]:
    """Return the seconds of a step and its parts, samples per second, and what the cache saved."""
    figures = {"time/data_seconds": waited.data_s}
    figures |= {f"time/{name}_seconds": seconds for name, seconds in laps.items()}
    whole = stats.seconds + waited.data_s
    if whole > 0:
        figures["time/samples_per_second"] = stats.samples / whole
    if waited.cache.answered or waited.cache.recorded:
        figures["time/cache_answered"] = waited.cache.answered
        figures["time/cache_saved_s"] = waited.cache.seconds_saved
    return figures


def frozen_now(timeline: Timeline) -> dict[str, float]:
    """Return number and size of the present phase by tag, which only change between phases."""
    frozen = timeline.phase.frozen
    inventory = timeline.plan.inventory
    trained = sum(param.numel for param in inventory if param.name not in frozen)
    return dict(zip(OF_PHASES, (timeline.progress.phase, trained), strict=True))


def phase_in_words(phase: Phase) -> str:
    """Return the peak rates of a phase and what ends it, on one line."""
    rates = sorted({rate.lr for rate in phase.rates.values()})
    spread = " to ".join(f"{rate:.3g}" for rate in dict.fromkeys((rates[0], rates[-1])))
    if phase.until is None:
        return f"rates {spread}"
    until = phase.until.model_dump(mode="json", exclude_none=True)
    words = ", ".join(f"{key} {value}" for key, value in until.items())
    return f"rates {spread}; until {words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Sends figures and messages to the trackers; keeps the latest figures in the progress."""

    tracker: Tracker
    telling: Telling
    """Writes to the terminal; one of the trackers."""
    timeline: Timeline
    groups: tuple[Group, ...]
    log_every: int
    device: torch.device
    hparams: Mapping[str, str | int | float | bool]
    texts: Mapping[str, str]
    """Texts in Markdown about the run, by tag."""
    told: set[str] = field(default_factory=set)
    """Lines sent by `message_once`."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open the trackers at the present step of the timeline; close them after the block."""
        self.begin()
        for tag, text in self.texts.items():
            self.tracker.text(tag, text, self._progress.step)
        try:
            with self.telling.shows_activity():
                yield
            # Only for a run that ended well; the trackers are closed in any case.
            if self._freezes:
                self._picture()
            self.tracker.hparams(self.hparams, self._progress.metrics)
        except NonFiniteError:
            # Who compares settings asks which of them diverged. A run that was stopped goes on.
            self.tracker.hparams(self.hparams, self._progress.metrics)
            raise
        finally:
            self.tracker.close()

    def begin(self) -> None:
        """Start the trackers at the present step: they discard lines of later steps."""
        progress, total = self._progress, self.timeline.total_steps
        self.tracker.begin(progress.step, total, lines=progress.lines)
        self._show_phase()

    def message(self, text: str) -> None:
        """Send one line to the trackers."""
        self.tracker.message(text)

    def messages(self, lines: Iterable[str]) -> None:
        """Send some lines to the trackers."""
        for line in lines:
            self.message(line)

    def message_once(self, text: str) -> None:
        """Send one line, unless it was sent before."""
        if text not in self.told:
            self.told.add(text)
            self.message(text)

    def skips(self, samples: Samples) -> None:
        """Report the first sample of a split that is skipped, once."""
        if (line := first_skipped(samples)) is not None:
            self.message_once(line)

    def logs(self, step: int) -> bool:
        """Tell whether a step is logged: the first, the last and every `log_every`-th."""
        return step == 1 or step % self.log_every == 0 or step == self.timeline.total_steps

    def tells_blocks(self, step: int) -> bool:
        """Tell whether a step is logged with the figures of each block: each fifth such step."""
        return self.logs(step) and (step == 1 or step % (_BLOCKS_EVERY * self.log_every) == 0)

    def phase_begins(self) -> None:
        """Report which phase begins, and what it trains."""
        progress, plan = self._progress, self.timeline.plan
        self._show_phase()
        self._tell(frozen_now(self.timeline))
        if not self._freezes:
            return
        text = mask_as_text(plan.inventory, self.timeline.phase.frozen)
        self.tracker.text("freeze/map", f"```\n{text}\n```", progress.step)
        # a policy may make hundreds of phases: their picture is drawn once, as the run ends
        if plan.policy is None:
            self._picture()

    def _show_phase(self) -> None:
        """Show on a terminal which phase there is, how long it lasts, and what comes next."""
        timeline = self.timeline
        following = [phase.name for phase in timeline.following]
        self.telling.phase_begins(timeline.phase.name, timeline.span.ends, following)

    def never_ran(self) -> None:
        """Report the phases that never began, if there are any."""
        names, progress = [phase.name for phase in self.timeline.following], self._progress
        if names:
            noun = "phase" if len(names) == 1 else f"{len(names)} phases,"
            why = "early stopping ended the run" if progress.stopped_early else "the run ended"
            self.message(
                f"{noun} {named(names)} never ran: {why} in phase {self.timeline.phase.name!r}, "
                f"at step {progress.step}"
            )

    def step_is_done(self, stats: StepStats, optimizer: Optimizer, waited: Waited) -> None:
        """Show that a step is done; report its figures if it is one that is logged.

        Args:
            stats: Figures of the step.
            optimizer: Its rates are reported.
            waited: What came before the step.
        """
        progress = self.timeline.progress
        size, recorded = self.timeline.settings.batch_size, waited.cache.recorded
        self.telling.step_is_done(progress.step, size, recorded)
        found = stats.figures
        if found is None:
            return
        # Reading a tensor waits for the device, so it is done only for steps that are logged.
        figures = {"train/loss": float(stats.loss), "time/step_seconds": stats.seconds}
        if stats.grad_norm is not None:
            figures["train/grad_norm"] = float(stats.grad_norm)
        for name, norm in found.loss_norms.items():
            figures[f"train/grad_norm/{name}"] = float(norm)
        figures |= {f"train/{name}": value for name, value in found.metrics.items()}
        for group, slot in zip(self.groups, optimizer.param_groups, strict=True):
            if group.is_trained(self.timeline.phase.rates):
                figures[f"train/lr/{group.name}"] = float(slot["lr"])
        figures |= _times(stats, found.laps, waited)
        for kind, norms in (("gradient", found.gradients), ("update_ratio", found.ratios)):
            figures |= {f"freeze/{kind}/{block}": float(norm) for block, norm in norms.items()}
        figures["memory/peak_gib"] = peak_memory_gib(self.device)
        self._tell(figures)

    def evaluated(self, split: str, figures: Mapping[str, float]) -> None:
        """Report the figures of an evaluation, and keep them in the progress."""
        progress = self._progress
        tagged = {f"{split}/{name}": value for name, value in figures.items()}
        # A metric that is not defined this time must not keep its figure of last time.
        for tag in [tag for tag in progress.metrics if tag.partition("/")[0] == split]:
            if tag not in tagged:
                del progress.metrics[tag]
        progress.metrics |= tagged
        # The test alone is by the weights in use; the line keeps the step at which it was made.
        by = {WEIGHTS_STEP: progress.step_in_use} if split == "test" else {}
        self._tell({**by, **tagged})

    @property
    def _freezes(self) -> bool:
        """Whether any phase of the run freezes something: else there is no map to show."""
        plan = self.timeline.plan
        return plan.policy is not None or any(phase.frozen for phase in plan.phases)

    @property
    def _progress(self) -> Progress:
        return self.timeline.progress

    def _tell(self, figures: Mapping[str, float]) -> None:
        """Send figures of the present step to the trackers, with epoch and phase."""
        progress, phase = self._progress, self.timeline.phase.name
        epoch = self.timeline.epochs.count(progress.step)
        self.tracker.scalars(progress.step, {"epoch": epoch, "phase": phase, **figures})
        # A checkpoint keeps the count: a resumed run cuts the log back to it.
        if progress.lines is not None:
            progress.lines += 1

    def _picture(self) -> None:
        """Draw the freeze map of the run so far."""
        progress, timeline = self._progress, self.timeline
        shown = FreezeMap(
            rows=states_over_phases(timeline.plan.inventory, timeline.begun),
            phases=[phase.name for phase in (*timeline.begun, *timeline.following)],
            began=[0, *progress.transitions],
            total_steps=timeline.total_steps,
            now=progress.step,
            notes=[] if timeline.plan.policy else [phase_in_words(p) for p in timeline.plan.phases],
        )
        self.tracker.image("freeze/map", drawn(freeze_timeline(shown)), progress.step)
