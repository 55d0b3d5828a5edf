"""The visible loop: phases outside, steps inside, everything else called by name in between."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.activations.cache import ActivationCache
from finetune.config.train import TrainConfig
from finetune.data.batches import Batch, Samples, seed_for
from finetune.data.named_rows import rows_named
from finetune.errors import (
    CheckpointError,
    FinetuneError,
    NonFiniteError,
    StoppedError,
    is_out_of_memory,
    named,
)
from finetune.freezing.apply import take_on
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.rows import RowSlices
from finetune.optim.groups import drop_state, reset_state, set_rates
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints, validated_at
from finetune.runs.progress import Progress
from finetune.tasks.tasks import Task, add_up
from finetune.tasks.whole_windows import memory_for_whole_windows
from finetune.train.checkpoint import load_checkpoint, load_weights_delta, save_checkpoint
from finetune.train.delta import Base
from finetune.train.evaluation import evaluate
from finetune.train.gradients import LossNorms, clip_gradients
from finetune.train.guard import StepGuard
from finetune.train.precision import Precision
from finetune.train.proving import Prover
from finetune.train.reporting import Reporter, StepStats
from finetune.train.rules import Rules, judge
from finetune.train.stopping import Stop, StopRequest
from finetune.train.summary import summarise
from finetune.train.telling import Telling
from finetune.train.timeline import Timeline
from finetune.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a run."""

    train: Samples
    validation: Samples | None
    test: Samples | None


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One run: the model and all it needs to be trained, handed in ready."""

    model: nn.Module
    optimizer: Optimizer
    timeline: Timeline
    task: Task
    splits: Splits
    rows: RowSlices
    precision: Precision
    reporter: Reporter
    folder: RunFolder
    checkpoints: Checkpoints
    base: Base
    settings: TrainConfig
    seed: int
    evaluation_batch: int
    log_gradient_norms: bool
    cache: ActivationCache
    prover: Prover
    guard: StepGuard
    watchdog: Watchdog
    stop: Stop
    telling: Telling

    @property
    def plan(self) -> Plan:
        """The phases, or the policy that makes them."""
        return self.timeline.plan

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.timeline.progress

    def fit(self, *, quiet: bool = False) -> Progress:
        """Train to the end of the last phase, from wherever `progress` stands.

        Afterwards `model` holds the weights of the best checkpoint where one is chosen by a
        validation metric, and the last weights otherwise.

        Args:
            quiet: Say nothing on standard error, where what the command says is said else.

        Raises:
            FrozenWeightError: a frozen tensor has changed. Nothing is saved after the last good
                checkpoint.
            NonFiniteError: loss or gradient is infinite or NaN, and the config says to stop.
            StoppedError: a signal asked for it. All is saved.
        """
        if not quiet:
            self.telling.speak(self.plan)
        self._run()
        if not quiet:
            origins = self.prover.origins(self.timeline)
            best = self.settings.checkpoint.best
            figures = self._figures()
            self.telling.end(self.progress, figures, origins, self.folder.path, best=best)
        return self.progress

    def _run(self) -> None:
        """Train, evaluate and sum up; do nothing where that is done already."""
        metrics = (
            self.folder.metrics_of_end(self.progress.step) if self.timeline.run_is_over else None
        )
        if metrics is not None:
            self.reporter.message(f"{self.folder.path}: already done; --fresh begins anew")
            self.progress.metrics = metrics
            self._take_best()
            return
        with ExitStack() as open_parts:
            open_parts.enter_context(self.stop.listening())
            open_parts.enter_context(self.folder.held())
            open_parts.enter_context(self.checkpoints.in_use(self.reporter.message))
            open_parts.enter_context(self.watchdog.watching())
            open_parts.enter_context(self.reporter.running())
            open_parts.enter_context(closing(self.cache))
            try:
                self._train()
                self._finish()
            except StopRequest:
                raise self._stopped() from None

    def take_up(self, checkpoints: Checkpoints) -> bool:
        """Stand where the newest checkpoint that can be gone on from stands; False without one.

        A line tells of each that is passed over.

        Raises:
            CheckpointError: some are whole, and none of them fits the network.
        """
        newest, damaged = checkpoints.start()
        if newest is None:
            checkpoints.refuse_misfits()
        for line in damaged:
            self.reporter.message(line)
        if newest is None:
            return False
        progress, scaler = load_checkpoint(newest, self.model, self.optimizer, self.base)
        self.precision.load_state(scaler)
        if (change := self.timeline.go_on_from(progress)) is not None:
            self.reporter.message(change)
        return True

    def train_step(self, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step over a window, given as its micro-batches.

        The loss is the mean over all samples of the window. Dividing by the samples of the window,
        rather than averaging the means of its micro-batches, keeps the gradient the same however
        the window is cut, also when the last micro-batch is short.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN. Nothing was updated.
        """
        began, samples = time.perf_counter(), sum(len(batch) for batch in window)
        loss, loss_norms = torch.zeros((), device=self.precision.device), self._loss_norms()
        self.watchdog.beat()
        self.guard.begin_step()
        self.precision.seed(seed_for("step", self.seed, self.progress.step))
        set_rates(self.optimizer, self.timeline.rates_now())
        self._zero_gradients()
        for batch in window:
            with self.precision.autocast():
                with rows_named(self.splits.train, batch):
                    outputs = self.cache.now.forward(batch, self.splits.train)
                parts = self.task.parts(outputs, batch)
                micro_loss = add_up(parts).sum() / samples
            loss_norms.add(parts, samples)
            self.precision.backward(micro_loss)
            loss += micro_loss.detach()
        self.rows.hand_over_gradients(self._phase.frozen)
        self.guard.refuse_non_finite(self.progress.step, loss, self.optimizer)
        grad_norm = self._clip_gradients()
        self.precision.step(self.optimizer)
        self.progress.step += 1
        return StepStats(loss, grad_norm, loss_norms.result(), time.perf_counter() - began)

    def evaluate(
        self, samples: Samples, left_out: dict[str, str] | None = None
    ) -> dict[str, float]:
        """Return the mean loss and every metric over `samples`, in evaluation mode.

        Args:
            samples: One split.
            left_out: Receives, by name, why a metric is not defined on them.
        """
        with self._timed("evaluation"):
            return evaluate(
                self.cache.now,
                self.task,
                samples,
                precision=self.precision,
                batch_size=self.evaluation_batch,
                between=self._between_passes,
                left_out=left_out,
            )

    def _train(self) -> None:
        """Go through the phases that are left; on a request to stop, save and hand it on."""
        if self.settings.nan == "rollback" and not self.checkpoints.all():
            self._save()
        if self.timeline.run_is_over and self.cache.is_boundary_needed:
            # only the test samples are left: they run as after the last step
            take_on(self.model, self._phase.frozen, self._phase.modules)
            self.cache.open(visits=0)
        try:
            while not self.timeline.run_is_over:
                self._enter_phase()
                if self._take_steps():
                    self._leave_phase()
                    self.stop.answer()
        except StopRequest:
            if self.progress.owes_evaluation:
                self._save()
            raise

    def _take_steps(self) -> bool:
        """Take the steps that are left of the phase; return False after going back in time."""
        if self.progress.owes_evaluation:
            self._settle()
        for window in self._windows():
            try:
                stats = None if self._is_left_out() else self.train_step(window)
            except NonFiniteError as error:
                if self._goes_back(error):
                    return False
                stats = None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_passes(sum(map(len, window)))
                continue
            if stats is None:
                self.progress.step += 1
            self._after_step(stats)
        return True

    @property
    def _phase(self) -> Phase:
        return self.timeline.phase

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the windows that are left of the phase, each as its micro-batches."""
        while not self.timeline.phase_is_over:
            size = self.timeline.pass_size
            cuts = [window.split(size) for window in self.timeline.windows()]
            batches = self.cache.now.fetches(
                self.splits.train,
                [cut for window in cuts for cut in window],
                epoch=self.timeline.epoch,
            )
            for window in cuts:
                yield [next(batches).to(self.precision.device) for _ in window]
                if self.timeline.phase_is_over:
                    return
                if size != self.timeline.pass_size:
                    break

    def _enter_phase(self) -> None:
        """Set mask, modes and optimizer state, and take the fingerprints for the proof."""
        progress = self.progress
        self.cache.leave()
        take_on(self.model, self._phase.frozen, self._phase.modules)
        if progress.step == progress.phase_began:
            drop_state(self.optimizer, set(self.plan.ever_trained) - self.timeline.can_change)
            reset_state(self.optimizer, self.timeline.loses_state)
        if progress.step == 0:
            self.reporter.phase_begins()
        self.guard.begin_phase()
        with self._timed("proof"):
            self.prover.begin_phase(self.timeline)
        with self._timed("probe"):
            left_steps = self.timeline.span.ends - progress.step
            visits = left_steps / self.timeline.steps_per_epoch
            self.cache.open(visits, self.timeline.thaws_ahead())

    def _leave_phase(self) -> None:
        """Take the proof, go back to the best weights if asked to, and save what holds."""
        if self.plan.verify in ("phase", "checkpoint") or self.timeline.run_is_over:
            self._prove()
        step, best = self.progress.step, self.progress.phase_best.step
        goes_back = self._phase.restores_best and best not in (None, step)
        # By another metric these weights may be the best of the run: then this step's checkpoint
        # is theirs, and a run that goes on from it leaves the phase once more.
        is_theirs = goes_back and self.progress.is_ranked()
        is_saved = self.timeline.phase_end_is_saved or self.stop.requested is not None
        if is_theirs:
            self._save()
        self.prover.end_phase(self.progress)
        if goes_back and best is not None:
            load_checkpoint(self.checkpoints.whole(best), self.model, self.optimizer, self.base)
        if not self.timeline.run_is_over:
            self.timeline.next_phase()
            self.reporter.phase_begins()
        if is_saved and not is_theirs:
            self._save()

    def _prove(self) -> None:
        with self._timed("proof"):
            self.prover.prove(self.timeline)

    def _after_step(self, stats: StepStats | None) -> None:
        """Log what a step tells; None where its window was left out. Then settle what is due."""
        if stats is not None:
            self.progress.add_seconds("training", stats.seconds)
            self.reporter.step_is_done(stats, self.optimizer)
        self.timeline.observe(is_evaluation=False)
        self.progress.owes_evaluation = self.timeline.evaluation_is_due
        self._settle()

    def _settle(self) -> None:
        """Evaluate and save where it is due. What ends a phase is saved after its proof."""
        is_new_best = False
        if self.progress.owes_evaluation:
            is_new_best = self._evaluate_and_judge()
            self.timeline.observe(is_evaluation=True)
            self.progress.owes_evaluation = False
        if self.timeline.phase_is_over:
            return
        is_asked = self.stop.requested is not None
        if is_new_best or is_asked or self.timeline.checkpoint_is_due:
            self._save()
        if is_asked:
            raise StopRequest

    def _evaluate_and_judge(self) -> bool:
        """Evaluate the validation samples; return whether these weights are to be kept."""
        if self.splits.validation is None:
            return False
        self._evaluate_split("validation", self.splits.validation)
        num_kept = self.settings.checkpoint.keep_best or 1
        return judge(self._rules(), self.progress, num_kept=num_kept)

    def _rules(self) -> Rules:
        return Rules.of(self._phase, self.settings, self.task.directions)

    def _evaluate_split(self, split: str, samples: Samples) -> None:
        """Evaluate a split and tell its figures; also, once, which metrics have none, and why."""
        left_out: dict[str, str] = {}
        self.reporter.evaluated(split, self.evaluate(samples, left_out))
        for name, reason in left_out.items():
            tag = f"{split}/{name}"
            rules = self._rules().watching(tag)
            not_counted = f"; not counted by {' and '.join(rules)}" if rules else ""
            self.reporter.message_once(f"{tag} is left out: {reason}{not_counted}")

    def _finish(self) -> None:
        """Take the best weights if they are wanted, evaluate the test samples, sum up."""
        with self._timed("proof"):
            # Before going back: the best weights may be older than what was trained last.
            never_moved = self.prover.never_moved(self.timeline)
        if never_moved:
            count = f"{len(never_moved)} trained tensors never moved"
            self.reporter.message(f"{count} in the whole run: {named(never_moved)}")
        self._tell_phases_that_never_ran()
        self._take_best()
        if self.splits.test is not None:
            self._evaluate_split("test", self.splits.test)
        self._sum_up("done", never_moved)

    def _tell_phases_that_never_ran(self) -> None:
        names, progress = self._never_ran(), self.progress
        if names:
            noun = "phase" if len(names) == 1 else f"{len(names)} phases,"
            why = "early stopping ended the run" if progress.stopped_early else "the run ended"
            self.reporter.message(
                f"{noun} {named(names)} never ran: {why} in phase {self._phase.name!r}, at step "
                f"{progress.step}"
            )

    def _never_ran(self) -> list[str]:
        return [phase.name for phase in self.timeline.following]

    def _take_best(self) -> None:
        """Go back to the best weights, if one was found to be best."""
        best = self.progress.best.step
        if best is None:
            return
        if best <= self.progress.phase_began:
            # what is frozen now had other values then: the store must not be given what comes of it
            self.cache.leave()
        load_weights_delta(self.checkpoints.whole(best), self.model, self.base)

    def _figures(self) -> dict[str, float]:
        """Return the figures of the weights in use: the last evaluation may be of later ones."""
        best = self.progress.best.step
        validated = {} if best is None else validated_at(self.checkpoints.whole(best))
        return self.progress.metrics | validated

    def _stopped(self) -> StoppedError:
        """Sum up a run that was asked to stop."""
        self._sum_up("stopped")
        assert self.stop.requested is not None
        return StoppedError(
            f"stopped by {self.stop.requested.name} after step {self.progress.step}",
            hint="the same command goes on from there",
            where=str(self.folder.path),
        )

    def _sum_up(self, status: str, never_moved: Sequence[str] | None = None) -> None:
        statistics = self.cache.statistics
        self.checkpoints.worker.wait()  # nothing is said before the last checkpoint is on disk
        self.folder.write_summary(
            summarise(
                self.progress,
                self.precision.device,
                statistics,
                status=status,
                metrics=self._figures() if status == "done" else self.progress.metrics,
                never_moved=never_moved,
                never_ran=self._never_ran(),
            )
        )

    def _is_left_out(self) -> bool:
        """Tell whether the next window was found bad before the run went back in time."""
        return self.progress.step in self.progress.left_out

    def _goes_back(self, error: NonFiniteError) -> bool:
        """Leave a window out, or go back to the last good checkpoint; return whether it did.

        Raises:
            NonFiniteError: the config says to stop, or too many windows are left out already.
        """
        progress, rule = self.progress, self.settings.nan
        self.guard.undo_step(self.optimizer)
        if rule == "stop":
            raise error
        left_out = [*progress.left_out, progress.step]
        if len(left_out) > self.settings.nan_limit:
            raise NonFiniteError(
                f"{error.message}; {self.settings.nan_limit} windows are left out already",
                hint=error.hint,
            ) from error
        if rule == "skip":
            progress.left_out = left_out
            self.reporter.message(f"{error.message}: its window is left out")
            return False
        if not self.take_up(self.checkpoints):
            raise CheckpointError(
                "no whole checkpoint to go back to", where=str(self.checkpoints.folder)
            ) from error
        self.progress.left_out = left_out
        self.reporter.message(f"{error.message}: back to step {self.progress.step}")
        self.reporter.begin()
        return True

    def _halve_passes(self, samples: int) -> None:
        """Answer a lack of memory: cut the same window, and all after it, into smaller passes.

        Raises:
            FinetuneError: a single sample is too much, or a loss needs whole windows.
        """
        self.guard.undo_step(self.optimizer)
        size = min(self.timeline.pass_size, samples)
        if self.task.whole_window_losses:
            raise memory_for_whole_windows(self.task, size)
        if size == 1:
            raise FinetuneError(
                "memory does not hold a single sample", key=("train", "micro_batch")
            )
        self.progress.micro_batch = size // 2
        self.reporter.message(
            f"out of memory with {size} samples in a pass: {size // 2} from now on"
        )

    def _between_passes(self) -> None:
        """Let a stop or a sign of life through while an evaluation runs."""
        self.watchdog.beat()
        self.stop.answer()

    def _save(self) -> None:
        if self.plan.verify == "checkpoint" and self.progress.fingerprints:
            self._prove()
        with self._timed("saving"):
            save_checkpoint(
                self.checkpoints,
                self.model,
                self.optimizer,
                self.progress,
                self.base,
                scaler=self.precision.state(),
            )

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.rows.clear_gradients()

    def _clip_gradients(self) -> Tensor | None:
        """Clip where the config says so; else measure the norm only where it will be logged."""
        limit = self.settings.max_grad_norm
        if limit is None and not self.reporter.logs(self.progress.step + 1):
            return None
        self.precision.unscale(self.optimizer)
        return clip_gradients(self.optimizer, limit)

    def _loss_norms(self) -> LossNorms:
        """Return what measures each loss's gradient in this step; it does nothing when off."""
        is_on = self.log_gradient_norms and self.reporter.logs(self.progress.step + 1)
        names = [loss.name for loss in self.task.losses]
        parameters = [p for p in self.model.parameters() if p.requires_grad] if is_on else []
        return LossNorms(names, parameters)

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        self.watchdog.beat()
        began = time.perf_counter()
        yield
        self.progress.add_seconds(activity, time.perf_counter() - began)
