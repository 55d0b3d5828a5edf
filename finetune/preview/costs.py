"""Predict what each phase costs: FLOPs, memory, sizes of files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from finetune.config.run import RunConfig
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.policies.policy import Mask
from finetune.freezing.rows import rows_of
from finetune.preview.meter import Measured, Meter
from finetune.redaction import redacted
from finetune.train.built import Parts
from finetune.train.epochs import Epochs
from finetune.train.sizes import TensorSize, file_bytes, optimizer_state
from finetune.train.spans import Span, walk
from finetune.train.timeline import steps_of_epoch

_SEPARATOR = "//"
"""Separator of parameter name and state name in the optimizer's file."""


@dataclass(frozen=True, slots=True)
class Storing:
    """Costs and savings of the activation cache in a phase."""

    up_to: str
    """The last module whose outputs are stored."""
    share_of_forward: float
    """FLOPs of the prefix as a share of a forward pass, `r`."""
    flops_per_step: int
    """FLOPs of a step whose samples all have stored rows."""
    store_bytes: int
    """Bytes on disk for the rows of all splits, each as long as the longest."""
    visits: int
    """How often the phase sees each sample; rows are read at all visits but the first."""
    is_filled_before: bool
    """Whether earlier phases store the rows already, so that the first visit reads them, too."""
    pays: bool
    """Whether a store that is empty at first is expected to save enough, so that a run makes one in
    this phase or an earlier one."""
    reasons: tuple[str, ...]
    """Why frozen modules behind the boundary run in every pass, if there are any."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of training in one phase."""

    flops_per_step: int
    """Floating-point operations of an optimizer step, forward and backward."""
    weights_bytes: int
    """Parameters and buffers."""
    gradients_bytes: int
    optimizer_bytes: int
    """State of every parameter trained so far that trains in this phase or a later one."""
    activations_bytes: int
    """Tensors that autograd keeps from the forward pass of one micro-batch."""
    delta_file_bytes: int
    """Size of `weights.safetensors` in a checkpoint at the end of the phase."""
    optimizer_file_bytes: int
    """Size of `optimizer.safetensors` there."""
    storing: Storing | None
    """Costs and savings of the activation cache; None if nothing can be stored."""
    not_stored: str | None
    """Why nothing can be stored; None if something can."""


@dataclass(frozen=True, slots=True)
class PlanCosts:
    """Costs of a plan, and of training everything in every step for comparison."""

    phases: tuple[Costs, ...]
    full: Costs
    spans: tuple[Span, ...]
    drawn: Mask | None = None
    """With a policy: its first mask, for which the costs are computed."""

    @property
    def share_of_flops(self) -> float | None:
        """FLOPs of the run as a share of full training.

        None if plateaus decide on the length of phases, or a policy on masks of other costs.
        """
        return self._share([cost.flops_per_step * n for cost, n in self._with_steps()])

    @property
    def share_with_stores(self) -> float | None:
        """`share_of_flops` if every frozen prefix is stored, starting with empty stores."""
        return self._share([self._flops_with_store(cost, n) for cost, n in self._with_steps()])

    def _share(self, spent: list[int]) -> float | None:
        """Return FLOPs spent as a share of full training; None if they are not certain."""
        if self.drawn is not None or not all(span.is_certain for span in self.spans):
            return None
        steps = sum(span.ends - span.began for span in self.spans)
        return sum(spent) / max(1, self.full.flops_per_step * steps)

    def _with_steps(self) -> list[tuple[Costs, int]]:
        """Return the costs of each phase with its number of steps."""
        lengths = [span.ends - span.began for span in self.spans]
        return list(zip(self.phases, lengths, strict=True))

    def _flops_with_store(self, cost: Costs, steps: int) -> int:
        """Return the FLOPs of a phase whose first steps fill the store, if it is empty."""
        if cost.storing is None:
            return cost.flops_per_step * steps
        is_empty = not cost.storing.is_filled_before
        # At its first visit a sample is computed and stored, at all later ones its row is read.
        filling = min(steps, round(steps / cost.storing.visits)) if is_empty else 0
        reading = steps - filling
        return cost.flops_per_step * filling + cost.storing.flops_per_step * reading


@dataclass(frozen=True, slots=True)
class _Visits:
    """How often a phase sees each sample."""

    at_most: float
    is_certain: bool

    @property
    def counted_on(self) -> float:
        """Visits of each sample in this phase that decisions before the phase can rely on.

        It is `at_most` if the length of the phase is certain, else 1.
        """
        return self.at_most if self.is_certain else 1.0


def _whole(visits: Sequence[_Visits]) -> _Visits:
    """Add up the visits of all phases."""
    return _Visits(sum(one.at_most for one in visits), all(one.is_certain for one in visits))


def predict_costs(parts: Parts, config: RunConfig) -> PlanCosts:
    """Predict what every phase costs, from passes over 2 and 3 samples in each.

    FLOPs and activations are linear in the size of a micro-batch, so two passes give those of any
    size. The samples are cut from the first micro-batch of the run, with its padding. FLOPs are
    those that torch's `FlopCounterMode` knows: matrix products, convolutions and attention. The
    model is left as it was: parameters, buffers, gradients, modes, random state.

    Raises:
        ModelError: in some phase the loss depends on no trained parameter.
    """
    plan, meter = parts.plan, Meter.of(parts, config)
    steps_per_epoch = steps_of_epoch(parts.data.order.count, config.train)
    untils = (phase.until for phase in plan.phases)
    # A plan is of a run from step 0, so there is one data set and one length of epochs.
    spans = tuple(walk(untils, Epochs((steps_per_epoch,)), parts.total_steps))
    visits = [
        _Visits((span.ends - span.began) / steps_per_epoch, is_certain=span.is_certain)
        for span in spans
    ]
    everything = replace(
        plan.phases[0],
        # Full training has to freeze these, too: integers cannot have a gradient.
        frozen=frozenset(p.name for p in plan.inventory if not p.floating),
        until=None,
    )
    full = replace(plan, phases=(everything,), policy=None)
    return PlanCosts(
        phases=_costs(plan, parts, config, meter, visits),
        full=_costs(full, parts, config, meter, [_whole(visits)])[0],
        spans=spans,
        drawn=None if plan.policy is None else plan.policy.first({}),
    )


