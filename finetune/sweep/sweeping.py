"""Run a sweep: take trials, start their processes, follow them, until all have ended."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import TrialState

from finetune.config.sweep_keys import SweepConfig
from finetune.errors import FinetuneError, StoppedError
from finetune.runs.run_record import RunRecord, read_run
from finetune.sweep.asked import AskedSweep
from finetune.sweep.claims import REASON, RUN, ClaimedTrial, Claims, ended
from finetune.sweep.judging import SweepFigure
from finetune.sweep.owners import SEEN_EVERY_S
from finetune.sweep.studies import told_of_storage
from finetune.sweep.trial_process import Ending, TrialTraining
from finetune.terminal import figure
from finetune.train.stopping import Stop

_POLL_S = 0.3
"""Seconds between two looks at the processes."""
_ASK_S = 2.0
"""Seconds between two looks into the study for a trial, when there was none."""
_MOST_DEATHS = 3
"""How often the process of a trial may be killed before the trial counts as failed."""
_MOST_FAILURES = 3
"""How many trials may fail in a row, without one that ends well, before the sweep ends."""

Say = Callable[[str], None]
"""Receives a line for people."""


@dataclass(slots=True)
class Sweeping:
    """Runs the trials of a study in this process's share.

    Args:
        asked: The config and its overrides.
        claims: Takes trials.
        judged: The figure they are judged by.
        home: Folder of the sweep, below which each trial has its run folder.
        environment: Environment variables of the processes.
        jobs: Number of trials that run at the same time.
        say: Receives lines for people.
    """

    asked: AskedSweep
    claims: Claims
    judged: SweepFigure
    home: Path
    environment: dict[str, str]
    jobs: int
    say: Say
    _running: list[TrialTraining] = field(default_factory=list)
    _failures: list[str] = field(default_factory=list)
    _seen_at: float = 0.0

    def run(self) -> None:
        """Run trials until all of the sweep have ended, also those of other processes.

        Raises:
            StoppedError: a signal came; trials were stopped and go on with the same command.
            FinetuneError: the first trials all failed, or the database refuses.
        """
        stop = Stop()
        try:
            with stop.listening():
                while self._look(stop):
                    time.sleep(_POLL_S)
        finally:
            # After an error: what still trains is asked to save, and is taken up again later.
            self._stop_all()
        if stop.requested is not None:
            number = ended(self.claims.study.get_trials()).total()
            raise StoppedError(
                f"stopped by {stop.requested.name}; {number} trials have ended",
                hint="the same command goes on",
                where=str(self.home),
            )

    def _look(self, stop: Stop) -> bool:
        """Take trials, follow those that run; return whether the sweep goes on."""
        if stop.requested is not None:
            return False
        self._take_trials()
        if not self._running:
            return self._waits_for_others(stop)
        is_due = time.monotonic() - self._seen_at > SEEN_EVERY_S
        for process in list(self._running):
            self._follow(process, is_due=is_due)
        if is_due:
            self._seen_at = time.monotonic()
        return True

    def _take_trials(self) -> None:
        """Take trials until as many run as may run at the same time."""
        while len(self._running) < self.jobs:
            claim = self.claims.take()
            if claim is None:
                return
            folder = self.home / f"trial-{claim.number:05d}"
            # The name alone: another machine that shares the study has its folder elsewhere.
            claim.record.set_user_attr(RUN, folder.name)
            overrides = self.claims.proposals.space.overrides(claim.params)
            arguments = self.asked.arguments_with(overrides)
            self._running.append(TrialTraining(claim, folder, arguments, self.environment))
            # A trial that was given back keeps its number, and with it its folder and checkpoints.
            verb = "goes on" if folder.exists() else "begins"
            self.say(f"trial {claim.number} {verb}: {' '.join(overrides)}")

    def _waits_for_others(self, stop: Stop) -> bool:
        """Wait a while for trials of other processes; return False if there are none."""
        others = self.claims.num_with_others()
        if others == 0:
            return False
        noun = "1 trial" if others == 1 else f"{others} trials"
        self.say(f"waiting for {noun} of other processes")
        until = time.monotonic() + _ASK_S
        while time.monotonic() < until and stop.requested is None:
            time.sleep(_POLL_S)
        return True

    def _follow(self, process: TrialTraining, *, is_due: bool) -> None:
        """Look at one process: pass on its evaluations, end it early, or note how it ended."""
        claim = process.claim
        with told_of_storage():
            # Two processes would else write to one run, each in the belief that the other is gone.
            if is_due and not claim.sign_of_life():
                self.say(f"trial {claim.number} was taken over by another process")
                process.kill()
                self._running.remove(process)
                return
            ending = process.ending()
            self._report(process, may_prune=ending is None)
            if ending is not None:
                self._running.remove(process)
                self._close(process, ending)

    def _report(self, process: TrialTraining, *, may_prune: bool) -> None:
        """Report new evaluations to the study; stop a trial that the pruner gives up."""
        figures = process.figures(self.judged.metric)
        # From where it was: the file holds all evaluations, and a pruner must not see one twice.
        for number, value in enumerate(figures[process.num_reported :], process.num_reported + 1):
            process.claim.record.report(value, number)
            process.num_reported = number
            if may_prune and not process.is_pruned and process.claim.record.should_prune():
                process.is_pruned = True
                process.stop()

    def _close(self, process: TrialTraining, ending: Ending) -> None:
        """Tell the study how a trial has ended."""
        claim = process.claim
        match ending:
            case Ending.DONE:
                self._complete(claim, read_run(process.folder))
            case Ending.STOPPED if process.is_pruned:
                self.claims.study.tell(claim.record, state=TrialState.PRUNED)
                last = process.num_reported
                self.say(f"trial {claim.number} pruned after evaluation {last}: others do better")
            case Ending.STOPPED | Ending.KILLED if claim.deaths + 1 < _MOST_DEATHS:
                self.claims.give_back(claim, died=True)
                self.say(f"trial {claim.number}: its process was ended from outside; it goes on")
            case Ending.STOPPED | Ending.KILLED:
                self._fail(claim, f"its process was ended from outside {_MOST_DEATHS} times")
            case Ending.REFUSED:
                self._fail(claim, process.last_words() or "it gave no reason")

    def _complete(self, claim: ClaimedTrial, run: RunRecord) -> None:
        """Tell the study the figure of a trial that is done."""
        metric = self.judged.metric
        value = run.metrics.get(metric)
        if value is None:
            known = ", ".join(sorted(run.metrics)) or "none"
            self._fail(claim, f"the run has no figure {metric!r}; it has {known}")
            return
        falls = run.lower_is_better(metric)
        if falls is not None and falls != self.judged.falls:
            raise FinetuneError(
                f"the run says that {'lower' if falls else 'higher'} figures of {metric!r} are "
                f"better, the sweep is to {self.judged.direction} it",
                key=("sweep", "direction"),
            )
        self.claims.study.tell(claim.record, value)
        # In a row: a sweep may meet some values with which training cannot work.
        self._failures.clear()
        best = self.claims.study.best_trial
        self.say(
            f"trial {claim.number}: {metric} {figure(value)}, {run.seconds:.1f} s; best so far "
            f"{figure(best.value or 0.0)} of trial {best.user_attrs['number']}"
        )

    def _fail(self, claim: ClaimedTrial, reason: str) -> None:
        """Tell the study that a trial failed; end the sweep if the first ones all did."""
        claim.record.set_user_attr(REASON, reason)
        self.claims.study.tell(claim.record, state=TrialState.FAIL)
        self.say(f"trial {claim.number} failed: {reason}")
        self._failures.append(reason)
        if len(self._failures) >= _MOST_FAILURES:
            raise FinetuneError(
                f"{_MOST_FAILURES} trials in a row failed, the last one: {reason}",
                where=str(self.home),
                hint=f"{self.home}/trial-{claim.number:05d}.log has all that it said",
            )

    def _stop_all(self) -> None:
        """Stop all processes and give their trials back, also after an error with one of them."""
        for process in self._running:
            process.stop()
        errors = []
        for process in self._running:
            try:
                self._stopped(process)
            except FinetuneError as error:
                errors.append(error)
        self._running.clear()
        if errors:
            raise errors[0]

    def _stopped(self, process: TrialTraining) -> None:
        """Wait for a process that was asked to stop, and tell the study."""
        if process.end() is not Ending.DONE:
            self.claims.give_back(process.claim, died=False)
            return
        with told_of_storage():  # it had done its last step when it was asked
            self._report(process, may_prune=False)
            self._close(process, Ending.DONE)


def pruner_of(sweep: SweepConfig) -> BasePruner:
    """Return Optuna's pruner; its steps are the numbers of evaluations, from 1."""
    match sweep.pruner:
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3)
        case "none":
            return NopPruner()
