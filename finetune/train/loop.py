"""The training loop: phases outside, steps inside, collaborators called by name in between."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from finetune.activations.cache import ActivationCache
from finetune.data.batches import Batch, Samples
from finetune.data.loading.skipped import note_on_skipped
from finetune.distributed import RankLostError, naming_faults
from finetune.errors import DataError, NonFiniteError, is_out_of_memory, named
from finetune.freezing.apply import take_on
from finetune.freezing.plan import Plan
from finetune.optim.groups import drop_state, reset_state
from finetune.runs.folder import RunFolder
from finetune.runs.progress import Progress
from finetune.train.average import Average
from finetune.train.chosen_threshold import chosen_in_words
from finetune.train.ending import EndOfRun
from finetune.train.evaluator import Evaluator
from finetune.train.exact_kernels import telling_inexact
from finetune.train.fitted_on_validation import fit_on_validation, lacks_temperature, take_fitted
from finetune.train.recovery import Recovery
from finetune.train.saver import Saver
from finetune.train.sharing import Sharing
from finetune.train.shown.reporting import Reporter, StepStats, Waited
from finetune.train.stepper import Stepper
from finetune.train.stopping import StopRequest
from finetune.train.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a run."""

    train: Samples
    validation: Samples | None
    test: Samples | None

    @property
    def all(self) -> list[Samples]:
        """The splits that there are."""
        return [each for each in (self.train, self.validation, self.test) if each is not None]

    def close(self) -> None:
        """End the processes that make batches."""
        for samples in self.all:
            samples.close()


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One run: the model and the collaborators that train it, all built by the caller."""

    model: nn.Module
    timeline: Timeline
    splits: Splits
    cache: ActivationCache
    average: Average
    stepper: Stepper
    evaluator: Evaluator
    saver: Saver
    recovery: Recovery
    reporter: Reporter
    folder: RunFolder
    sharing: Sharing
    ending: EndOfRun
    step: Callable[[Sequence[Batch]], StepStats]
    """Makes one optimizer step: the stepper alone, or together with other processes."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of all parameters that ever train."""
        return self.stepper.optimizer

    @property
    def plan(self) -> Plan:
        """The phases, or the policy that makes them."""
        return self.timeline.plan

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.timeline.progress

    def fit(self, *, quiet: bool = False) -> Progress:
        """Train from the present step to the end of the last phase.

        Afterwards `model` holds the weights of the best checkpoint where one is chosen by a
        validation metric, and the last weights otherwise: averages of them with `train.average`.

        Args:
            quiet: Whether to write nothing on standard error. Else it gets what the command shows.

        Raises:
            FrozenWeightError: a frozen tensor has changed. No checkpoint is saved afterwards.
            NonFiniteError: loss or gradient is infinite or NaN, and the config says to stop.
            StoppedError: a signal came. A checkpoint holds the last step.
        """
        telling = self.reporter.telling
        # Only the first of several processes speaks.
        was_quiet, quiet = quiet, quiet or not self.sharing.link.ranks.is_first
        if not quiet:
            telling.speak(self.plan)
        with self.sharing.lines.told_on_failure(quiet=was_quiet), naming_faults():
            self._run()
        if not quiet:
            origins, settings = self.saver.prover.origins(self.timeline), self.timeline.settings
            figures, run = self.saver.figures(), self.folder.path
            telling.end(
                self.progress,
                figures,
                origins,
                run,
                best=settings.checkpoint.best,
                is_averaged=settings.average is not None,
                threshold=chosen_in_words(self.evaluator.task),
            )
        return self.progress

    def train_step(self, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step over a window, given as its micro-batches.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN. Nothing was updated.
        """
        stats = self.step(window)
        self.average.update()
        return stats

    def evaluate(self, samples: Samples) -> dict[str, float]:
        """Return the mean loss and every metric over `samples`, in evaluation mode."""
        return self.evaluator.figures(samples)

    def _run(self) -> None:
        """Train, evaluate and write the summary; do nothing if the run is done already."""
        is_over = self.timeline.run_is_over
        # A run that was killed after its last step lacks the summary: test and summary follow now.
        metrics = self.folder.metrics_of_end(self.progress) if is_over else None
        task, step = self.evaluator.task, self.progress.step_in_use
        # One that is asked for after the end is fitted now, and the summary written anew.
        metrics = None if lacks_temperature(task, self.folder, step) else metrics
        # Of several processes the first one decides: another may read what it has not written yet.
        if self.sharing.link.first_says(claim=metrics is not None):
            self.reporter.message(
                f"{self.folder.path}: already done; --fresh begins anew, in Python fresh=True"
            )
            self.progress.metrics = metrics or {}  # which callers of `fit` read
            # `fit` leaves the best weights in the model, also when there is nothing to train.
            self.saver.take_best(self.cache)
            self.reporter.messages(take_fitted(task, self.folder, step))
            return
        with ExitStack() as open_parts:
            # torchrun ends all processes as soon as one of them has failed or was stopped.
            open_parts.push(self.sharing.wait_for_others)
            # Closed in reverse order. Signals are caught before the first byte is written, and the
            # lock of the folder is taken before the checkpoints are touched.
            open_parts.enter_context(self.sharing.stop.listening())
            open_parts.enter_context(self.folder.held())
            open_parts.enter_context(self.saver.checkpoints.in_use(self.reporter.message))
            open_parts.enter_context(self.reporter.running())
            # Not while trackers are closed: they may wait for a server longer than a step may take.
            open_parts.enter_context(self.stepper.clock.watchdog.watching())
            open_parts.enter_context(telling_inexact(self.reporter.message))
            # Before the trackers are closed, which pictures go to.
            open_parts.enter_context(closing(self.evaluator.looking))
            open_parts.enter_context(closing(self.cache))
            open_parts.callback(self.splits.close)
            open_parts.enter_context(self.ending.told())
            self._train()
            self._finish()

    def _train(self) -> None:
        """Train the phases that are left; on a request to stop, save and raise it again."""
        self.recovery.begin()
        if self.timeline.run_is_over and self.cache.is_boundary_needed:
            # only the test samples are left: they run as after the last step
            take_on(self.model, self.timeline.phase.frozen, self.timeline.phase.modules)
            self.cache.open(epochs=0)
        try:
            while not self.timeline.run_is_over:
                self._enter_phase()
                if self._take_steps():
                    self._leave_phase()
                    self.sharing.stop.answer()
        except StopRequest:
            # The signal came during an evaluation. This step is saved without it, and the resumed
            # run evaluates first.
            if self.progress.owes_evaluation:
                self.saver.save()
            raise
        except (DataError, RankLostError) as error:
            self.saver.save_before(error)
            raise

    def _enter_phase(self) -> None:
        """Set mask, modes and optimizer state, take the fingerprints, open the activation cache."""
        progress, timeline, phase = self.progress, self.timeline, self.timeline.phase
        # Before the mask changes: stored rows belong to the frozen prefix of the phase before.
        self.cache.leave()
        take_on(self.model, phase.frozen, phase.modules)
        # Not after a resume inside the phase: the loaded optimizer state is that of the phase.
        if progress.step == progress.phase_began:
            drop_state(self.optimizer, set(self.plan.ever_trained) - timeline.can_change)
            reset_state(self.optimizer, timeline.loses_state)
        # Here, not when the phase before ends: its last checkpoint holds what it has evaluated.
        self.average.begin_phase(phase.rates)
        # All later phases are reported when the phase before them ends.
        if progress.step == 0:
            self.reporter.phase_begins()
        # After `take_on`: the guard reads the modes of the modules.
        self.stepper.guard.begin_phase()
        for line in self.sharing.begin_phase(self.stepper.guard.buffers):
            self.reporter.message_once(line)
        self.saver.alike.check(progress)
        self.reporter.messages(self.sharing.lines.exchange())
        # With the new mask, and before the first step: the proof covers every step of the phase.
        with self.stepper.clock.timed("proof"):
            self.saver.prover.begin_phase(timeline)
        # Last: it runs the network, with the mask and the modes of the phase.
        with self.stepper.clock.timed("probe"):
            left_steps = timeline.span.ends - progress.step
            self.cache.open(left_steps / timeline.steps_per_epoch, timeline.thaws_ahead())

    def _take_steps(self) -> bool:
        """Take the remaining steps of the phase; return False after going back to a checkpoint."""
        if self.progress.owes_evaluation:
            self._settle()
        for window in self._windows():
            try:
                stats = None if self.recovery.is_left_out else self.train_step(window)
            except NonFiniteError as error:
                if self.recovery.goes_back(error):
                    return False
                stats = None
            # torch tells that memory is short by this error too.
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                samples = sum(map(len, window))
                self.recovery.halve_passes(self.sharing.largest_pass(samples))
                # `_windows` yields the same window again, in smaller passes.
                continue
            if stats is None:
                # A window that is left out counts as a step, so that later steps keep their
                # windows.
                self.progress.step += 1
            self._after_step(stats)
        return True

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the windows that are left of the phase, each as its micro-batches."""
        timeline = self.timeline
        while not timeline.phase_is_over:
            size = timeline.pass_size
            # All that is left of the epoch at once: processes that make batches work ahead.
            cuts = [self.sharing.own_cuts(window, size) for window in timeline.windows()]
            fetches = self.cache.now.fetches(
                self.splits.train, [cut for window in cuts for cut in window], epoch=timeline.epoch
            )
            batches = self.sharing.fetched(fetches)
            for window in cuts:
                began = time.perf_counter()
                batch = [next(batches).to(self.stepper.precision.device) for _ in window]
                self.stepper.clock.data_s = time.perf_counter() - began
                yield batch
                self.reporter.skips(self.splits.train)
                if timeline.phase_is_over:
                    return
                if size != timeline.pass_size:
                    # Out of memory: the same window is fetched again, in smaller passes.
                    break

    def _after_step(self, stats: StepStats | None) -> None:
        """Log a step, None if its window was left out; then evaluate and save where it is due."""
        if stats is not None:
            self.progress.add_seconds("training", stats.seconds)
            waited = Waited(self.stepper.clock.data_s, self.cache.statistics)
            self.reporter.step_is_done(stats, self.optimizer, waited)
        self.timeline.observe(is_evaluation=False)
        # Noted before the evaluation: a run that is stopped in it evaluates after the resume.
        self.progress.owes_evaluation = self.timeline.evaluation_is_due
        self._settle()

    def _settle(self) -> None:
        """Evaluate and save where it is due; the end of a phase is saved by `_leave_phase`."""
        is_new_best = False
        if self.progress.owes_evaluation:
            is_new_best = self.evaluator.validate(self.splits.validation)
            self.progress.owes_evaluation = False
            self.reporter.messages(self.sharing.lines.exchange())
        # There a checkpoint may have to wait for the best weights to be restored.
        if self.timeline.phase_is_over:
            return
        is_asked = self.sharing.stop.requested is not None
        # A new best at once: after the next step these weights are nowhere.
        if is_new_best or is_asked or self.timeline.checkpoint_is_due:
            self.saver.save()
        if is_asked:
            raise StopRequest

    def _leave_phase(self) -> None:
        """Prove, restore the best weights if the phase asks for it, go to the next phase, save.

        The checkpoint is saved after restoring, so that a resumed run has the weights that the next
        phase begins with. Exception: the present weights are among the best of the run, and the
        phase restores others. Then the checkpoint of this step must hold the present weights. It is
        saved first, and a run that resumes from it leaves the phase once more.
        """
        timeline, progress = self.timeline, self.progress
        # Before anything is restored: the proof is of the weights that the steps have left.
        if self.plan.verify in ("phase", "checkpoint") or timeline.run_is_over:
            self.saver.prove()
        best = progress.phase_best.step if timeline.phase.restores_best else None
        goes_back = best not in (None, progress.step)
        is_saved = timeline.phase_end_is_saved or self.sharing.stop.requested is not None
        is_saved_first = goes_back and progress.is_ranked()
        if is_saved_first:
            self.saver.save()
        self.saver.prover.end_phase(progress)
        if goes_back and best is not None:
            self.saver.restore(best)
        elif best is not None:
            # The best weights are the present averages, as `restore` takes those of a checkpoint.
            self.average.take()
        if not timeline.run_is_over:
            timeline.next_phase()
            self.reporter.phase_begins()
        if is_saved and not is_saved_first:
            self.saver.save()

    def _finish(self) -> None:
        """Load the best weights if the config chooses them, run the test, write the summary."""
        with self.stepper.clock.timed("proof"):
            # Before going back: the best weights may be older than what was trained last.
            never_moved = self.saver.prover.never_moved(self.timeline)
        if never_moved:
            count = f"{len(never_moved)} trained tensors never moved"
            self.reporter.message(f"{count} in the whole run: {named(never_moved)}")
        self.reporter.never_ran()
        self.saver.take_best(self.cache)
        # With the weights in use, and before the test, which uses it.
        self.reporter.messages(fit_on_validation(self.evaluator, self.splits.validation))
        if self.splits.test is not None:
            self.evaluator.report("test", self.splits.test)
        self.evaluator.draw_last(self.splits.validation)
        for note in map(note_on_skipped, self.splits.all):
            if note is not None:
                self.reporter.message(note)
        self.reporter.messages(self.sharing.lines.exchange())
        self.ending.sum_up("done", never_moved)
