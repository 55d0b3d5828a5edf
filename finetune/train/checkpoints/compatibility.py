"""Check that a whole checkpoint fits the run, before it is loaded.

A checkpoint may come from a stranger who made its digests fit. So each name, shape, type and
number in it is compared with plan, network and optimizer. None of them is changed.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, assert_never

from torch import Tensor, nn

from finetune.config.optim import PlateauSchedule
from finetune.config.triggers import AfterEpochs, AfterSteps, AtFraction, OnPlateau, Trigger
from finetune.errors import CheckpointError, named
from finetune.freezing.plan import Phase
from finetune.freezing.policies.policy import Policy
from finetune.runs.checkpoint_folder import read_document, read_progress
from finetune.runs.progress import Progress
from finetune.runs.watch import Watch
from finetune.train.checkpoints.checkpoint import read_state, read_unaveraged, read_weights
from finetune.train.checkpoints.delta import Base, fingerprint_with
from finetune.train.epochs import Epochs
from finetune.train.sizes import TensorSize
from finetune.train.timeline import Timeline

_AT_MOST = {"mu": 1.0, "mu_product": 1.0}
"""Upper bounds of scalar optimizer states. NAdam divides by `1 - mu_product`."""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Checks whether a run can resume from a checkpoint."""

    model: nn.Module
    base: Base
    timeline: Timeline
    """Timeline of the run that would resume."""
    expected: Mapping[str, Mapping[str, TensorSize]]
    """Sizes of the optimizer state, by parameter name and state name."""
    proven: Callable[[Phase], Sequence[str]]
    """Returns the tensors that the proof of a phase covers."""
    loss_scale: Mapping[str, float]
    """State of the loss scale at step 0; empty without one."""

    def misfit(self, path: Path) -> str | None:
        """Return why a checkpoint that is whole does not fit, or None if it fits."""
        try:
            progress, scale = read_progress(path), read_document(path)["scaler"]
            weights = read_weights(path, self.model, self.base)
            unaveraged = read_unaveraged(path, self.model, self.base)
            state = read_state(path)
        except CheckpointError as error:
            return error.message
        timeline = self.timeline.at(progress)
        # Only the first fault is asked for. So each check may rely on those before it, and within a
        # generator the code after a `yield` on what was just compared.
        faults = chain(
            _of_phases(timeline),
            _of_rules(timeline),
            self._of_proofs(timeline),
            _of_average(timeline, unaveraged),
            self._of_fingerprints(timeline, weights | unaveraged),
            _of_state(state, self.expected, progress.step),
            _of_loss_scale(scale, self.loss_scale),
        )
        return next(faults, None)

    def _of_proofs(self, timeline: Timeline) -> Iterator[str]:
        """Yield the faults of the proofs: phases not done, other tensors, other fingerprints."""
        verify = timeline.plan.verify
        phases = {phase.name: phase for phase in timeline.begun}
        if verify == "end":
            # One proof covers all phases then, under this name.
            phases = {"whole run": timeline.phase}
        # A parameter that never trains still has its first value, whatever the checkpoint claims.
        known = self.base.never_trained
        for proof in timeline.progress.proofs:
            phase = phases.get(proof["phase"])
            if verify == "off" or phase is None:
                yield f"it has a proof of {named([proof['phase']])}, which is no phase done"
                return
            digests = {name: before for name, (before, _) in proof["digests"].items()}
            wanted, is_short = set(self.proven(phase)), "digest_over_all" in proof
            # Only the proofs of a policy are shortened: they then tell how many tensors they cover.
            if is_short and (timeline.plan.policy is None or proof["tensors"] != len(wanted)):
                yield f"the proof of {named([proof['phase']])} names no tensors"
            if not is_short and digests.keys() != wanted:
                yield f"the proof of {named([proof['phase']])} covers other tensors than the plan"
            if wrong := sorted(n for n in digests.keys() & known.keys() if digests[n] != known[n]):
                yield f"the proof of {named([proof['phase']])} has another {named(wrong)}"

    def _of_fingerprints(self, timeline: Timeline, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield the faults of the fingerprints of the present phase."""
        wanted, progress = set(self.proven(timeline.phase)), timeline.progress
        found = progress.fingerprints
        began = 0 if timeline.plan.verify == "end" else progress.phase_began
        # Fingerprints are taken when a phase begins, and dropped when it is proven: at both steps a
        # checkpoint may lack them.
        is_between = progress.step == began or any(
            proof["last_step"] == progress.step for proof in progress.proofs
        )
        if not found and is_between:
            return
        if odd := sorted(wanted ^ found.keys()):
            yield f"it has fingerprints of other tensors than its phase freezes: {named(odd)}"
        for name, digest in found.items():
            if fingerprint_with(weights, name, self.model, self.base) != digest:
                yield f"{named([name])} is frozen, and not as it was when its phase began"


def _of_phases(timeline: Timeline) -> Iterator[str]:
    """Yield the faults of the phases that have begun: their number and their steps."""
    plan, progress = timeline.plan, timeline.progress
    if plan.policy is not None:
        yield from _of_policy(plan.policy, progress)
    elif progress.masks or progress.memory:
        yield "its phases were made by a policy, and the config has none"
    elif progress.phase >= len(plan.phases):
        yield f"phase {progress.phase} is none of the {len(plan.phases)} of the plan"
    # Other data may have another number of samples; `Timeline.go_on_from` handles that.
    if progress.data == timeline.data and progress.epoch_steps != timeline.steps_per_epoch:
        yield f"its epochs have {progress.epoch_steps} steps, not {timeline.steps_per_epoch}"
    ends = [0, *progress.transitions, progress.step]
    for number, (phase, (began, ended)) in enumerate(
        zip(timeline.begun, pairwise(ends), strict=True)
    ):
        lasts = _duration(phase.until, began, timeline.epochs)
        is_shorter_by_rule = number == progress.phase or isinstance(phase.until, OnPlateau)
        # The present phase is under way, and a plateau may end one early. None may last longer.
        is_wrong = lasts is not None and (
            ended - began > lasts or (ended - began < lasts and not is_shorter_by_rule)
        )
        if is_wrong:
            yield f"phase {number} lasts {lasts} steps, not from {began} to {ended}"


def _of_policy(policy: Policy, progress: Progress) -> Iterator[str]:
    """Yield the faults of a policy's masks, memory and steps."""
    if progress.memory.keys() != {policy.name}:
        yield f"it has the memory of {named([*progress.memory])}, not of {policy.name!r}"
        return
    # The next mask may be decided already while its phase has not begun.
    decided = [] if progress.next_mask is None else [progress.next_mask]
    masks = [tuple(mask) for mask in (*progress.masks, *decided)]
    if (fault := policy.misfit(masks, progress.memory[policy.name])) is not None:
        yield fault
    ends = [0, *progress.transitions, *([progress.step] if decided else [])]
    for number, (began, ended) in enumerate(pairwise(ends)):
        if policy.ends_by(began) not in (None, ended):
            yield f"phase {number} of {policy.name!r} cannot last from {began} to {ended}"
    latest = policy.ends_by(progress.phase_began)
    if latest is not None and progress.step > latest:
        yield f"the phase since step {progress.phase_began} cannot last to step {progress.step}"


def _of_rules(timeline: Timeline) -> Iterator[str]:
    """Yield the records of watches for which the config has no rule."""
    progress, phase, settings = timeline.progress, timeline.phase, timeline.settings
    rules = {
        "plateau": (progress.plateau != Watch(), isinstance(phase.until, OnPlateau)),
        "phase_best": (progress.phase_best != Watch(), phase.restores_best),
        "best": (progress.best != Watch(), settings.checkpoint.best is not None),
        "ranking": (bool(progress.ranking), settings.checkpoint.best is not None),
        "stopping": (progress.stopping != Watch(), settings.early_stopping is not None),
        "rate": (
            progress.rate != Watch() or progress.rate_falls > 0,
            isinstance(timeline.rates.schedule, PlateauSchedule),
        ),
    }
    for name, (is_set, has_rule) in rules.items():
        # A resumed run cannot change its rules, so no run of this config has written such a record.
        if is_set and not has_rule:
            yield f"progress.json: {name!r} is set, and the config has no rule for it"
    # A lack of memory only ever halves passes.
    if (progress.micro_batch or 0) > settings.pass_size:
        yield f"micro_batch {progress.micro_batch} is more than {settings.pass_size} of the config"


def _of_average(timeline: Timeline, unaveraged: Collection[str]) -> Iterator[str]:
    """Yield the fault of a checkpoint whose averages are not of what its phase trains."""
    progress = timeline.progress
    wanted = timeline.phase.rates.keys() if timeline.settings.average is not None else set[str]()
    # At its first step it may hold those of the phase before, or none if that one went back.
    is_between = timeline.settings.average is not None and progress.step == progress.phase_began
    if not is_between and (odd := sorted(wanted ^ set(unaveraged))):
        yield f"it has averages of other parameters than its phase trains: {named(odd)}"


def _duration(until: Trigger | None, began: int, epochs: Epochs) -> int | None:
    """Return the longest duration of a phase in steps; None if the run's length decides it."""
    match until:
        case AfterSteps(steps=steps):
            return steps
        case AfterEpochs(epochs=count):
            return epochs.after(began, count) - began
        case OnPlateau(at_most=at_most):
            return _duration(at_most, began, epochs)
        case AtFraction() | None:
            return None
        case _:
            assert_never(until)


def _of_state(
    state: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Mapping[str, TensorSize]],
    step: int,
) -> Iterator[str]:
    """Yield the faults of the optimizer state, compared with what this optimizer keeps.

    A parameter without state had no gradient yet.
    """
    for name, entries in state.items():
        wanted = expected.get(name)
        if wanted is None:
            yield f"it has optimizer state of {named([name])}, which never trains"
            return
        if odd := sorted(entries.keys() ^ wanted.keys()):
            yield f"optimizer state of {named([name])} is not of this optimizer: {named(odd)}"
        for entry, value in entries.items():
            fault = _fault_of_entry(entry, value, wanted[entry], step)
            if fault is not None:
                yield f"optimizer state {entry!r} of {named([name])} {fault}"


