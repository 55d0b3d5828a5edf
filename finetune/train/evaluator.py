"""Evaluate the splits of a run while it trains, and apply the rules that watch metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from finetune.activations.cache import ActivationCache
from finetune.activations.forward import Forward, UncachedForward
from finetune.data.batches import Batch, Samples
from finetune.optim.schedules import fallen
from finetune.tasks.task import Task
from finetune.train.average import Average
from finetune.train.clock import Clock
from finetune.train.evaluation import evaluate
from finetune.train.looks.looking import Looking
from finetune.train.precision import Precision
from finetune.train.ranks.shared_passes import SharedPasses
from finetune.train.rules import Rules, judge
from finetune.train.shown.reporting import Reporter
from finetune.train.stopping import Stop
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates splits, reports their figures, and applies the rules of the present phase."""

    cache: ActivationCache
    average: Average
    task: Task
    precision: Precision
    batch_size: int
    timeline: Timeline
    reporter: Reporter
    clock: Clock
    stop: Stop
    looking: Looking
    shared: SharedPasses | None = None

    def figures(
        self,
        samples: Samples,
        left_out: dict[str, str] | None = None,
        collect: Callable[[Any, Batch], None] | None = None,
        network: Forward | None = None,
    ) -> dict[str, float]:
        """Return the mean loss and every metric over one split, in evaluation mode.

        They are of the averaged weights, if there are any.

        Args:
            samples: The split.
            left_out: Receives, by metric, why it is not defined on these samples.
            collect: Receives outputs and batch of each forward pass.
            network: Runs the network; the activation cache does so if it is left out.
        """
        with self.clock.timed("evaluation"), self.average.in_use():
            return evaluate(
                network or self.cache.now,
                self.task,
                samples,
                precision=self.precision,
                batch_size=self.batch_size,
                between=self.between_passes,
                left_out=left_out,
                collect=collect,
                shared=self.shared,
            )

    def report(
        self, split: str, samples: Samples, collect: Callable[[Any, Batch], None] | None = None
    ) -> None:
        """Evaluate a split and report its figures, and once why a metric has none.

        Args:
            split: Its name.
            samples: Its samples.
            collect: Receives outputs and batch of each forward pass.
        """
        left_out: dict[str, str] = {}
        self.reporter.evaluated(split, self.figures(samples, left_out, collect))
        self.reporter.skips(samples)
        for name, reason in left_out.items():
            tag = f"{split}/{name}"
            rules = self._rules().watching(tag)
            not_counted = f"; not counted by {' and '.join(rules)}" if rules else ""
            self.reporter.message_once(f"{tag} is left out: {reason}{not_counted}")

    def validate(self, samples: Samples | None) -> bool:
        """Evaluate the validation samples; return whether these weights are worth a checkpoint."""
        if samples is None:
            return False
        seen = self.looking.begin()
        collect = None if seen is None else partial(self.looking.collect, seen)
        self.report("validation", samples, collect)
        timeline = self.timeline
        num_kept = timeline.settings.checkpoint.keep_best or 1
        rules, falls = self._rules(), timeline.progress.rate_falls
        is_kept = judge(rules, timeline.progress, num_kept=num_kept)
        if timeline.progress.rate_falls > falls:
            self._tell_fall(rules)
        with self.clock.timed("pictures"):
            self.looking.evaluated(seen, timeline.progress)
        timeline.observe(is_evaluation=True)
        return is_kept

    def draw_last(self, samples: Samples | None) -> None:
        """Draw what the weights in use get wrong of the validation samples, and what moved."""

        def evaluate(collect: Callable[[Any, Batch], None]) -> None:
            if samples is not None:
                self.figures(samples, None, collect)

        def evaluate_uncached(collect: Callable[[Any, Batch], None]) -> None:
            if samples is not None:
                # Not the compiled network either: it may not call hooks that are added now.
                model = self.cache.now.model
                self.figures(samples, None, collect, UncachedForward(model, model))

        if self.shared is not None and samples is not None:
            # Only rank 0 draws, and decides whether all evaluate once more for it.
            link, is_wanted = self.shared.link, self.looking.lacks(self.timeline.progress)
            if link.first_says(claim=is_wanted) and not link.ranks.is_first:
                self.figures(samples)
        with self.clock.timed("pictures"):
            self.looking.end(self.timeline.progress, evaluate, evaluate_uncached)

    def _rules(self) -> Rules:
        """Return the rules of the present phase: its plateau and best weights are its own."""
        timeline = self.timeline
        schedule, directions = timeline.rates.schedule, self.task.directions
        return Rules.of(timeline.phase, timeline.settings, schedule, directions)

    def _tell_fall(self, rules: Rules) -> None:
        """Report that the rate has fallen on a plateau, unless it was at its floor already."""
        schedule, falls = self.timeline.rates.schedule, self.timeline.progress.rate_falls
        before, now = fallen(schedule, falls - 1), fallen(schedule, falls)
        if rules.rate is not None and now < before:
            self.reporter.message(
                f"step {self.timeline.progress.step}: {rules.rate.metric} has not improved in "
                f"{rules.rate.patience} evaluations, the rate falls to {now:.3g} of its peak"
            )

    def between_passes(self) -> None:
        """Show the watchdog that the run is alive; raise `StopRequest` if a signal has come."""
        self.clock.watchdog.beat()
        self.stop.answer()
