"""Load a trained run from its folder, and evaluate it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config.loader import load_config
from finetune.config.run import RunConfig
from finetune.data.batches import Samples
from finetune.data.identify.parts_alike import unlike_training
from finetune.data.loading.skipped import note_on_skipped
from finetune.data.opening import DataFacts
from finetune.errors import CheckpointError, named
from finetune.importing import code_by_package
from finetune.models.declared import Network, TensorSpec
from finetune.models.preprocessing import Preprocessing, read_preprocessing
from finetune.runs.checkpoint_folder import read_progress, step_of
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints
from finetune.runs.run_record import note_on_the_end, read_run
from finetune.runs.saved_runs import saved_config
from finetune.tasks.task import Task
from finetune.tasks.temperature import CalibrationErrors
from finetune.train.after.bases import Bases
from finetune.train.after.eval_data import EvalData, Part, RunData, open_eval_data
from finetune.train.after.facts import read_facts
from finetune.train.after.idle_overrides import idle_overrides
from finetune.train.after.inference import Inference, notes_on_inference
from finetune.train.after.known_rows_of_run import KnownForward, KnownToRun
from finetune.train.build import (
    build_model_and_task,
    build_own_task,
    evaluation_batch_size,
    located,
    pick_device,
    plan_of,
)
from finetune.train.checkpoints.checkpoint import load_weights_delta
from finetune.train.checkpoints.delta import Base
from finetune.train.evaluation import evaluate
from finetune.train.exact_kernels import use_exact_kernels
from finetune.train.fitted_on_validation import take_fitted
from finetune.train.timeline import other_code


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished or stopped run, read back from its folder."""

    config: RunConfig
    folder: RunFolder
    facts: DataFacts
    specs: Mapping[str, TensorSpec]
    """Shape and type of one sample in each batch column that the network was built for."""
    preprocessing: Preprocessing
    model: Network
    task: Task
    device: torch.device
    inference: Inference
    """Calls the network."""
    notes: tuple[str, ...] = ()
    """Lines for the user about what the run folder lacks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the batch columns that the network was built for."""
        return tuple(self.specs)

    def refuse_misfit(self, samples: Samples) -> None:
        """Raise if samples have other columns than the network was built for, or other widths.

        Raises:
            CheckpointError: the run folder does not fit the data that it names.
            DataError: numbers of a column are of another shape or type.
        """
        if set(samples.inputs) != set(self.columns):
            raise CheckpointError(
                f"the network takes the columns {named(self.columns)}, the data gives "
                f"{named(samples.inputs)}",
                where=str(self.folder.path / "data.json"),
                hint="the run's data.json or config.yaml was changed: train the run anew",
            )
        unlike_training(self.specs, samples)


def load_run(
    run_dir: str | Path,
    *,
    trust: Collection[str] = (),
    overrides: Sequence[str] = (),
    bases: Bases | None = None,
) -> TrainedRun:
    """Rebuild the network of a run with its best or last weights, in evaluation mode.

    Args:
        run_dir: The run's folder.
        trust: Packages whose code its config may import; the folder itself is not trusted.
        overrides: `key=value` each, for secrets that the saved config masks.
        bases: Networks before training of runs that are loaded with it; None to build one for
            this run alone.

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
        use_exact_kernels(device, wanted=config.train.deterministic)
        if bases is None:
            model, task = build_model_and_task(config, facts, specs, device)
        else:
            model = bases.network(config, facts, specs, device)
            task = build_own_task(config, facts, device)
        plan = plan_of(config, model)
        chosen = Checkpoints(folder.checkpoints, keep_last=1).chosen()
        # The base is of the network as built. With it the delta is checked before it is written.
        load_weights_delta(chosen, model, Base.of(model, plan))
        preprocessing = read_preprocessing(config.model)
        fitted = take_fitted(task, folder, step_of(chosen) or 0)
        inference = Inference.of(config, model.eval(), specs, device)
    return TrainedRun(
        config,
        folder,
        facts,
        specs,
        preprocessing,
        model,
        task,
        device,
        inference,
        (
            *notes_on_inference(config),
            *fitted,
            *_notes_on_code(config, chosen),
            *idle_overrides(overrides),
            *filter(None, [note_on_the_end(read_run(path))]),
        ),
    )


def _notes_on_code(config: RunConfig, checkpoint: Path) -> tuple[str, ...]:
    """Return a note if code that the config imports has changed since the run."""
    changed = other_code(read_progress(checkpoint).code, code_by_package(config.trust))
    if not changed:
        return ()
    return (f"the code of {named(changed)} has changed since the run: outputs may be others",)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Figures of a trained run.

    Args:
        figures: Loss and metrics.
        left_out: By metric, why it is not defined on these samples.
        data: The samples that were evaluated.
        calibration: Expected calibration errors, if the run has fitted a temperature.
    """

    figures: dict[str, float]
    left_out: dict[str, str]
    data: EvalData
    calibration: CalibrationErrors | None = None


