"""The values that a sweep may try: as distributions of Optuna, as a grid, as overrides `-o`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from finetune.config.messages import shown
from finetune.config.run import RunConfig
from finetune.config.secrets import escaped, masked, references
from finetune.config.sweep_keys import SearchValues
from finetune.errors import ConfigError, FinetuneError, Origin, Problem
from finetune.sweep.asked import AskedSweep
from finetune.sweep.judging import judged_by, part_without_samples

_MOST_ENUMERATED = 1_000_000
"""Most combinations that are written out."""

Param = None | bool | int | float | str
"""A value of a trial as Optuna keeps it; lists and mappings are kept as JSON."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Keys of the config and the values that each may have."""

    search: Mapping[str, SearchValues]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each key."""
        return {key: _distribution(values) for key, values in self.search.items()}

    @property
    def size(self) -> float:
        """Number of combinations; infinity if a range holds any number."""
        return math.prod(_count(one) for one in self.distributions.values())

    def combinations(self) -> Iterator[dict[str, Param]]:
        """Yield every combination in order, the last key changing fastest.

        Of a space that is not finite, or of more than a million combinations, none.
        """
        if self.size > _MOST_ENUMERATED:
            return
        for values in product(*(_listed(one) for one in self.distributions.values())):
            yield dict(zip(self.search, values, strict=True))

    def overrides(self, params: Mapping[str, Param]) -> list[str]:
        """Return the values of a trial as overrides `key=value`."""
        return [f"{key}={self._text(key, value)}" for key, value in params.items()]

    def _text(self, key: str, value: Param) -> str:
        """Return a value as YAML: JSON is YAML, and what is kept as JSON already stays as it is."""
        choices = self.search.get(key)
        is_json = isinstance(choices, tuple) and any(
            _kept(one) == value and not isinstance(one, Param) for one in choices
        )
        return escaped(str(value) if is_json else json.dumps(value, ensure_ascii=False))

    def probes(self) -> Iterator[tuple[str, Param, list[str]]]:
        """Yield each end of a range and each choice: key, value, and overrides with it.

        The other keys have their first value, since some values only go together with others.
        """
        ends = {key: _ends(one) for key, one in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        for key, values in ends.items():
            for value in values:
                yield key, value, self.overrides(first | {key: value})


def check_space(asked: AskedSweep) -> list[str]:
    """Check every end and choice of the search by the loader; return its notes, each once.

    Raises:
        ConfigError: the config is refused with one of the values, or a key is not to be varied.
        FinetuneError: trials would have no samples for the figure that they are judged by.
    """
    config, space = asked.config, SearchSpace(asked.sweep.search)
    problems = {str(one): one for one in _refused_keys(asked)}
    refused = {one.origin.key for one in problems.values()}
    notes: dict[str, None] = {}
    loaded: list[tuple[RunConfig, list[str]]] = []
    for key, value, changes in space.probes():
        if _place(config, key).key in refused:
            continue
        try:
            loaded.append((asked.config_with(changes), changes))
            notes |= dict.fromkeys(loaded[-1][0].notes)
        except ConfigError as error:
            for one in error.problems:
                told = _about(config, key, value, one)
                # A key that does not exist is told once, not for each of its values.
                problems.setdefault(f"{told.origin} {one.message}", told)
    if problems:
        raise ConfigError(list(problems.values()))
    _refuse_unjudged(asked, loaded)
    return list(notes)


def _refuse_unjudged(asked: AskedSweep, loaded: Sequence[tuple[RunConfig, list[str]]]) -> None:
    """Raise if trials would have no samples for the figure that they are judged by.

    Args:
        asked: The config with its search.
        loaded: Configs of some trials, each with its overrides.

    Raises:
        FinetuneError: they have none.
    """
    judged = judged_by(asked.config, asked.sweep)
    parts = [part_without_samples(config, judged) for config, _ in loaded]
    part = next(filter(None, parts), None)
    if part is None:
        return
    _, changes = loaded[parts.index(part)]
    when = "" if all(parts) else f" with {' '.join(changes)}"
    # `data.split` divides `data.source` alone.
    is_split = asked.config.data.train is None
    raise FinetuneError(
        f"trials are judged by {judged.metric}, and there are no {part} samples{when}",
        hint=f"data.split: {{{part}: 0.1}} sets some aside"
        if is_split
        else f"data.{part}: {{...}} is their source, beside data.train",
        key=("sweep", "metric"),
    )


def _refused_keys(asked: AskedSweep) -> Iterator[Problem]:
    """Yield a problem for each key or value that a sweep must not vary."""
    config = asked.config
    for key, values in asked.sweep.search.items():
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        if first in ("sweep", "name", "folder", "extends"):
            yield Problem(_place(config, key), f"{first!r} cannot be varied")
        elif masked("text", last) != "text":
            yield Problem(_place(config, key), "a secret cannot be varied: the study keeps values")
        yield from _overruled(asked, key)
        kept = [_kept(one) for one in values] if isinstance(values, tuple) else []
        # For Python, and for Optuna, 1 and true are one value.
        twice = [one for at, one in enumerate(kept) if one in kept[:at]]
        if twice:
            yield Problem(_place(config, key), f"{shown(twice[0])} is listed twice")
    size = SearchSpace(asked.sweep.search).size
    if asked.sweep.sampler == "grid" and size > _MOST_ENUMERATED:
        yield Problem(
            config.locate(("sweep", "sampler")) or Origin(config.path, None, "sweep.sampler"),
            f"a grid holds at most {_MOST_ENUMERATED:,} combinations, got {size:,}",
            "random and tpe take any number",
        )
    written = config.written.entry("sweep") if config.written is not None else None
    for reference in references(written) if written is not None else ():
        key = ".".join(str(step) for step in ("sweep", *reference.key))
        yield Problem(
            Origin(config.path, None, key),
            f"a value cannot come from the environment, got {reference.raw!r}",
            "the study keeps values where others can read them",
        )


def _overruled(asked: AskedSweep, key: str) -> Iterator[Problem]:
    """Yield a problem for each value that would take no effect beside a searched key."""
    above = next((one for one in asked.sweep.search if key.startswith(f"{one}.")), None)
    if above is not None:
        yield Problem(
            _place(asked.config, key),
            f"lies below {above!r}, which is searched, too: one would overrule the other",
            f"list whole values of {above!r}",
        )
    for override in asked.overrides:
        name = override.partition("=")[0].strip()
        if name == key or name.startswith(f"{key}."):
            message = f"takes no effect: the sweep searches {key!r}"
            yield Problem(Origin(None, None, name), message, "leave it out, or do not search it")


def _about(config: RunConfig, key: str, value: Param, problem: Problem) -> Problem:
    """Return a problem with a value of the search, told at the place where the file lists it."""
    where = problem.origin.key
    told = f"{where}: {problem.message}" if where not in ("", key) else problem.message
    return Problem(_place(config, key), f"with {shown(value)}: {told}", problem.hint)


def _place(config: RunConfig, key: str) -> Origin:
    """Return where the values of a key are written."""
    return config.locate(("sweep", "search", key)) or Origin(None, None, f"sweep.search.{key}")


def _distribution(values: SearchValues) -> BaseDistribution:
    """Return the values of a key as a distribution."""
    if isinstance(values, tuple):
        return CategoricalDistribution([_kept(one) for one in values])
    if values.is_whole:
        low, high, step = int(values.low), int(values.high), int(values.step or 1)
        return IntDistribution(low, high, log=values.log, step=step)
    step_ = None if values.step is None else float(values.step)
    return FloatDistribution(float(values.low), float(values.high), log=values.log, step=step_)


def _kept(value: Any) -> Param:
    """Return a choice as Optuna keeps it: lists and mappings as JSON."""
    return value if isinstance(value, Param) else json.dumps(value, ensure_ascii=False)


def _count(distribution: BaseDistribution) -> float:
    """Return how many values a distribution has."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
        case FloatDistribution(low=low, high=high, step=float(step)):
            return round((high - low) / step) + 1
    return math.inf


def _listed(distribution: BaseDistribution) -> Sequence[Param]:
    """Return all values of a finite distribution."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices
        case IntDistribution(low=low, high=high, step=step):
            return range(low, high + 1, step)
        case FloatDistribution(low=lowest, step=float(step)):
            # 0.1 + 2 * 0.1 would lie beyond 0.3; Optuna cuts what it draws in the same way.
            count, top = round((distribution.high - lowest) / step) + 1, distribution.high
            return [min(top, lowest + number * step) for number in range(count)]
    return ()


def _ends(distribution: BaseDistribution) -> Sequence[Param]:
    """Return the two ends of a range, or all choices."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices
        case IntDistribution(low=low, high=high) | FloatDistribution(low=low, high=high):
            return low, high
    return ()
