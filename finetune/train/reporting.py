"""What the loop tells the trackers: figures of steps, phases and evaluations, by tag."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.errors import named
from finetune.freezing.report import mask_as_text, states_over_phases
from finetune.optim.groups import Group
from finetune.pictures.freeze_map import FreezeMap, draw_freeze_map
from finetune.runs.progress import Progress
from finetune.tracking.tracker import Tracker
from finetune.train.summary import peak_memory_gib
from finetune.train.telling import Telling
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step tells."""

    loss: Tensor
    """Mean loss of the window's samples, a scalar on the device."""
    grad_norm: Tensor | None
    """Norm over all gradients before clipping; None where nobody asked."""
    loss_norms: dict[str, Tensor]
    """Gradient norm of each loss alone, where the config asks for it."""
    seconds: float
    """How long the step took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Turns what happens into tagged figures for the trackers. Changes nothing in a run."""

    tracker: Tracker
    telling: Telling
    """Speaks to the person who started the run; one of the trackers."""
    timeline: Timeline
    groups: tuple[Group, ...]
    log_every: int
    device: torch.device
    hparams: Mapping[str, str | int | float | bool]
    told: set[str] = field(default_factory=set)
    """Lines that are told once."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open the trackers for a run that stands where the timeline is; close them after it."""
        self.begin()
        try:
            yield
            self._picture()
            self.tracker.hparams(self.hparams, self._progress.metrics)
        finally:
            self.tracker.close()

    def begin(self) -> None:
        """Let the trackers go on from the present step: what was told of later ones is void."""
        progress, total = self._progress, self.timeline.total_steps
        self.tracker.begin(progress.step, total, lines=progress.lines)

    def message(self, text: str) -> None:
        """Tell the person who watches one line."""
        self.tracker.message(text)

    def message_once(self, text: str) -> None:
        """Tell one line, unless it was told before."""
        if text not in self.told:
            self.told.add(text)
            self.message(text)

    def logs(self, step: int) -> bool:
        """Tell whether the figures of a step are logged: every so many, the first and the last."""
        return step == 1 or step % self.log_every == 0 or step == self.timeline.total_steps

    def phase_begins(self) -> None:
        """Tell which phase begins, and what it trains."""
        progress, plan = self._progress, self.timeline.plan
        frozen = self.timeline.phase.frozen
        trained = sum(param.numel for param in plan.inventory if param.name not in frozen)
        self._tell({"freeze/phase": progress.phase, "freeze/trained_parameters": trained})
        text = mask_as_text(plan.inventory, frozen)
        self.tracker.text("freeze/map", f"```\n{text}\n```", progress.step)
        # a policy may make hundreds of phases: their picture is drawn once, as the run ends
        if plan.policy is None:
            self._picture()

    def never_ran(self) -> None:
        """Tell which phases the run has not come to, if there are any."""
        names, progress = [phase.name for phase in self.timeline.following], self._progress
        if names:
            noun = "phase" if len(names) == 1 else f"{len(names)} phases,"
            why = "early stopping ended the run" if progress.stopped_early else "the run ended"
            self.message(
                f"{noun} {named(names)} never ran: {why} in phase {self.timeline.phase.name!r}, "
                f"at step {progress.step}"
            )

    def step_is_done(self, stats: StepStats, optimizer: Optimizer) -> None:
        """Tell the figures of a step, if it is one that is logged."""
        progress, trained = self._progress, self.timeline.phase.rates
        if not self.logs(progress.step):
            return
        figures = {"train/loss": float(stats.loss), "time/step_seconds": stats.seconds}
        if stats.grad_norm is not None:
            figures["train/grad_norm"] = float(stats.grad_norm)
        for name, norm in stats.loss_norms.items():
            figures[f"train/grad_norm/{name}"] = float(norm)
        for group, slot in zip(self.groups, optimizer.param_groups, strict=True):
            if group.is_trained(trained):
                figures[f"train/lr/{group.name}"] = float(slot["lr"])
        figures["memory/peak_gib"] = peak_memory_gib(self.device)
        self._tell(figures)

    def evaluated(self, split: str, figures: Mapping[str, float]) -> None:
        """Tell the figures of an evaluation; the progress keeps the latest ones."""
        progress = self._progress
        tagged = {f"{split}/{name}": value for name, value in figures.items()}
        # A metric that is not defined this time must not keep its figure of last time.
        for tag in [tag for tag in progress.metrics if tag.partition("/")[0] == split]:
            if tag not in tagged:
                del progress.metrics[tag]
        progress.metrics |= tagged
        self._tell(tagged)

    @property
    def _progress(self) -> Progress:
        return self.timeline.progress

    def _tell(self, figures: Mapping[str, float]) -> None:
        progress, phase = self._progress, self.timeline.phase.name
        epoch = self.timeline.epochs.count(progress.step)
        self.tracker.scalars(progress.step, {"epoch": epoch, "phase": phase, **figures})
        if progress.lines is not None:
            progress.lines += 1

    def _picture(self) -> None:
        progress, timeline = self._progress, self.timeline
        shown = FreezeMap(
            rows=states_over_phases(timeline.plan.inventory, timeline.begun),
            phases=timeline.names,
            began=[0, *progress.transitions],
            total_steps=timeline.total_steps,
            now=progress.step,
        )
        self.tracker.image("freeze/map", draw_freeze_map(shown), progress.step)
