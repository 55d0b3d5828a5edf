"""The visible loop: phases outside, steps inside, everything else called by name in between."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.config.train import Every, TrainConfig
from finetune.data.loader import Batch, Samples, sample_order, seed_for, windows
from finetune.errors import FinetuneError, FrozenWeightError, NonFiniteError, did_you_mean
from finetune.freezing.apply import apply_mask, hold_modes
from finetune.freezing.plan import Plan
from finetune.freezing.proof import fingerprints, frozen_tensors, prove
from finetune.freezing.report import mask_as_text
from finetune.optim.groups import Group, set_rates
from finetune.optim.schedules import Factor
from finetune.tracking.tracker import Tracker
from finetune.train.checkpoint import Base, Checkpoints, load_weights_delta
from finetune.train.evaluation import evaluate
from finetune.train.folder import RunFolder
from finetune.train.gradients import LossNorms
from finetune.train.precision import Precision
from finetune.train.progress import Progress, improves
from finetune.train.summary import peak_memory_gib, summarise
from finetune.train.tasks import Task, add_up


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a run."""

    train: Samples
    validation: Samples | None
    test: Samples | None


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step tells."""

    loss: Tensor
    """Mean loss of the window's samples, a scalar on the device."""
    grad_norm: Tensor | None
    """Norm over all gradients before clipping; None where nobody asked."""
    loss_norms: dict[str, Tensor]
    """Gradient norm of each loss alone, where the config asks for it."""
    seconds: float
    """How long the step took."""


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One run: the model and all it needs to be trained, handed in ready."""

    model: nn.Module
    plan: Plan
    optimizer: Optimizer
    progress: Progress
    task: Task
    splits: Splits
    groups: Sequence[Group]
    schedule: Factor
    precision: Precision
    tracker: Tracker
    folder: RunFolder
    checkpoints: Checkpoints
    base: Base
    settings: TrainConfig
    seed: int
    total_steps: int
    evaluation_batch: int
    device: torch.device
    hparams: Mapping[str, str | int | float | bool]
    log_gradient_norms: bool

    def fit(self) -> Progress:
        """Train to the end of the last phase, from wherever `progress` stands.

        Afterwards `model` holds the weights of the best checkpoint where the config asks for the
        best one, and the last weights otherwise.

        Raises:
            FrozenWeightError: a frozen tensor has changed. Nothing is saved after the last good
                checkpoint.
            NonFiniteError: the loss is infinite or NaN.
        """
        if self.folder.is_done_at(self.progress.step) and self._is_over():
            self.tracker.message(f"{self.folder.path}: already done; --fresh begins anew")
            self.progress.metrics = self.folder.read_json("summary.json")["metrics"]
            return self.progress
        self.folder.begin()
        self.checkpoints.sweep()
        self.tracker.begin(self.progress.step, self.total_steps)
        try:
            while not self._is_over():
                self._enter_phase()
                for window in self._windows():
                    self._after_step(self.train_step(window))
                    if self.progress.stopped_early:
                        break
                self._leave_phase()
            self._finish()
        finally:
            self.tracker.close()
        return self.progress

    def train_step(self, window: Sequence[Batch]) -> StepStats:
        """Make one optimizer step over a window, given as its micro-batches.

        The loss is the mean over all samples of the window. Dividing by the samples of the window,
        rather than averaging the means of its micro-batches, keeps the gradient the same however
        the window is cut, also when the last micro-batch is short.
        """
        began, samples = time.perf_counter(), sum(len(batch) for batch in window)
        loss, loss_norms = torch.zeros((), device=self.device), self._loss_norms()
        torch.manual_seed(seed_for("step", self.seed, self.progress.step))
        set_rates(self.optimizer, self.groups, self.schedule(self.progress.step))
        self.optimizer.zero_grad(set_to_none=True)
        for batch in window:
            with self.precision.autocast():
                outputs = self.model(**batch.inputs)
                parts = self.task.parts(outputs, batch)
                micro_loss = add_up(parts).sum() / samples
            loss_norms.add(parts, samples)
            self.precision.backward(micro_loss)
            loss += micro_loss.detach()
        grad_norm = self._clip_gradients()
        self.precision.step(self.optimizer)
        self.progress.step += 1
        return StepStats(loss, grad_norm, loss_norms.result(), time.perf_counter() - began)

    def evaluate(self, samples: Samples) -> dict[str, float]:
        """Return the mean loss and every metric over `samples`, in evaluation mode."""
        with self._timed("evaluation"):
            return evaluate(
                self.model,
                self.task,
                samples,
                precision=self.precision,
                batch_size=self.evaluation_batch,
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training samples."""
        return steps_of_epoch(len(self.splits.train), self.settings)

    def _is_over(self) -> bool:
        return self.progress.stopped_early or self.progress.step >= self.total_steps

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the windows that are left, each as its micro-batches.

        Epoch and place in it follow from the step, so a run that goes on draws what it would have
        drawn.
        """
        settings, size = self.settings, self.settings.micro_batch or self.settings.batch_size
        while self.progress.step < self.total_steps:
            epoch, done = divmod(self.progress.step, self.steps_per_epoch)
            order = sample_order(len(self.splits.train), self.seed, epoch)
            left = windows(order, settings.batch_size, drop_last=settings.drop_last)[done:]
            cuts = [list(window.split(size)) for window in left]
            cuts = cuts[: self.total_steps - self.progress.step]
            flat = [cut for window in cuts for cut in window]
            batches = self.splits.train.fetches(flat, epoch=epoch)
            for window in cuts:
                yield [next(batches).to(self.device) for _ in window]

    def _enter_phase(self) -> None:
        """Set mask and modes, and take the fingerprints that the proof will compare with."""
        frozen = self.plan.phases[self.progress.phase].frozen
        apply_mask(self.model, frozen)
        hold_modes(self.model, frozen)
        self.model.train()
        if self.progress.step == self.progress.phase_began:
            self._announce_phase(frozen)
        if not self.progress.fingerprints:
            with self._timed("proof"):
                names = frozen_tensors(self.model, frozen)
                self.progress.fingerprints = fingerprints(self.model, names)

    def _announce_phase(self, frozen: frozenset[str]) -> None:
        trained = sum(p.numel for p in self.plan.inventory if p.name not in frozen)
        figures = {"freeze/phase": self.progress.phase, "freeze/trained_parameters": trained}
        self.tracker.scalars(self.progress.step, self._where() | figures)
        text = mask_as_text(self.plan.inventory, frozen)
        self.tracker.text("freeze/map", f"```\n{text}\n```", self.progress.step)

    def _leave_phase(self) -> None:
        """Take the proof, and save what it holds for."""
        with self._timed("proof"):
            proof = prove(
                self.model,
                self.progress.fingerprints,
                phase=self.plan.phases[self.progress.phase].name,
                first_step=self.progress.phase_began,
                last_step=self.progress.step,
            )
        self.progress.proofs.append(asdict(proof))
        self.folder.write_proof(self.progress.proofs)
        if proof.changed:
            raise FrozenWeightError(
                f"{len(proof.changed)} of {proof.tensors} frozen tensors changed in phase "
                f"{proof.phase!r}: {', '.join(proof.changed)}"
            )
        self.progress.fingerprints = {}
        self._save()

    def _after_step(self, stats: StepStats) -> None:
        """Log, evaluate and save where it is due. What ends a phase is saved after its proof."""
        self._add_seconds("training", stats.seconds)
        step, is_last = self.progress.step, self.progress.step == self.total_steps
        if self._is_logged(step):
            self._log(stats)
        is_new_best = False
        if self._is_due(self.settings.evaluate_every) or is_last:
            is_new_best = self._evaluate_and_judge()
        if (is_new_best or self._is_due(self.settings.checkpoint.every)) and not self._is_over():
            self._save()

    def _log(self, stats: StepStats) -> None:
        loss = float(stats.loss)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} at step {self.progress.step}",
                hint="try a lower optimizer.lr, a warmup, or train.max_grad_norm",
            )
        figures = {"train/loss": loss, "time/step_seconds": stats.seconds}
        if stats.grad_norm is not None:
            figures["train/grad_norm"] = float(stats.grad_norm)
        for name, norm in stats.loss_norms.items():
            figures[f"train/grad_norm/{name}"] = float(norm)
        for group, slot in zip(self.groups, self.optimizer.param_groups, strict=True):
            figures[f"train/lr/{group.name}"] = float(slot["lr"])
        figures["memory/peak_gib"] = peak_memory_gib(self.device)
        self.tracker.scalars(self.progress.step, self._where() | figures)

    def _evaluate_and_judge(self) -> bool:
        """Evaluate the validation samples; return whether these are the best figures so far."""
        if self.splits.validation is None:
            return False
        figures = self.evaluate(self.splits.validation)
        tagged = {f"validation/{name}": value for name, value in figures.items()}
        self.progress.metrics |= tagged
        self.tracker.scalars(self.progress.step, self._where() | tagged)
        self._judge_early_stopping()
        best = self.settings.checkpoint.best
        if best is None or not improves(self._metric(best), self.progress.best, best):
            return False
        self.progress.best, self.progress.best_step = self._metric(best), self.progress.step
        return True

    def _judge_early_stopping(self) -> None:
        rule = self.settings.early_stopping
        if rule is None:
            return
        value = self._metric(rule.metric)
        if improves(value, self.progress.watched, rule.metric, rule.min_delta):
            self.progress.watched, self.progress.stale = value, 0
        else:
            self.progress.stale += 1
            self.progress.stopped_early = self.progress.stale >= rule.patience

    def _finish(self) -> None:
        """Take the best weights if they are wanted, evaluate the test samples, sum up."""
        if self.progress.best_step is not None:
            best = self.checkpoints.path_of(self.progress.best_step)
            load_weights_delta(best, self.model, self.base)
        if self.splits.test is not None:
            figures = self.evaluate(self.splits.test)
            tagged = {f"test/{name}": value for name, value in figures.items()}
            self.progress.metrics |= tagged
            self.tracker.scalars(self.progress.step, self._where() | tagged)
        self.folder.write_summary(summarise(self.progress, self.device, status="done"))
        self.tracker.hparams(self.hparams, self.progress.metrics)

    def _save(self) -> None:
        with self._timed("saving"):
            self.checkpoints.save(
                self.model,
                self.optimizer,
                self.progress,
                self.base,
                scaler=self.precision.state(),
            )

    def _clip_gradients(self) -> Tensor | None:
        """Clip where the config says so; else measure the norm only where it will be logged."""
        limit = self.settings.max_grad_norm
        if limit is None and not self._is_logged(self.progress.step + 1):
            return None
        self.precision.unscale(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return norm

    def _loss_norms(self) -> LossNorms:
        """Return what measures each loss's gradient in this step; it does nothing when off."""
        is_on = self.log_gradient_norms and self._is_logged(self.progress.step + 1)
        names = [loss.name for loss in self.task.losses]
        parameters = [p for p in self.model.parameters() if p.requires_grad] if is_on else []
        return LossNorms(names, parameters)

    def _is_logged(self, step: int) -> bool:
        return step == 1 or step % self.settings.log_every == 0 or step == self.total_steps

    def _metric(self, tag: str) -> float:
        """Return the latest figure of a metric that evaluation writes."""
        if tag not in self.progress.metrics:
            raise FinetuneError(
                f"no metric {tag!r} is ever logged",
                hint=did_you_mean(tag, self.progress.metrics)
                or f"known: {', '.join(self.progress.metrics)}",
                key=("train",),
            )
        return self.progress.metrics[tag]

    def _is_due(self, every: Every) -> bool:
        interval = every.steps or (every.epochs or 1) * self.steps_per_epoch
        return self.progress.step % interval == 0

    def _where(self) -> dict[str, float | str]:
        phase = self.plan.phases[self.progress.phase].name
        return {"epoch": self.progress.step / self.steps_per_epoch, "phase": phase}

    def _add_seconds(self, activity: str, seconds: float) -> None:
        spent = self.progress.seconds
        spent[activity] = spent.get(activity, 0.0) + seconds

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._add_seconds(activity, time.perf_counter() - began)


def steps_of_epoch(samples: int, settings: TrainConfig) -> int:
    """Return the optimizer steps of one pass over `samples` samples."""
    whole, rest = divmod(samples, settings.batch_size)
    return whole + (rest > 0 and not settings.drop_last)
