"""Where a run stands. With the config and the weights, all that resuming needs."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from finetune.errors import CheckpointError

_LATER = {"owes_evaluation", "left_out", "micro_batch", "lines"}
"""Fields that the first checkpoints of format version 1 lack."""


@dataclass(slots=True)
class Progress:
    """Position of a run, in optimizer steps. Epoch and place in it follow from the step."""

    step: int = 0
    """Optimizer steps done."""
    phase: int = 0
    """Number of the phase that the next step belongs to."""
    phase_began: int = 0
    """Step at which that phase began."""
    transitions: list[int] = field(default_factory=list)
    """Steps at which phases have ended, in order."""
    plateau_best: float | None = None
    """Best value in this phase of the metric whose plateau ends it."""
    plateau_stale: int = 0
    """Evaluations in a row in which it has not improved."""
    plateau_reached: bool = False
    """Whether the plateau has come."""
    phase_best: float | None = None
    """Best value in this phase of the metric by which it finds its best weights."""
    phase_best_step: int | None = None
    """Step at which it was reached."""
    best: float | None = None
    """Best value so far of the metric by which checkpoints are chosen."""
    best_step: int | None = None
    """Step at which it was reached."""
    stale: int = 0
    """Evaluations in a row in which the metric of early stopping has not improved."""
    watched: float | None = None
    """Best value so far of the metric of early stopping."""
    stopped_early: bool = False
    """Whether early stopping has ended the run."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest figure of every metric of an evaluation."""
    proofs: list[dict[str, Any]] = field(default_factory=list)
    """Proofs of the phases that are over."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the frozen tensors at the beginning of the present phase."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent so far, by activity."""
    owes_evaluation: bool = False
    """Whether the evaluation due at this step is still to come: a stop has broken it off."""
    left_out: list[int] = field(default_factory=list)
    """Steps, counted from 0, whose windows made no update: loss or gradient was not finite."""
    micro_batch: int | None = None
    """Samples of one pass, where memory did not hold as many as the config says."""
    lines: int | None = 0
    """Lines that `metrics.jsonl` has by now; None in checkpoints that did not count them."""

    def next_phase(self) -> None:
        """Stand at the beginning of the phase after this one."""
        self.transitions.append(self.step)
        self.phase, self.phase_began = self.phase + 1, self.step
        self.plateau_best, self.plateau_stale, self.plateau_reached = None, 0, False
        self.phase_best, self.phase_best_step = None, None

    def add_seconds(self, activity: str, seconds: float) -> None:
        """Count time spent."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `progress.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild the progress that `to_json` wrote, now or in an earlier release.

        Raises:
            CheckpointError: a field is missing or unknown.
        """
        names = {item.name for item in fields(cls)}
        if not names - _LATER <= set(values) <= names:
            raise CheckpointError(f"progress has other fields than {sorted(names)}")
        return cls(**{"lines": None} | values)


def lower_is_better(metric: str) -> bool:
    """Tell the direction of a metric from its name: losses and errors fall, all else rises."""
    return metric.rpartition("/")[2] in {"loss", "mse", "rmse", "mae"}


def improves(value: float, best: float | None, metric: str, min_delta: float = 0.0) -> bool:
    """Tell whether `value` is better than `best` by more than `min_delta`. NaN never is."""
    if best is None:
        return value == value
    return value < best - min_delta if lower_is_better(metric) else value > best + min_delta
