"""Save checkpoints of a run, and load them into its network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from finetune.activations.cache import ActivationCache
from finetune.distributed import RankLostError
from finetune.errors import DataError
from finetune.runs.checkpoint_folder import validated_at
from finetune.runs.kept import Checkpoints
from finetune.runs.progress import Progress
from finetune.train.average import Average
from finetune.train.checkpoints.checkpoint import (
    load_checkpoint,
    load_weights_delta,
    save_checkpoint,
)
from finetune.train.checkpoints.delta import Base
from finetune.train.clock import Clock
from finetune.train.precision import Precision
from finetune.train.proving import Prover
from finetune.train.ranks.alike import Alike
from finetune.train.ranks.shards import Shards
from finetune.train.shown.reporting import Reporter
from finetune.train.timeline import Timeline


@dataclass(slots=True, kw_only=True)
class Saver:
    """Saves checkpoints and loads them into the network; nothing else of a run does."""

    model: nn.Module
    optimizer: Optimizer
    timeline: Timeline
    checkpoints: Checkpoints
    base: Base
    average: Average
    precision: Precision
    prover: Prover
    clock: Clock
    reporter: Reporter
    alike: Alike
    shards: Shards

    def save(self, *, alone: bool = False) -> None:
        """Save a checkpoint of the present step, after a proof with `verify: checkpoint`.

        Args:
            alone: Whether another process of the run has failed, so that none can be asked.

        Raises:
            UnlikeRanksError: the processes of the run hold other bits.
        """
        if alone and self.shards.is_on:
            # The others hold the rest of each tensor, and are gone.
            self.reporter.message(
                f"step {self.timeline.progress.step} is not saved: the processes each hold a part "
                "of the weights, and one has failed"
            )
            return
        # Before anything is written: a checkpoint with a changed frozen tensor must not exist.
        if self.timeline.plan.verify == "checkpoint" and self.timeline.progress.fingerprints:
            self.prove()
        if not alone:
            self.alike.check(self.timeline.progress)
        if not self.alike.link.ranks.is_first and not self.shards.is_on:
            return
        with self.clock.timed("saving"):
            save_checkpoint(
                self.checkpoints,
                self.model,
                self.optimizer,
                self.timeline.progress,
                self.base,
                scaler=self.precision.state(),
                average=self.average,
                shards=self.shards,
            )

    def save_before(self, error: DataError | RankLostError) -> None:
        """Save the last step if an error came before the next one, which did not begin."""
        progress = self.timeline.progress
        has_steps = progress.step > progress.phase_began
        if isinstance(error, RankLostError):
            if error.is_between_steps and has_steps:
                self.save(alone=True)
        elif error.unread is not None and has_steps:
            # A sample cannot be read. Once it is mended, the run goes on from this step.
            self.save(alone=True)
            is_used = self.timeline.has_used(*error.unread)
            remedy = "mend it" if is_used else "mend it or put another in its place"
            goes_on = f"the same command goes on from step {progress.step}"
            error.hint = error.hint or f"{remedy}: {goes_on}"

    def prove(self) -> None:
        """Compare the frozen tensors with their fingerprints.

        Raises:
            FrozenWeightError: a tensor has changed.
        """
        with self.clock.timed("proof"):
            self.prover.prove(self.timeline)

    def load_newest(self, checkpoints: Checkpoints | None = None) -> bool:
        """Load the newest usable checkpoint; return False if there is none.

        Each checkpoint that is passed over is reported.

        Args:
            checkpoints: Where to look; the run's own if left out.

        Raises:
            CheckpointError: some are whole, and none of them fits the network.
        """
        checkpoints = checkpoints or self.checkpoints
        with self._in_step():
            return self._load_newest(checkpoints)

    def _load_newest(self, checkpoints: Checkpoints) -> bool:
        newest, damaged = checkpoints.start()
        if newest is None:
            # Whole checkpoints that do not fit mean that files of the config changed. Starting at
            # step 0 beside them would prune them.
            checkpoints.refuse_misfits()
        for line in damaged:
            self.reporter.message(line)
        if newest is None:
            return False
        progress, scaler = self._load(newest)
        self.precision.load_state(scaler)
        for line in self.timeline.go_on_from(progress):
            self.reporter.message(line)
        return True

    def restore(self, step: int) -> None:
        """Load weights and optimizer state of a step; the progress is not changed.

        Where there is an average, it becomes the weights: its evaluation has chosen the step.
        """
        with self._in_step():
            self._load(self.checkpoints.whole(step))
        self.average.take()

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Let all processes of the run read in the block what the first one has saved before."""
        # A thread may still write the checkpoint that is asked for.
        self.checkpoints.worker.wait()
        self.alike.link.wait()
        yield
        # Not before all have read it may the first one save again, and remove an older one.
        self.alike.link.wait()

    def _load(self, path: Path) -> tuple[Progress, dict[str, Any]]:
        """Load a checkpoint into the run; return its progress and loss scale."""
        return load_checkpoint(
            path, self.model, self.optimizer, self.base, self.average, self.shards
        )

    def take_best(self, cache: ActivationCache) -> None:
        """Load the best weights of the run into the network, if an evaluation has ranked any.

        They are averages if the run averages, and so are the last weights if none is the best.
        """
        best = self.timeline.progress.best.step
        if best is None:
            self.average.take()
            return
        # The checkpoint holds averages as weights: those of the last step are of no use any more.
        self.average.drop()
        if best <= self.timeline.progress.phase_began:
            # Tensors that are frozen now had other values then: their rows must not be stored.
            cache.leave()
        with self._in_step():
            load_weights_delta(self.checkpoints.whole(best), self.model, self.base)

    def figures(self) -> dict[str, float]:
        """Return the figures of the weights in use; the last evaluation may be of later ones."""
        progress = self.timeline.progress
        best = progress.best.step
        validated = {} if best is None else validated_at(self.checkpoints.whole(best))
        return progress.metrics | validated
