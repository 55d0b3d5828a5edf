"""The position of a run; with config and weights it is all that resuming needs."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from finetune.errors import CheckpointError, named
from finetune.runs.watch import Watch


@dataclass(slots=True)
class Progress:
    """Position of a run, in optimizer steps. Epoch and place in the epoch follow from the step."""

    step: int = 0
    """Optimizer steps done."""
    phase: int = 0
    """Index of the phase that the next step belongs to."""
    phase_began: int = 0
    """Step at which that phase began."""
    transitions: list[int] = field(default_factory=list)
    """Steps at which phases ended, in order."""
    best: Watch = field(default_factory=Watch)
    """Watch over the metric by which checkpoints are chosen."""
    ranking: list[tuple[int, float]] = field(default_factory=list)
    """Step and value of the best evaluations so far, best first; their checkpoints are kept."""
    stopping: Watch = field(default_factory=Watch)
    """Watch of early stopping, over this phase unless it counts across phases."""
    plateau: Watch = field(default_factory=Watch)
    """Watch over the metric whose plateau ends this phase."""
    phase_best: Watch = field(default_factory=Watch)
    """Watch over the metric by which this phase finds its best weights."""
    rate: Watch = field(default_factory=Watch)
    """Watch over the metric whose plateau lowers the rate, since its schedule began."""
    rate_falls: int = 0
    """How often the rate has fallen on such a plateau since then."""
    masks: list[list[int]] = field(default_factory=list)
    """With a policy: the blocks that train in each phase that has begun, by depth; else empty."""
    next_mask: list[int] | None = None
    """The blocks of the next phase, where the policy has decided on it: the present one is over."""
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each policy remembers, by its name."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest value of each evaluation metric."""
    proofs: list[dict[str, Any]] = field(default_factory=list)
    """Proofs of the phases that have ended."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the frozen tensors at the start of the present phase."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent so far, by activity."""
    owes_evaluation: bool = False
    """Whether the evaluation due at this step must still be done: a stop interrupted it."""
    left_out: list[int] = field(default_factory=list)
    """Steps, counted from 0, that made no update because loss or gradient was not finite."""
    micro_batch: int | None = None
    """Samples per pass, if memory forced fewer than the config says; else None."""
    data: str | None = None
    """Digest of the training samples in their order; None in checkpoints that did not keep it."""
    validation: str | None = None
    """Digest of the validation samples that its figures are of; None if it was not kept."""
    code: dict[str, str] = field(default_factory=dict)
    """Hash of the code of each trusted package, by name, as the last steps were trained."""
    epoch_steps: int | None = None
    """Steps per epoch of these samples."""
    past_epochs: list[tuple[int, int]] = field(default_factory=list)
    """For each earlier data of the run: the step at which it ended, and its steps per epoch."""
    lines: int | None = 0
    """Lines in `metrics.jsonl` so far; None in checkpoints that did not count them."""

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping has ended the run."""
        return self.stopping.is_over

    @property
    def proof_intact(self) -> bool:
        """Tell whether no proof so far found a changed tensor."""
        return all(proof["intact"] for proof in self.proofs)

    @property
    def step_in_use(self) -> int:
        """The step whose weights are tested and used: the best one, or the present one."""
        return self.step if self.best.step is None else self.best.step

    def lower_rate(self) -> None:
        """Count a fall of the rate, and begin to count evaluations without improvement anew."""
        self.rate_falls += 1
        self.rate.begin_again()

    def restart_rate(self) -> None:
        """Begin the schedule of a plateau anew."""
        self.rate.restart()
        self.rate_falls = 0

    def next_phase(self, *, keeps_patience: bool) -> None:
        """Move to the start of the next phase; mutates phase, transitions and per-phase values.

        Args:
            keeps_patience: Whether early stopping counts on across phases.
        """
        if not keeps_patience:
            self.stopping.restart()
        self.transitions.append(self.step)
        self.phase, self.phase_began = self.phase + 1, self.step
        self.plateau.restart()
        self.phase_best.restart()
        if self.next_mask is not None:
            self.masks.append(self.next_mask)
            self.next_mask = None

    def memory_of(self, policy: str) -> dict[str, Any]:
        """Return what a policy remembers; changes of it are saved with the run."""
        return self.memory.setdefault(policy, {})

    def rank(self, value: float, num_kept: int, *, falls: bool) -> bool:
        """Enter the value of this step's evaluation; return whether it is among the best kept.

        Of two equal values the earlier is better. NaN never is among them.
        """
        # NaN is the only value that differs from itself.
        if value != value:
            return False
        sign = 1 if falls else -1
        # After a stop this step may be evaluated again; it must not count twice.
        others = [entry for entry in self.ranking if entry[0] != self.step]
        ranked = sorted(
            [*others, (self.step, value)], key=lambda entry: (sign * entry[1], entry[0])
        )
        self.ranking = ranked[:num_kept]
        return self.is_ranked()

    def is_ranked(self) -> bool:
        """Tell whether this step's checkpoint is kept as one of the best."""
        return any(step == self.step for step, _ in self.ranking)

    def wanted_steps(self) -> set[int]:
        """Return the steps whose checkpoints are kept whatever their age."""
        steps = {self.best.step, self.phase_best.step, *(step for step, _ in self.ranking)}
        return {step for step in steps if step is not None}

    def forget_best(self, is_there: Callable[[int], bool]) -> None:
        """Remove best steps whose checkpoints are gone; the next best one becomes the best."""
        self.ranking = [entry for entry in self.ranking if is_there(entry[0])]
        if self.best.step is not None and not is_there(self.best.step):
            self.best.step, self.best.value = self.ranking[0] if self.ranking else (None, None)
        if self.phase_best.step is not None and not is_there(self.phase_best.step):
            self.phase_best.restart()

    def forget_figures(self) -> bool:
        """Begin all watches anew and drop all figures; return whether there were any."""
        had_any = bool(self.metrics or self.ranking)
        for watch in (self.best, self.stopping, self.plateau, self.phase_best, self.rate):
            had_any |= watch.value is not None
            watch.restart()
        self.ranking, self.metrics = [], {}
        return had_any

    def add_seconds(self, activity: str, seconds: float) -> None:
        """Add time spent to an activity's total."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    def to_json(self) -> dict[str, Any]:
        """Return this progress as plain data for `progress.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the progress that `to_json` of this or an earlier release wrote.

        A field that the earlier release did not have gets its default.

        Raises:
            CheckpointError: a field is unknown or of another type.
        """
        values = _of_this_release(values)
        _refuse_unknown(cls, values)
        watches = {name: Watch(**values[name]) for name in _WATCHES if name in values}
        # `lines` is 0 in a new run; in an old checkpoint that lacks it, the number is unknown.
        progress = cls(**{"lines": None} | values | watches)
        best = progress.best.step, progress.best.value
        known = values.get("ranking", [best] if None not in best else [])
        progress.ranking = [(step, float(value)) for step, value in known]
        progress.past_epochs = [(end, length) for end, length in progress.past_epochs]
        return progress


_WATCHES = ("best", "stopping", "plateau", "phase_best", "rate")
_EARLIER = {
    "best": {"value": "best", "step": "best_step"},
    "stopping": {"value": "watched", "stale": "stale", "is_over": "stopped_early"},
    "plateau": {
        "value": "plateau_best",
        "stale": "plateau_stale",
        "is_over": "plateau_reached",
    },
    "phase_best": {"value": "phase_best", "step": "phase_best_step"},
}
"""Fields that earlier releases had in place of each watch."""


def _of_this_release(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain data with its watches together, where an earlier release kept them apart.

    Two names are the same in both: they hold a number or None there, and an object here.
    """
    if any(isinstance(values.get(name), dict) for name in _WATCHES):
        return values
    old = {field for fields in _EARLIER.values() for field in fields.values()}
    together = {
        name: {part: values[field] for part, field in fields.items() if field in values}
        for name, fields in _EARLIER.items()
    }
    return {name: value for name, value in values.items() if name not in old} | together


def _refuse_unknown(kind: type, values: dict[str, Any], place: str = "") -> None:
    """Raise where plain data has a field that a record lacks, or has with another type."""
    kinds = get_type_hints(kind)
    for name, value in values.items():
        known = kinds.get(name)
        if known is Watch and isinstance(value, dict):
            _refuse_unknown(Watch, value, f"{name}.")
        elif known is None or not _is_a(value, known):
            message = f"progress.json: {named([place + name])} is unknown or of another type"
            raise CheckpointError(message)


def _is_a(value: Any, kind: Any) -> bool:
    """Tell whether plain data fits a field's type, down to the innermost value."""
    if isinstance(kind, UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer is float:
        return _is_number(value)
    if outer is tuple:
        # JSON has lists only
        return _is_a(value, list) and len(value) == len(inner) and all(map(_is_a, value, inner))
    # `isinstance` would accept True as an int.
    if type(value) is not outer:
        return outer is object or kind is Any
    if isinstance(value, dict) and inner:
        return all(_is_a(item, inner[1]) for item in value.values())
    return not inner or all(_is_a(item, inner[0]) for item in value)


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that a float can hold; JSON does not part int from float."""
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float
