"""Where a run is: the present phase with its span and rates, what comes next, what is due.

The phases come from a list that is known before step 0, or a policy makes them as training goes.
Every other part asks the timeline for a phase, and does not know which of the two it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, assert_never

from torch import Tensor

from finetune.activations.estimate import Coming
from finetune.config.train import Every, TrainConfig
from finetune.data.batches import windows
from finetune.data.parts.epoch_order import EpochOrder
from finetune.errors import named
from finetune.freezing.plan import Phase, Plan
from finetune.optim.rates import Rates
from finetune.runs.progress import Progress
from finetune.train.epochs import Epochs
from finetune.train.phase_sources import PhaseSource, phase_source
from finetune.train.spans import Span


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Tells phases, steps and samples of a run, from plan, settings and progress."""

    plan: Plan
    settings: TrainConfig
    seed: int
    order: EpochOrder
    """Which training samples every epoch draws."""
    data: str = ""
    """Digest of the training samples in their order."""
    validation: str = ""
    """Digest of the validation samples."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Hash of the code of each trusted package, by name."""
    rates: Rates
    progress: Progress = field(default_factory=Progress)
    total_steps: int = field(init=False)
    """Optimizer steps of the whole run, those on earlier data included."""
    epochs: Epochs = field(init=False)
    """The epochs of the run, those on earlier data included."""
    _source: PhaseSource = field(init=False, repr=False)
    _known_span: tuple[object, Span] | None = field(default=None, init=False, repr=False)
    """The last span that was found, and what it was found from."""

    def __post_init__(self) -> None:
        self._count_anew()
        self._source = phase_source(self.plan)
        self._source.begin(self.progress)

    # --- phases -------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self._source.phase(self.progress.phase, self.progress)

    @property
    def begun(self) -> list[Phase]:
        """The phases that have begun, the present one last."""
        numbers = range(self.progress.phase + 1)
        return [self._source.phase(number, self.progress) for number in numbers]

    @property
    def following(self) -> tuple[Phase, ...]:
        """The phases that are known to come after the present one."""
        return self._source.following(self.progress)

    @property
    def can_change(self) -> frozenset[str]:
        """Names that train in the present phase or may train in a later one."""
        return self._source.can_change(self.progress)

    @property
    def loses_state(self) -> frozenset[str]:
        """Names trained in the present phase whose optimizer state begins anew with it."""
        number, phase = self.progress.phase, self.phase
        match phase.optimizer_state:
            case "keep":
                return frozenset()
            case "reset" if number == 0:
                return frozenset()
            case "reset":
                return self._source.phase(number - 1, self.progress).frozen - phase.frozen
            case "fresh":
                return frozenset(self.plan.ever_trained) - phase.frozen
            case _:
                assert_never(phase.optimizer_state)

    def next_phase(self) -> None:
        """Begin the next phase: update the progress."""
        rule = self.settings.early_stopping
        self.progress.next_phase(keeps_patience=rule is not None and rule.across_phases)
        if self.phase.restarts_schedule:
            self.progress.restart_rate()

    def observe(self, *, is_evaluation: bool) -> None:
        """Report a step or an evaluation to the policy, if there is one; keep its next mask."""
        self._source.observe(self.progress, is_evaluation=is_evaluation)

    # --- steps --------------------------------------------------------------------------------

    @property
    def span(self) -> Span:
        """The steps of the present phase."""
        progress = self.progress
        found_from = (progress.phase, progress.phase_began, self.epochs, self.total_steps)
        # Kept, since it is read several times a step and changes only between phases.
        if self._known_span is None or self._known_span[0] != found_from:
            self._known_span = (found_from, next(self._spans()))
        return self._known_span[1]

    def rates_now(self) -> list[float]:
        """Return the rate of each group of the optimizer for the next step."""
        phase, cycle = self.phase, (0, self.total_steps)
        if phase.restarts_schedule:
            span = self.span
            cycle = (span.began, span.ends)
        return self.rates.at(
            self.progress.step,
            phase.rates,
            cycle,
            self.total_steps,
            epochs=self.epochs,
            falls=self.progress.rate_falls,
        )

    def thaws_ahead(self) -> list[Coming]:
        """Return the phases that follow, up to the first that freezes a tensor again."""
        spans, frozen, found = self._spans(), self.phase.frozen, list[Coming]()
        next(spans)
        for phase, span in zip(self.following, spans, strict=True):
            # What stays frozen keeps its values, so rows stored now are valid then. After a thaw
            # they are not.
            if not phase.frozen <= frozen:
                break
            lasts = (span.ends - span.began) / self.steps_per_epoch if span.is_certain else None
            seen = (span.began - self.progress.step) / self.steps_per_epoch
            found.append(Coming(phase, seen, lasts))
            frozen = phase.frozen
        return found

    @property
    def run_is_over(self) -> bool:
        """Whether no step and no evaluation of a step is left; the test may be."""
        progress = self.progress
        # The evaluation of the last step may find the best weights.
        if progress.owes_evaluation:
            return False
        if progress.stopped_early or progress.step >= self.total_steps:
            return True
        return self._trigger_came and not self._source.may_go_on(progress)

    @property
    def phase_is_over(self) -> bool:
        """Whether the present phase has taken its last step, or the run has."""
        return self._trigger_came or self.run_is_over

    @property
    def evaluation_is_due(self) -> bool:
        """Whether to evaluate after this step."""
        return self._is_due(self.settings.evaluate_every) or self.run_is_over

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether the config asks for a checkpoint of this step."""
        return self._is_due(self.settings.checkpoint.every)

    @property
    def phase_end_is_saved(self) -> bool:
        """Whether to save a checkpoint at the end of the present phase.

        Each end of a listed phase is a point to go back to. A policy may make a phase every few
        steps: its ends are saved only where this step would be saved anyway.
        """
        is_wanted = self._source.saves_every_end or self.progress.is_ranked()
        return is_wanted or self.run_is_over or self.checkpoint_is_due

    # --- samples ------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training samples."""
        return steps_of_epoch(self.order.count, self.settings)

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next step belongs to, from 0."""
        return self.epochs.place(self.progress.step)[0]

    def windows(self) -> list[Tensor]:
        """Return sample indices of each step that is left in the present phase and epoch.

        They follow from seed and step alone, so a resumed run sees what it would have seen.
        """
        epoch, done = self.epochs.place(self.progress.step)
        order = self.order.of(self.seed, epoch)
        cut = windows(order, self.settings.batch_size, drop_last=self.settings.drop_last)
        return cut[done:][: self.span.ends - self.progress.step]

    def has_used(self, part: str, row: int) -> bool:
        """Tell whether the run was trained on a sample, or has figures of its part.

        Conservative: from the second epoch on, every training sample counts as used.
        """
        if part != "train":
            # The best weights were chosen by these figures: another sample would not be comparable.
            return any(tag.partition("/")[0] == part for tag in self.progress.metrics)
        epoch, done = self.epochs.place(self.progress.step)
        # One epoch may draw a sample several times.
        drawn = self.order.of(self.seed, epoch)[: done * self.settings.batch_size]
        return epoch > 0 or bool((drawn == row).any())

    @property
    def pass_size(self) -> int:
        """Samples per forward and backward pass: as configured, or fewer after a lack of memory."""
        return self.progress.micro_batch or self.settings.pass_size

    # --- another progress ---------------------------------------------------------------------

    def at(self, progress: Progress) -> Self:
        """Return this timeline with another progress; its length in steps is computed anew."""
        return replace(self, progress=progress)

    def go_on_from(self, progress: Progress) -> list[str]:
        """Continue from a saved progress; return lines for the user if data or code was other.

        Other data has another order of samples, so the epoch that was begun is cut short. Figures
        of other validation samples are no mark for those to come.
        """
        lines = []
        if progress.data not in (None, self.data):
            length = progress.epoch_steps or self.steps_per_epoch
            number, done = Epochs.of(progress.past_epochs, length).place(progress.step)
            progress.past_epochs = [*progress.past_epochs, (progress.step, length)]
            rest = f": the rest of epoch {number + 1} is left out" if done else ""
            begins = number + 1 + (done > 0)
            lines.append(f"goes on at the start of epoch {begins} with other data{rest}")
        if changed := other_code(progress.code, self.code):
            lines.append(f"goes on with changed code of {named(changed)}")
        progress.code = {**progress.code, **self.code}
        progress.data, progress.epoch_steps = self.data, self.steps_per_epoch
        self.progress = progress
        # Epochs of other lengths lie behind it, so the run ends at another step.
        self._count_anew()
        # What is over keeps the figures of the samples that it was validated on.
        if progress.validation is None or not self.run_is_over:
            is_other = progress.validation not in (None, self.validation)
            progress.validation = self.validation
            if is_other and progress.forget_figures():
                lines.append(
                    "the validation samples are others: the best weights are chosen anew, from "
                    "the evaluations to come"
                )
        return lines

    def _count_anew(self) -> None:
        """Count the epochs of the run, and its steps: as configured, or those of its epochs."""
        progress, settings = self.progress, self.settings
        length = progress.epoch_steps or self.steps_per_epoch
        self.epochs = Epochs.of(progress.past_epochs, length)
        self.total_steps = settings.steps or self.epochs.after(0, settings.epochs or 1)

    def _spans(self) -> Iterator[Span]:
        """Yield the spans of the present phase and of those known to come."""
        return self._source.spans(self.progress, self.epochs, self.total_steps)

    @property
    def _trigger_came(self) -> bool:
        """Whether the present phase is over, by its trigger or by the policy."""
        return self._source.is_over(self.progress, self.span.ends)

    def _is_due(self, every: Every) -> bool:
        """Tell whether the present step completes an interval of `every`."""
        if every.steps:
            return self.progress.step % every.steps == 0
        epoch, done = self.epochs.place(self.progress.step)
        return done == 0 and epoch % (every.epochs or 1) == 0


def other_code(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of packages whose code is not what it was, as far as both are known."""
    return [package for package in now if then.get(package, now[package]) != now[package]]


def interval_of(every: Every, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps in an interval."""
    return every.steps or (every.epochs or 1) * steps_per_epoch


def steps_of_epoch(samples: int, settings: TrainConfig) -> int:
    """Return the optimizer steps of one pass over `samples` samples."""
    whole, rest = divmod(samples, settings.batch_size)
    return whole + (rest > 0 and not settings.drop_last)