def _fault_of_entry(name: str, value: object, wanted: TensorSize, step: int) -> str | None:
    """Return what is wrong with one tensor of the optimizer state, or None.

    Second moments may overflow to infinity while the weights stay finite; nothing else may.
    """
    if not isinstance(value, Tensor):
        return "is no tensor"
    if (tuple(value.shape), value.dtype) != (wanted.shape, wanted.dtype):
        return f"has shape {list(value.shape)} and type {value.dtype}, not those of this optimizer"
    may_be_infinite = wanted.is_not_negative and value.ndim > 0
    if bool(value.isnan().any()) or not (may_be_infinite or bool(value.isfinite().all())):
        return "is infinite or NaN"
    if wanted.is_not_negative and bool((value < 0).any()):
        return "is negative"
    # A parameter has at most one update per step of the run, and fewer where it was frozen.
    if name == "step" and not (value.item() <= step and value.item() % 1 == 0):
        return f"is {value.item()} at step {step}"
    if name in _AT_MOST and bool((value > _AT_MOST[name]).any()):
        return f"is more than {_AT_MOST[name]:g}"
    return None


def _of_loss_scale(found: Mapping[str, object], wanted: Mapping[str, float]) -> Iterator[str]:
    """Yield the faults of a loss scale: all but two of its numbers never change in a run."""
    if found.keys() != wanted.keys():
        yield f"its loss scale is of another precision: {named(found.keys() ^ wanted.keys())}"
    for name, own in wanted.items():
        value = found[name]
        match name, value:
            case "scale", float():
                fits = math.isfinite(value) and value > 0
            case "_growth_tracker", int():
                fits = 0 <= value <= wanted["growth_interval"]
            case _:
                fits = value == own
        # `True` equals 1 and is an int, so it would pass the comparisons above.
        if not fits or isinstance(value, bool):
            yield f"its loss scale has {value!r} as {name!r}"
