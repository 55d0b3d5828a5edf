"""Choose the values of the next trial; no combination is proposed twice."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from finetune.sweep.judging import SweepFigure
from finetune.sweep.search_space import Param, SearchSpace

_DRAWS = 10
"""Draws for a combination that is new, before the finite space is gone through in order."""

Combination = frozenset[tuple[str, Param]]


@dataclass(frozen=True, slots=True)
class Proposals:
    """Chooses values by a sampler, whose draws depend on the seed, the number and the history.

    Args:
        space: The values to choose from.
        judged: The figure, of which a sampler that learns needs the direction.
        sampler: How they are chosen.
        seed: Seed of the config.
    """

    space: SearchSpace
    judged: SweepFigure
    sampler: Literal["tpe", "random", "grid"]
    seed: int

    def propose(self, number: int, history: Sequence[FrozenTrial]) -> dict[str, Param] | None:
        """Return the values of a trial; None when every combination has been tried.

        Args:
            number: Number of the trial in the sweep.
            history: One record for each trial so far, also of those that run.
        """
        tried = {combination(one.params or fixed(one)) for one in history}
        if self.sampler == "grid":
            return self._first_new(tried)
        # Drawn in a copy: a draw that is not new must leave no trace in the study.
        copy = optuna.create_study(direction=self.judged.direction)
        copy.add_trials([_as_lesson(one) for one in history if one.params])
        for draw in range(_DRAWS):
            if len(tried) >= self.space.size:
                return None
            copy.sampler = self._sampler(number, draw)
            params = dict(copy.ask(self.space.distributions).params)
            if combination(params) not in tried:
                return params
        return self._first_new(tried)

    def _first_new(self, tried: Collection[Combination]) -> dict[str, Param] | None:
        """Return the first combination in order that has not been tried."""
        new = (one for one in self.space.combinations() if combination(one) not in tried)
        return next(islice(new, 1), None)

    def _sampler(self, number: int, draw: int) -> BaseSampler:
        """Return a sampler with a seed of its own: equal seeds would draw the same values."""
        digest = blake2b(f"{self.seed} {number} {draw}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest)
        return RandomSampler(seed) if self.sampler == "random" else TPESampler(seed=seed)


def combination(params: dict[str, Param]) -> Combination:
    """Return values in a form that can be compared, whatever their order."""
    return frozenset(params.items())


def fixed(trial: FrozenTrial) -> dict[str, Param]:
    """Return the values that a trial was enqueued with."""
    given: dict[str, Param] = trial.system_attrs.get("fixed_params", {})
    return given


def _as_lesson(trial: FrozenTrial) -> FrozenTrial:
    """Return a record to learn from: a trial that failed counts as worse than all others.

    Optuna takes a pruned trial without a figure for that, and passes over failed ones: it would
    come back to a rate at which training diverges.
    """
    if trial.state != TrialState.FAIL:
        return trial
    return optuna.trial.create_trial(
        state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions
    )
