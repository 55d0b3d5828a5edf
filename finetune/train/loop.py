"""The visible loop: phases outside, steps inside, everything else called by name in between."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.config.train import Every, TrainConfig
from finetune.data.loader import Batch, Samples, sample_order, seed_for, windows
from finetune.errors import FrozenWeightError
from finetune.freezing.apply import apply_mask, hold_modes
from finetune.freezing.plan import Phase, Plan
from finetune.freezing.proof import (
    PhaseProof,
    copies_of,
    fingerprints,
    frozen_tensors,
    in_words,
    moving_buffers,
    prove,
)
from finetune.freezing.rows import RowSlices
from finetune.optim.groups import drop_state, reset_state, set_rates
from finetune.optim.rates import Rates, Stretch
from finetune.prefix.choose import Prefixes
from finetune.train.checkpoint import Base, Checkpoints, load_checkpoint, load_weights_delta
from finetune.train.evaluation import evaluate
from finetune.train.folder import RunFolder
from finetune.train.gradients import LossNorms, clip_gradients
from finetune.train.phases import judge, stretch_of
from finetune.train.precision import Precision
from finetune.train.progress import Progress
from finetune.train.reporting import Reporter, StepStats
from finetune.train.summary import summarise
from finetune.train.tasks import Task, add_up


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a run."""

    train: Samples
    validation: Samples | None
    test: Samples | None


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One run: the model and all it needs to be trained, handed in ready."""

    model: nn.Module
    plan: Plan
    optimizer: Optimizer
    progress: Progress
    task: Task
    splits: Splits
    rows: RowSlices
    rates: Rates
    precision: Precision
    reporter: Reporter
    folder: RunFolder
    checkpoints: Checkpoints
    base: Base
    settings: TrainConfig
    seed: int
    total_steps: int
    steps_per_epoch: int
    """Optimizer steps of one pass over the training samples."""
    evaluation_batch: int
    log_gradient_norms: bool
    prefixes: Prefixes
    copies: dict[str, Tensor] = field(default_factory=dict)
    """Frozen tensors as they were when the phase began, where they are not too large to keep."""

    def fit(self) -> Progress:
        """Train to the end of the last phase, from wherever `progress` stands.

        Afterwards `model` holds the weights of the best checkpoint where the config asks for the
        best one, and the last weights otherwise.

        Raises:
            FrozenWeightError: a frozen tensor has changed. Nothing is saved after the last good
                checkpoint.
            NonFiniteError: the loss is infinite or NaN.
        """
        if self._is_over() and self.folder.is_done_at(self.progress.step):
            self.reporter.message(f"{self.folder.path}: already done; --fresh begins anew")
            self.progress.metrics = self.folder.read_json("summary.json")["metrics"]
            return self.progress
        self.folder.begin()
        self.checkpoints.sweep()
        with self.reporter.running(self.progress, self.total_steps), closing(self.prefixes):
            while not self._is_over():
                self._enter_phase()
                for window in self._windows():
                    self._after_step(self.train_step(window))
                self._leave_phase()
            self._finish()
        return self.progress

    def train_step(self, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step over a window, given as its micro-batches.

        The loss is the mean over all samples of the window. Dividing by the samples of the window,
        rather than averaging the means of its micro-batches, keeps the gradient the same however
        the window is cut, also when the last micro-batch is short.
        """
        began, samples = time.perf_counter(), sum(len(batch) for batch in window)
        loss, loss_norms = torch.zeros((), device=self.precision.device), self._loss_norms()
        self.precision.seed(seed_for("step", self.seed, self.progress.step))
        set_rates(self.optimizer, self.rates.at(self.progress.step, self._stretch))
        self._zero_gradients()
        for batch in window:
            with self.precision.autocast():
                outputs = self.prefixes.now.forward(batch, self.splits.train)
                parts = self.task.parts(outputs, batch)
                micro_loss = add_up(parts).sum() / samples
            loss_norms.add(parts, samples)
            self.precision.backward(micro_loss)
            loss += micro_loss.detach()
        self.rows.hand_over_gradients(self._phase.frozen)
        grad_norm = self._clip_gradients()
        self.precision.step(self.optimizer)
        self.progress.step += 1
        return StepStats(loss, grad_norm, loss_norms.result(), time.perf_counter() - began)

    def evaluate(self, samples: Samples) -> dict[str, float]:
        """Return the mean loss and every metric over `samples`, in evaluation mode."""
        with self._timed("evaluation"):
            return evaluate(
                self.prefixes.now,
                self.task,
                samples,
                precision=self.precision,
                batch_size=self.evaluation_batch,
            )

    @property
    def _phase(self) -> Phase:
        return self.plan.phases[self.progress.phase]

    @property
    def _stretch(self) -> Stretch:
        return stretch_of(self.plan, self.progress, self.steps_per_epoch, self.total_steps)

    def _is_over(self) -> bool:
        progress = self.progress
        is_last = progress.phase == len(self.plan.phases) - 1
        is_done = progress.step >= self.total_steps or (is_last and self._trigger_has_come())
        return progress.stopped_early or is_done

    def _phase_is_over(self) -> bool:
        return self._is_over() or self._trigger_has_come()

    def _trigger_has_come(self) -> bool:
        return self.progress.plateau_reached or self.progress.step >= self._stretch.ends

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the windows that are left of the phase, each as its micro-batches.

        Epoch and place in it follow from the step, so a run that goes on draws what it would have
        drawn.
        """
        settings, size = self.settings, self.settings.micro_batch or self.settings.batch_size
        while not self._phase_is_over():
            epoch, done = divmod(self.progress.step, self.steps_per_epoch)
            order = sample_order(len(self.splits.train), self.seed, epoch)
            left = windows(order, settings.batch_size, drop_last=settings.drop_last)[done:]
            left = left[: self._stretch.ends - self.progress.step]
            cuts = [window.split(size) for window in left]
            batches = self.prefixes.now.fetches(
                self.splits.train, [c for cut in cuts for c in cut], epoch=epoch
            )
            for cut in cuts:
                yield [next(batches).to(self.precision.device) for _ in cut]
                if self._phase_is_over():
                    return

    def _enter_phase(self) -> None:
        """Set mask, modes and optimizer state, and take the fingerprints for the proof."""
        phase, progress = self._phase, self.progress
        self.prefixes.leave()
        apply_mask(self.model, phase.frozen)
        hold_modes(self.model, phase.frozen, phase.modules)
        self.model.train()
        if progress.step == progress.phase_began:
            left = self.plan.trained_from(progress.phase)
            drop_state(self.optimizer, set(self.plan.ever_trained) - left)
            reset_state(self.optimizer, self.plan.begin_anew(progress.phase))
        if progress.step == 0:
            self.reporter.phase_begins(progress)
        with self._timed("proof"):
            names = self._names_to_prove()
            self.copies = copies_of(self.model, names)
            progress.fingerprints = progress.fingerprints or fingerprints(
                self.model, names, known=self.base.never_trained
            )
        with self._timed("probe"):
            left_steps = self._stretch.ends - progress.step
            self.prefixes.open(visits=left_steps / self.steps_per_epoch)

    def _leave_phase(self) -> None:
        """Take the proof, go back to the best weights if asked to, and save what holds."""
        if self.plan.verify in ("phase", "checkpoint") or self._is_over():
            self._prove()
        step, best = self.progress.step, self.progress.phase_best_step
        goes_back = self._phase.restores_best and best not in (None, step)
        # By another metric these weights may be the best of the run: then this step's checkpoint
        # is theirs, and a run that goes on from it leaves the phase once more.
        is_theirs = goes_back and self.progress.best_step == step
        if is_theirs:
            self._save()
        if self.plan.verify != "end":
            self.progress.fingerprints = {}
        if goes_back and best is not None:
            load_checkpoint(self.checkpoints.path_of(best), self.model, self.optimizer, self.base)
        if not self._is_over():
            self.progress.next_phase()
            self.reporter.phase_begins(self.progress)
        if not is_theirs:
            self._save()

    def _proven_phases(self) -> tuple[Phase, ...]:
        return self.plan.phases if self.plan.verify == "end" else (self._phase,)

    def _names_to_prove(self) -> list[str]:
        """Return the tensors whose fingerprints are taken as a phase begins."""
        if self.plan.verify == "off":
            return []
        first, *others = (
            frozen_tensors(self.model, phase.frozen, phase.modules)
            for phase in self._proven_phases()
        )
        return [name for name in first if all(name in other for other in map(set, others))]

    def _prove(self) -> None:
        """Compare what is frozen with its fingerprints, and write down how it came out.

        Raises:
            FrozenWeightError: something has changed.
        """
        if self.plan.verify == "off":
            return
        moving = [
            moving_buffers(self.model, phase.frozen, phase.modules)
            for phase in self._proven_phases()
        ]
        with self._timed("proof"):
            proof = prove(
                self.model,
                self.progress.fingerprints,
                copies=self.copies,
                phase=self._phase.name if self.plan.verify != "end" else "whole run",
                first_step=self.progress.phase_began if self.plan.verify != "end" else 0,
                last_step=self.progress.step,
                left_out=tuple(dict.fromkeys(name for names in moving for name in names)),
            )
        self._record(proof)

    def _record(self, proof: PhaseProof) -> None:
        earlier = [old for old in self.progress.proofs if old["phase"] != proof.phase]
        self.progress.proofs = [*earlier, asdict(proof)]
        self.folder.write_proof(self.progress.proofs)
        if proof.changed:
            raise FrozenWeightError(in_words(proof))

    def _after_step(self, stats: StepStats) -> None:
        """Log, evaluate and save where it is due. What ends a phase is saved after its proof."""
        self.progress.add_seconds("training", stats.seconds)
        self.reporter.step_is_done(self.progress, stats, self.optimizer)
        is_new_best = False
        if self._is_due(self.settings.evaluate_every) or self._is_over():
            is_new_best = self._evaluate_and_judge()
        is_due = self._is_due(self.settings.checkpoint.every)
        if (is_new_best or is_due) and not self._phase_is_over():
            self._save()

    def _evaluate_and_judge(self) -> bool:
        """Evaluate the validation samples; return whether these weights are to be kept."""
        if self.splits.validation is None:
            return False
        figures = self.evaluate(self.splits.validation)
        self.reporter.evaluated(self.progress, "validation", figures)
        return judge(self.plan, self.progress, self.settings)

    def _finish(self) -> None:
        """Take the best weights if they are wanted, evaluate the test samples, sum up."""
        if self.progress.best_step is not None:
            best = self.checkpoints.path_of(self.progress.best_step)
            load_weights_delta(best, self.model, self.base)
        if self.splits.test is not None:
            figures = self.evaluate(self.splits.test)
            self.reporter.evaluated(self.progress, "test", figures)
        self.folder.write_summary(
            summarise(self.progress, self.precision.device, self.prefixes.statistics, status="done")
        )

    def _save(self) -> None:
        if self.plan.verify == "checkpoint" and self.progress.fingerprints:
            self._prove()
        with self._timed("saving"):
            self.checkpoints.save(
                self.model,
                self.optimizer,
                self.progress,
                self.base,
                scaler=self.precision.state(),
            )

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.rows.clear_gradients()

    def _clip_gradients(self) -> Tensor | None:
        """Clip where the config says so; else measure the norm only where it will be logged."""
        limit = self.settings.max_grad_norm
        if limit is None and not self.reporter.logs(self.progress.step + 1):
            return None
        self.precision.unscale(self.optimizer)
        return clip_gradients(self.optimizer, limit)

    def _loss_norms(self) -> LossNorms:
        """Return what measures each loss's gradient in this step; it does nothing when off."""
        is_on = self.log_gradient_norms and self.reporter.logs(self.progress.step + 1)
        names = [loss.name for loss in self.task.losses]
        parameters = [p for p in self.model.parameters() if p.requires_grad] if is_on else []
        return LossNorms(names, parameters)

    def _is_due(self, every: Every) -> bool:
        interval = every.steps or (every.epochs or 1) * self.steps_per_epoch
        return self.progress.step % interval == 0

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.progress.add_seconds(activity, time.perf_counter() - began)


def steps_of_epoch(samples: int, settings: TrainConfig) -> int:
    """Return the optimizer steps of one pass over `samples` samples."""
    whole, rest = divmod(samples, settings.batch_size)
    return whole + (rest > 0 and not settings.drop_last)