def evaluate_run(
    run_dir: str | Path,
    split: Part | None = None,
    *,
    source: str | None = None,
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_changed: bool = False,
    left_out: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return loss and metrics of a trained run. It is public as `finetune.evaluate`.

    Args:
        run_dir: The run's folder.
        split: `train`, `validation` or `test`, which is the default.
        source: Data to evaluate in place of the run's own: a file or a folder.
        trust: Packages whose code the run's config may import.
        overrides: `key=value` each, for secrets that the saved config masks, or to name other data.
        data_changed: Whether the run's own data may differ from what it was trained on.
        left_out: Receives, by metric, why it is not defined on these samples.

    Raises:
        CheckpointError: the folder holds no usable run, or its data has changed.
        DataError: the data cannot be read, or the run has no such part.
    """
    run = load_run(run_dir, trust=trust, overrides=overrides)
    found = evaluated(run, split, source=source, overrides=overrides, data_changed=data_changed)
    if left_out is not None:
        left_out |= found.left_out
    return found.figures


def evaluated(
    run: TrainedRun,
    split: Part | None = None,
    *,
    source: str | None = None,
    overrides: Sequence[str] = (),
    data_changed: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluated:
    """Evaluate a trained run on one part of its data, or on a whole named source.

    Named data is evaluated with the columns and classes of the run.

    Args:
        run: The trained run.
        split: `train`, `validation` or `test`, which is the default.
        source: Data to evaluate in place of the run's own: a file, a folder or `-`.
        overrides: `key=value` each, as the run was loaded with. They may name another source, too.
        data_changed: Whether the run's own data may differ from what it was trained on.
        tell: Receives lines for the user about the data.

    Raises:
        CheckpointError: the run's own data has changed, and that is not accepted.
        DataError: the data cannot be read, or the run has no such part.
    """
    config = run.config
    for line in run.notes:
        tell(f"note: {line}")
    known = KnownToRun(config, run.model, run.inference, run.device, tell)
    with located(config), closing(KnownForward(run.model, known)) as network:
        data = open_eval_data(
            RunData(config, run.folder, run.facts, run.preprocessing, run.specs),
            split,
            source,
            overrides=overrides,
            accepts_changes=data_changed,
            tell=tell,
        )
        run.refuse_misfit(data.samples)
        left_out: dict[str, str] = {}
        temperature = run.task.temperature
        # Nothing was fitted, so there is nothing to compare, and no outputs are kept for it.
        if temperature is not None and temperature.value is None:
            temperature = None
        figures = evaluate(
            network,
            run.task,
            data.samples,
            precision=run.inference.precision,
            batch_size=evaluation_batch_size(config),
            left_out=left_out,
            collect=None if temperature is None else temperature.collect,
        )
        errors = None if temperature is None else temperature.errors()
        if (note := note_on_skipped(data.samples)) is not None:
            tell(note)
        return Evaluated(figures, left_out, data, errors)
