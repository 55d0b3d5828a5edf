"""Where a run stands and goes: ends of phases and run, what is due, which windows are left.

All of it is a pure function of the plan, the settings and the progress.
"""

from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from finetune.activations.estimate import Coming
from finetune.config.freeze import AfterEpochs, AfterSteps, AtFraction, OnPlateau, Trigger
from finetune.config.train import Every, TrainConfig
from finetune.data.batches import sample_order, windows
from finetune.freezing.plan import Phase, Plan
from finetune.optim.rates import Stretch
from finetune.runs.progress import Progress
from finetune.train.epochs import Epochs


@dataclass(frozen=True, slots=True)
class Span:
    """Where a phase lies in the run."""

    began: int
    ends: int
    """Step at which it ends at the latest."""
    is_certain: bool
    """Whether no phase up to its end waits for a metric."""


def latest_end(until: Trigger | None, began: int, epochs: Epochs, total: int) -> int:
    """Return the step at which a phase that began at `began` ends at the latest."""
    match until:
        case None:
            return total
        case AfterEpochs(epochs=count):
            return min(total, epochs.after(began, count))
        case AfterSteps(steps=steps):
            return min(total, began + steps)
        case AtFraction(fraction=fraction):
            return min(total, max(began, round(fraction * total)))
        case OnPlateau(at_most=at_most):
            return latest_end(at_most, began, epochs, total)
        case _:
            assert_never(until)


def _waits_for_metric(until: Trigger | None) -> bool:
    """Tell whether nothing but a metric tells how long a phase lasts."""
    return isinstance(until, OnPlateau) and until.at_most is None


@dataclass(frozen=True, slots=True)
class Course:
    """Where phases and the run end, and what is due at a step, for any progress."""

    plan: Plan
    settings: TrainConfig
    seed: int
    num_samples: int
    """Training samples."""
    total_steps: int
    """Optimizer steps of the whole run."""
    data: str = ""
    """Digest of the training samples in their order."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training samples."""
        return steps_of_epoch(self.num_samples, self.settings)

    def epoch(self, progress: Progress) -> int:
        """Return the number of the pass over the samples that the next step belongs to."""
        return self.epochs(progress).place(progress.step)[0]

    def epochs(self, progress: Progress) -> Epochs:
        """Return where the epochs of the run begin."""
        return Epochs.of(progress.past_epochs, progress.epoch_steps or self.steps_per_epoch)

    def total(self, progress: Progress) -> int:
        """Return the optimizer steps of the whole run, with what it had of other data."""
        return self.settings.steps or self.epochs(progress).after(0, self.settings.epochs or 1)

    def go_on_from(self, progress: Progress) -> str | None:
        """Have a progress go on with the present data; return a line if it had other data before.

        The order of the samples is another one then: the epoch that was begun is cut short.
        """
        line = None
        if progress.data not in (None, self.data):
            length = progress.epoch_steps or self.steps_per_epoch
            number, done = Epochs.of(progress.past_epochs, length).place(progress.step)
            progress.past_epochs = [*progress.past_epochs, (progress.step, length)]
            rest = f": the rest of epoch {number + 1} is left out" if done else ""
            line = f"goes on at the start of epoch {number + 1 + (done > 0)} with other data{rest}"
        progress.data, progress.epoch_steps = self.data, self.steps_per_epoch
        return line

    def windows(self, progress: Progress) -> list[Tensor]:
        """Return the samples of each step that is left of the present phase and epoch.

        Both follow from the step, so a run that goes on draws what it would have drawn.
        """
        epoch, done = self.epochs(progress).place(progress.step)
        order = sample_order(self.num_samples, self.seed, epoch)
        cut = windows(order, self.settings.batch_size, drop_last=self.settings.drop_last)
        return cut[done:][: self.stretch(progress).ends - progress.step]

    def pass_size(self, progress: Progress) -> int:
        """Return the samples of one forward and backward pass."""
        return progress.micro_batch or self.settings.pass_size

    def phase(self, progress: Progress) -> Phase:
        """Return the present phase."""
        return self.plan.phases[progress.phase]

    def stretch(self, progress: Progress) -> Stretch:
        """Return where the present phase lies in the run."""
        phase, began = self.phase(progress), progress.phase_began
        ends = latest_end(phase.until, began, self.epochs(progress), self.total_steps)
        return Stretch(progress.phase, began, ends, phase.restarts_schedule)

    def thaws_ahead(self, progress: Progress) -> list[Coming]:
        """Return the phases to come, as long as each only thaws more than the one before."""
        present, began = self.phase(progress), self.stretch(progress).ends
        frozen, found = present.frozen, list[Coming]()
        is_certain = not _waits_for_metric(present.until)
        for phase in self.plan.phases[progress.phase + 1 :]:
            if not phase.frozen <= frozen:
                break
            ends = latest_end(phase.until, began, self.epochs(progress), self.total_steps)
            is_certain = is_certain and not _waits_for_metric(phase.until)
            lasts = (ends - began) / self.steps_per_epoch if is_certain else None
            found.append(Coming(phase, (began - progress.step) / self.steps_per_epoch, lasts))
            frozen, began = phase.frozen, ends
        return found

    def run_is_over(self, progress: Progress) -> bool:
        """Tell whether nothing is left to train or to evaluate on the way."""
        if progress.owes_evaluation:
            return False
        is_last = progress.phase == len(self.plan.phases) - 1
        is_done = progress.step >= self.total_steps or (is_last and self._trigger_came(progress))
        return progress.stopped_early or is_done

    def phase_is_over(self, progress: Progress) -> bool:
        """Tell whether the present phase, or the run with it, has taken its last step."""
        return self.run_is_over(progress) or self._trigger_came(progress)

    def evaluation_is_due(self, progress: Progress) -> bool:
        """Tell whether the weights of this step are to be evaluated."""
        return self._is_due(self.settings.evaluate_every, progress) or self.run_is_over(progress)

    def checkpoint_is_due(self, progress: Progress) -> bool:
        """Tell whether the config wants this step saved."""
        return self._is_due(self.settings.checkpoint.every, progress)

    def _trigger_came(self, progress: Progress) -> bool:
        return progress.plateau.is_over or progress.step >= self.stretch(progress).ends

    def _is_due(self, every: Every, progress: Progress) -> bool:
        if every.steps:
            return progress.step % every.steps == 0
        epoch, done = self.epochs(progress).place(progress.step)
        return done == 0 and epoch % (every.epochs or 1) == 0


def interval_of(every: Every, steps_per_epoch: int) -> int:
    """Return the optimizer steps from one time to the next."""
    return every.steps or (every.epochs or 1) * steps_per_epoch


def steps_of_epoch(samples: int, settings: TrainConfig) -> int:
    """Return the optimizer steps of one pass over `samples` samples."""
    whole, rest = divmod(samples, settings.batch_size)
    return whole + (rest > 0 and not settings.drop_last)
