"""Take the next trial of a study, so that no two processes take the same and none is lost.

A trial whose process was killed is enqueued again under its own number before it is closed. So at
any moment, also between the two, exactly one open record or a whole one stands for it; its run
folder goes on where it stopped.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from finetune.sweep.owners import Owner, SignsOfLife
from finetune.sweep.proposals import Proposals, fixed
from finetune.sweep.search_space import Param
from finetune.sweep.studies import Storage, told_of_storage

NUMBER, GOES_ON = "number", "goes_on"
"""Attributes of a record: the trial's number in the sweep, and the record that it goes on from."""
_OWNER, _SEEN, _DEATHS = "owner", "seen", "deaths"
REASON, RUN = "reason", "run"
"""Attributes of a record: why it failed, and the folder of its run."""


@dataclass(frozen=True, slots=True)
class ClaimedTrial:
    """A trial that this process runs."""

    number: int
    """Number in the sweep, from 0; it stays when the trial is taken up again."""
    record: Trial
    """Its record in the study."""
    params: dict[str, Param]
    deaths: int
    """How often the process that trains it was killed."""

    def sign_of_life(self) -> bool:
        """Leave a sign of life; return False if another process has taken the trial over."""
        try:
            self.record.set_user_attr(_SEEN, time.time())
        except UpdateFinishedTrialError:
            return False
        return True


@dataclass(slots=True)
class Claims:
    """Takes trials of a study, and gives them back.

    Args:
        storage: Where the study is kept.
        study: The study.
        proposals: Chooses values.
        wanted: Number of trials of the whole sweep; None to try every combination.
    """

    storage: Storage
    study: optuna.Study
    proposals: Proposals
    wanted: int | None
    owner: Owner = field(default_factory=Owner.this_process)
    _signs: SignsOfLife = field(default_factory=SignsOfLife)

    def take(self) -> ClaimedTrial | None:
        """Return the next trial to run, or None if there is none for now."""
        with self.storage.locked(self.study.study_name), told_of_storage():
            # First, so that a trial of a killed process goes on before a new one begins.
            self._take_back_from_the_dead()
            trials = self.study.get_trials()
            waits = any(one.state == TrialState.WAITING for one in trials)
            if not waits and not self._enqueue(latest(trials)):
                return None
            return self._claimed(trials)

    def give_back(self, claim: ClaimedTrial, *, died: bool) -> None:
        """Let some process take a trial up again.

        Args:
            claim: The trial, whose own process has ended.
            died: Whether that process was killed, which counts.
        """
        with self.storage.locked(self.study.study_name), told_of_storage():
            record = next(one for one in self.study.trials if one.number == claim.record.number)
            if record.state == TrialState.RUNNING:
                self._enqueue_again(record, claim.deaths + died)

    def num_with_others(self) -> int:
        """Return how many trials run in other processes or wait."""
        with told_of_storage():
            trials = self.study.get_trials(deepcopy=False)
        return sum(
            one.state in (TrialState.RUNNING, TrialState.WAITING)
            and one.user_attrs.get(_OWNER) != self.owner.as_attributes()
            for one in trials
        )

    def _enqueue(self, history: Sequence[FrozenTrial]) -> bool:
        """Enqueue a new trial; return False if the sweep is to have no more."""
        number = len(history)
        if self.wanted is not None and number >= self.wanted:
            return False
        params = self.proposals.propose(number, history)
        # every combination has been tried
        if params is None:
            return False
        self.study.enqueue_trial(params, {NUMBER: number, _DEATHS: 0})
        return True

    def _claimed(self, trials: Sequence[FrozenTrial]) -> ClaimedTrial:
        """Return the trial that has waited longest, as one of this process."""
        record = self.study.ask(self.proposals.space.distributions)
        attributes = record.user_attrs
        if NUMBER not in attributes:  # a person enqueued it, by optuna-dashboard for one
            attributes = {NUMBER: len(latest(trials)), _DEATHS: 0}
            for name, value in attributes.items():
                record.set_user_attr(name, value)
        record.set_user_attr(_OWNER, self.owner.as_attributes())
        return ClaimedTrial(attributes[NUMBER], record, dict(record.params), attributes[_DEATHS])

    def _take_back_from_the_dead(self) -> None:
        """Enqueue again each trial whose process is gone."""
        for record in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = Owner.of(record.user_attrs.get(_OWNER))
            # Without an owner: a process was killed while it held the lock, which is ours now.
            is_gone = True if owner is None else owner.is_gone()
            if is_gone is None:
                is_gone = self._signs.are_over(record.number, record.user_attrs.get(_SEEN))
            if is_gone:
                self._enqueue_again(record, record.user_attrs.get(_DEATHS, 0))

    def _enqueue_again(self, record: FrozenTrial, deaths: int) -> None:
        """Enqueue a trial under its own number, unless that is done; then close the old record."""
        trials = self.study.get_trials(deepcopy=False)
        # A process that was killed in the middle of this has enqueued it already.
        if not any(one.user_attrs.get(GOES_ON) == record.number for one in trials):
            attributes: dict[str, Any] = {_DEATHS: deaths, GOES_ON: record.number}
            if NUMBER in record.user_attrs:
                attributes[NUMBER] = record.user_attrs[NUMBER]
            # Before the old record is closed: a process that is killed in between leaves both, and
            # the next one only closes.
            self.study.enqueue_trial(fixed(record) or record.params, attributes)
        self.study.tell(record.number, state=TrialState.FAIL)


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the last record of each trial of a sweep, by its number in the sweep."""
    last = {one.user_attrs[NUMBER]: one for one in trials if NUMBER in one.user_attrs}
    return [last[number] for number in sorted(last)]


def ended(trials: Sequence[FrozenTrial]) -> Counter[TrialState]:
    """Return how many trials have ended in each state."""
    return Counter(one.state for one in latest(trials) if one.state.is_finished())