def _costs(
    plan: Plan, parts: Parts, config: RunConfig, meter: Meter, visits: Sequence[_Visits]
) -> tuple[Costs, ...]:
    """Return the costs of each phase, measured one after the other."""
    state = optimizer_state(plan, config.optimizer, parts.device)
    trained = set(plan.ever_trained)
    delta = {p.name: TensorSize.of_param(p) for p in plan.inventory if p.name in trained}
    buffers = dict(parts.model.named_buffers(remove_duplicate=False))
    costs: list[Costs] = []
    measured_before: list[Measured] = []
    for number, phase in enumerate(plan.examples):
        measured = meter.measure(phase, visits[number].at_most)
        measured_before.append(measured)
        # With a `store_dtype` rows are rounded, and nothing is stored for later phases.
        looks_ahead = config.cache.store_dtype is None
        is_filled = looks_ahead and _is_filled_before(plan, measured_before, visits)
        storing = _storing(measured, visits[number].counted_on, is_filled=is_filled)
        held = {
            f"{name}{_SEPARATOR}{part}": entry
            for name in _holding_state(plan, number)
            for part, entry in state[name].items()
        }
        # A buffer that has moved is in the delta of all later checkpoints, too.
        delta |= {name: TensorSize.of(buffers[name]) for name in sorted(measured.moved)}
        costs.append(
            Costs(
                flops_per_step=measured.flops_per_step,
                weights_bytes=_weights_bytes(parts.model),
                gradients_bytes=_gradients_bytes(parts.model, plan, phase),
                optimizer_bytes=sum(entry.size_bytes for entry in held.values()),
                activations_bytes=measured.activations_bytes,
                delta_file_bytes=file_bytes(delta),
                optimizer_file_bytes=file_bytes(held),
                storing=storing if isinstance(storing, Storing) else None,
                not_stored=redacted(storing) if isinstance(storing, str) else None,
            )
        )
    return tuple(costs)


def _is_filled_before(plan: Plan, measured: Sequence[Measured], visits: Sequence[_Visits]) -> bool:
    """Tell whether earlier phases store all rows of the phase that was measured last.

    They do if that phase and some before it only thaw, and every sample was seen in these.
    """
    last = len(measured) - 1
    there = measured[last].estimate
    first = last
    # Rows stay valid over a chain of phases that only thaw: what stays frozen keeps its values.
    while first and _only_thaws(plan.phases, measured, first):
        first -= 1
    # With random transforms a sample has a row for each of its views.
    views = 1 if isinstance(there, str) else there.views
    return first < last and sum(one.at_most for one in visits[first:last]) >= views


def _only_thaws(phases: Sequence[Phase], measured: Sequence[Measured], number: int) -> bool:
    """Tell whether a phase only thaws, so that its prefix lies inside that of the phase before."""
    before, now = measured[number - 1].estimate, measured[number].estimate
    if isinstance(before, str) or isinstance(now, str):
        return False
    is_thaw = phases[number].frozen <= phases[number - 1].frozen
    return is_thaw and before.boundary.encloses(now.boundary)


def _storing(measured: Measured, counted_on: float, *, is_filled: bool) -> Storing | str:
    """Return costs and savings of the activation cache, or why nothing can be stored.

    Args:
        measured: Measurements of the phase.
        counted_on: Visits that a run expects before the phase has begun.
        is_filled: Whether earlier phases store the rows already.
    """
    estimate = measured.estimate
    if isinstance(estimate, str):
        return estimate
    return Storing(
        up_to=estimate.up_to,
        share_of_forward=measured.prefix_flops_per_step / max(1, measured.forward_flops_per_step),
        flops_per_step=measured.flops_per_step - measured.prefix_flops_per_step,
        store_bytes=estimate.layout.size_bytes,
        visits=estimate.visits,
        is_filled_before=is_filled,
        pays=estimate.pays or (is_filled and estimate.at(counted_on).pays_ahead),
        reasons=tuple(map(redacted, estimate.boundary.reasons)),
    )


def _holding_state(plan: Plan, number: int) -> list[str]:
    """Return the names that have optimizer state in a phase, in the model's order."""
    # State is made at a parameter's first step, and deleted when it will not train again.
    ahead, so_far = plan.trained_from(number), plan.phases[: number + 1]
    return [
        name
        for name in plan.ever_trained
        if name in ahead and any(name not in phase.frozen for phase in so_far)
    ]


def _gradients_bytes(model: nn.Module, plan: Plan, phase: Phase) -> int:
    """Return the bytes of all gradients; autograd makes a whole one if some rows train."""
    # By the name of the parameter: its slices are views, and take no memory of their own.
    trained = {rows_of(p.name)[0] for p in plan.inventory if p.name not in phase.frozen}
    return sum(_bytes(tensor) for name, tensor in model.named_parameters() if name in trained)


def _weights_bytes(model: nn.Module) -> int:
    return sum(map(_bytes, model.parameters())) + sum(map(_bytes, model.buffers()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
