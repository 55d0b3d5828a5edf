"""One optimizer step: rates, zero, forward, backward, clip, step, in that order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.activations.cache import ActivationCache
from finetune.data.batches import Batch, Samples, seed_for
from finetune.data.loading.mixing import Mixing
from finetune.data.loading.named_rows import name_row
from finetune.errors import ModelError
from finetune.freezing.rows import RowSlices
from finetune.optim.groups import set_rates
from finetune.tasks.task import Task, add_up
from finetune.tasks.weighted_loss import WeightedLoss
from finetune.tasks.window_mean import LossMean, WindowMean
from finetune.train.clock import Clock
from finetune.train.gradients import clip_gradients, norm_of
from finetune.train.guard import StepGuard
from finetune.train.precision import Precision
from finetune.train.shown.reporting import Reporter, StepStats
from finetune.train.step_figures import StepMeter
from finetune.train.timeline import Timeline
from finetune.which_rank import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepper:
    """Makes optimizer steps; nothing else does.

    What is off is a collaborator that does nothing; only what is measured in few steps is None in
    the others.
    """

    model: nn.Module
    optimizer: Optimizer
    task: Task
    samples: Samples
    """The training samples."""
    timeline: Timeline
    cache: ActivationCache
    precision: Precision
    rows: RowSlices
    guard: StepGuard
    clock: Clock
    reporter: Reporter
    max_grad_norm: float | None
    mixing: Mixing
    meter: StepMeter
    """Measures the steps that are logged."""
    ranks: Ranks
    """Which process of the run this is."""
    new_mean: Callable[[Sequence[WeightedLoss], Sequence[Batch]], LossMean] = WindowMean
    """Makes what divides the losses of a window; with several processes it adds up gradients."""
    norm_of: Callable[[Sequence[nn.Parameter]], Tensor] = norm_of
    """Returns the norm over all gradients, those of other processes included."""

    def step(self, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step over a window, given as its micro-batches.

        The loss is the mean over all samples (or tokens, or pixels) of the window. Dividing by
        their number in the window, rather than averaging the means of its micro-batches, keeps the
        gradient the same however the window is cut, also when the last micro-batch is short.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN. Nothing was updated.
        """
        progress = self.timeline.progress
        began = time.perf_counter()
        step_number, loss = progress.step + 1, torch.zeros((), device=self.precision.device)
        measuring = None
        if self.reporter.logs(step_number):
            measuring = self.meter.begin(tells_blocks=self.reporter.tells_blocks(step_number))
        self.clock.watchdog.beat()
        # Before the forward pass, which may move buffers such as running statistics.
        self.guard.begin_step()
        self._seed(0)
        # Anew for each step: rates are a function of it, whatever the optimizer holds.
        set_rates(self.optimizer, self.timeline.rates_now())
        self._zero_gradients()
        window = self.mixing.mixed(window, progress.step)
        mean = self.new_mean(self.task.losses, window)
        for number, batch in enumerate(window):
            if number:
                self._seed(number)
            with self.precision.autocast():
                outputs = self._outputs(batch)
                shares = mean.shares(self.task.parts(outputs, batch))
                micro_loss = add_up(shares)
            if measuring is not None:
                measuring.forward_is_done(shares, outputs, batch)
            # For each micro-batch, so that only one graph is in memory; gradients add up.
            self.precision.backward(micro_loss)
            if measuring is not None:
                measuring.backward_is_done()
            loss += micro_loss.detach()
        loss = mean.correct(loss, self.model.parameters)
        # autograd fills the gradient of a cut parameter; the optimizer holds its row slices.
        self.rows.hand_over_gradients(self.timeline.phase.frozen)
        # Before clipping: with an infinite norm it would turn the infinite gradient into NaN and
        # all others into zero.
        self.guard.refuse_non_finite(progress.step, loss, self.optimizer)
        grad_norm = self._clip_gradients(is_logged=measuring is not None)
        # After clipping: the update is made of clipped gradients.
        if measuring is not None:
            measuring.before_update()
        self.precision.step(self.optimizer)
        if measuring is not None:
            measuring.update_is_done()
        # Not before the update: whatever raises above leaves the progress at the last whole step.
        progress.step += 1
        seconds = time.perf_counter() - began
        figures = None if measuring is None else measuring.result()
        return StepStats(loss, grad_norm, seconds, sum(map(len, window)), figures)

    def undo(self) -> None:
        """Restore the buffers that a failed step may have moved, and drop its gradients."""
        self.guard.undo_step(self.optimizer)

    def _outputs(self, batch: Batch) -> Any:
        """Run the network on a micro-batch; in errors about a sample, name its row."""
        # Not `rows_named`: to enter and leave a block costs more than all else here.
        try:
            return self.cache.now.forward(batch, self.samples)
        except ModelError as error:
            name_row(error, self.samples, batch)
            raise

    def _seed(self, number: int) -> None:
        """Seed the generators for a micro-batch, given by its number on this rank.

        Each step has its own seed, so that a resumed run draws what it would have drawn; each
        micro-batch of it too, so that it draws the same on whichever rank it is.
        """
        place = self.ranks.rank + number * self.ranks.world
        seed = self.timeline.seed
        # The first one without its number: a step of one pass keeps the draws of earlier releases.
        own = (place,) if place else ()
        self.precision.seed(seed_for("step", seed, self.timeline.progress.step, *own))

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        # The optimizer holds slices in place of cut parameters, so it does not clear these.
        self.rows.clear_gradients()

    def _clip_gradients(self, *, is_logged: bool) -> Tensor | None:
        """Clip if the config says so; else measure the norm only for a step that is logged."""
        if self.max_grad_norm is None and not is_logged:
            return None
        # The limit and the logged norm are of true gradients, without the loss scale of float16.
        self.precision.unscale(self.optimizer)
        return clip_gradients(self.optimizer, self.max_grad_norm, self.norm_of)
