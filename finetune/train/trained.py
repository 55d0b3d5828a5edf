"""A run read back from its folder: its network with its weights, and its figures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config.loader import load_config
from finetune.config.run import RunConfig
from finetune.data.loader import Samples
from finetune.data.prepare import DataFacts
from finetune.errors import CheckpointError, DataError, named
from finetune.models.declared import Network
from finetune.models.preprocessing import Preprocessing, read_preprocessing
from finetune.prefix.whole import NoPrefix
from finetune.train.checkpoint import load_weights_delta
from finetune.train.delta import Base
from finetune.train.evaluation import evaluate
from finetune.train.facts import read_facts
from finetune.train.folder import RunFolder, saved_config
from finetune.train.kept import Checkpoints
from finetune.train.precision import Precision
from finetune.train.setup import (
    build_model_and_task,
    evaluation_batch_size,
    located,
    open_samples,
    pick_device,
    plan_of,
)
from finetune.train.tasks import Task


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished or stopped run, read back from its folder."""

    config: RunConfig
    folder: RunFolder
    facts: DataFacts
    columns: tuple[str, ...]
    """What the network was built to take, of a batch."""
    preprocessing: Preprocessing
    model: Network
    task: Task
    device: torch.device

    def refuse_misfit(self, samples: Samples) -> None:
        """Raise where samples have other columns than the network was built for.

        Raises:
            CheckpointError: the run's folder says other things of its data than the data does.
        """
        if set(samples.inputs) != set(self.columns):
            raise CheckpointError(
                f"the network takes the columns {named(self.columns)}, the data gives "
                f"{named(samples.inputs)}",
                where=str(self.folder.path / "data.json"),
                hint="the run's data.json or config.yaml was changed: train the run anew",
            )


def load_run(
    run_dir: str | Path, *, trust: Collection[str] = (), overrides: Sequence[str] = ()
) -> TrainedRun:
    """Rebuild the network of a run with its best or last weights, in evaluation mode.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import: the folder itself brings no trust.
        overrides: `key=value` each, for what the saved config has masked.

    Raises:
        CheckpointError: the folder holds no usable run.
        TrustError: its config imports code that `trust` does not name.
    """
    path = Path(run_dir)
    config = load_config(saved_config(path), overrides=overrides, trust=trust, is_run=True)
    folder = RunFolder.of(path, config)
    with located(config):
        facts, specs = read_facts(folder.read_json("data.json"), folder.path / "data.json")
        device = pick_device(config.train.device)
        model, task = build_model_and_task(config, facts, specs, device)
        plan = plan_of(config, model)
        chosen = Checkpoints(folder.checkpoints, keep_last=1).chosen()
        load_weights_delta(chosen, model, Base.of(model, plan))
        preprocessing = read_preprocessing(config.model)
    return TrainedRun(
        config, folder, facts, tuple(specs), preprocessing, model.eval(), task, device
    )


def evaluate_run(
    run_dir: str | Path,
    split: str,
    *,
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
    left_out: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return loss and metrics of a trained run over one part of its data.

    Args:
        run_dir: The run's folder.
        split: `train`, `validation` or `test`.
        trust: Packages whose code its config may import.
        overrides: `key=value` each, for what the saved config has masked.
        left_out: Receives, by name, why a metric is not defined on these samples.

    Raises:
        CheckpointError: the folder holds no usable run.
        DataError: the run has no such part.
    """
    run = load_run(run_dir, trust=trust, overrides=overrides)
    config = run.config
    with located(config):
        data = open_samples(config)
        samples = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if samples is None:
            raise DataError(f"this run has no {split} samples", where=str(run_dir))
        run.refuse_misfit(samples)
        precision = Precision(config.train.precision, run.device)
        return evaluate(
            NoPrefix(run.model, run=run.model),
            run.task,
            samples,
            precision=precision,
            batch_size=evaluation_batch_size(config),
            left_out=left_out,
        )
