"""The whole config of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from finetune.config.activation_cache import Cache, CacheConfig
from finetune.config.base import PUBLIC, Node, refuse
from finetune.config.bounds import MAX_NAME_BYTES, Count, Seed
from finetune.config.data import DataConfig
from finetune.config.freeze import ShortFreeze
from finetune.config.messages import shown
from finetune.config.model import ModelConfig
from finetune.config.optim import ConstantSchedule, OptimizerConfig, Schedule
from finetune.config.places import Place
from finetune.config.sweep_keys import SweepConfig
from finetune.config.task_keys import ClassificationTask
from finetune.config.task_list_keys import AnyTask, ShortTask, TaskList
from finetune.config.tracking import Tracking, TrackingConfig
from finetune.config.train import TrainConfig
from finetune.config.written import Written, dotted, locate
from finetune.errors import FinetuneError, Key, Origin, SeveralFaultsError
from finetune.redaction import redacted
from finetune.trust import Trust

_TARGETS_IN_TASKS = "each task of the list names its own target"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a config comes from and what it may import; no part of its value.

    All provenances are equal, so that two configs with the same values are.

    Args:
        path: Its file; None if it was made in Python.
        written: Its values with their lines.
        trust: Packages that it may import; set by the user, never by the config.
        places: Its relative paths, and where they were found.
        notes: Lines to report to the user about its keys.
    """

    path: Path | None = field(default=None, compare=False)
    written: Written | None = field(default=None, compare=False, repr=False)
    trust: Trust = field(default_factory=Trust, compare=False)
    places: tuple[Place, ...] = field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)


class InferenceConfig(Node):
    """How the trained network is run."""

    mode: Literal["inference_mode", "no_grad"] = "inference_mode"
    """Which of torch's two modes without gradients is used for predictions. Outputs of `no_grad` may enter a later graph."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format in which `predict`, `serve` and `eval` call the network; that of training if left out. Weights stay in float32; `float16` needs a GPU."""
    calibrate: Literal["temperature"] | None = None
    """With `temperature`, probabilities of a classification are those of the logits divided by one number, so that a class predicted with 0.8 is right in about 80 % of the cases. The number is fitted on the validation samples when training ends, or, if the run has ended already, when `train` is started again; the class that is predicted stays the same. Probabilities are those of the network if left out."""
    batch_size: Count | None = None
    """Samples per forward pass; as many as in training if left out."""
    compile: bool = False
    """Whether `predict`, `serve` and `eval` compile the whole network by `torch.compile`. The first batch takes longer, and so does the first one of another shape; last bits may differ from those of the network itself. Needs a C++ compiler. Compiled runs share no frozen prefix, and give no embeddings."""
    channels_last: bool = False
    """Whether `predict`, `serve` and `eval` hold images and the weights of convolutions in memory with the channels last, which makes many convolutions faster. For networks of images alone; last bits may differ."""


class RunConfig(Node):
    """One fine-tuning run."""

    name: Annotated[str | None, PUBLIC] = Field(default=None, pattern=r"^\w[\w.-]*$")
    """Name of the run and of its folder below `runs/`; the name of the file if left out."""
    folder: str | None = None
    """Folder that relative paths start from, in place of this file's folder. A run saves it in its `config.yaml`. What is not found there is searched in the current folder."""
    seed: Seed = 0
    """Seed of all randomness: initial weights, order of samples, dropout, augmentation."""
    model: ModelConfig
    """The network."""
    data: DataConfig
    """The samples."""
    task: ShortTask
    """What is learned; a list of tasks has one for each of several outputs."""
    freeze: ShortFreeze | None = None
    """What is frozen; nothing if left out."""
    optimizer: OptimizerConfig
    """How parameters are updated."""
    schedule: Schedule = ConstantSchedule()
    """How the learning rate changes over the run."""
    train: TrainConfig
    """How training proceeds."""
    cache: Cache = CacheConfig()
    """The activation cache, by which the frozen prefix runs only once per sample."""
    tracking: Tracking = TrackingConfig()
    """Which programs get curves and pictures of the run: a list such as `[tensorboard]`, or a mapping."""
    inference: InferenceConfig = InferenceConfig()
    """How the trained network is run."""
    sweep: SweepConfig | None = None
    """What `finetune sweep` tries; other verbs leave it alone."""

    @field_validator("name")
    @classmethod
    def _a_folder_can_have_the_name(cls, name: str | None) -> str | None:
        # In bytes, as file systems count: a letter may take up to four.
        if name is not None and len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"takes at most {MAX_NAME_BYTES} bytes, got {shown(name)}")
        return name

    @model_validator(mode="after")
    def _targets_are_named_once(self) -> Self:
        if not isinstance(self.task, TaskList):
            return self
        if self.data.target is not None:
            refuse(
                "RunConfig",
                (
                    ("data", "target"),
                    _TARGETS_IN_TASKS,
                    "leave it out; data: {target: null} where a base file says it",
                ),
            )
        for number, task in enumerate(self.task.tasks):
            key: Key = ("task", "tasks", number, "target")
            if task.target in (self.data.inputs or ()):
                told = f"column {task.target!r} is both input and target"
                refuse("RunConfig", (key, told, "the network would learn to copy its input"))
            if task.target in self.data.loss_columns:
                told = f"column {task.target!r} is in data.loss_columns too"
                refuse("RunConfig", (key, told, "leave it out there"))
        return self

    @model_validator(mode="after")
    def _a_temperature_is_for_classes(self) -> Self:
        if self.inference.calibrate is not None and (why := _not_calibrated(self.task)):
            refuse("RunConfig", (("inference", "calibrate"), why, "leave it out"))
        return self

    # Private, so that it is neither a key of the config nor written. Two configs still compare as
    # equal, since all provenances are equal.
    _provenance: Provenance = PrivateAttr(default=Provenance())

    @property
    def trust(self) -> Trust:
        """Packages that this run may import code from."""
        return self._provenance.trust

    @property
    def path(self) -> Path | None:
        """The file that this config was read from, or None."""
        return self._provenance.path

    @property
    def written(self) -> Written | None:
        """The values as written, with their lines; None if the config was made in Python."""
        return self._provenance.written

    @property
    def run_name(self) -> str:
        """Name of the run; `load_config` takes it from the file's name if the config has none."""
        return self.name or "run"

    def locate(self, key: Key) -> Origin | None:
        """Return the origin of `key` or of the nearest key above it; None if made in Python."""
        written = self._provenance.written
        return None if written is None else locate(written, key)

    def located(self, error: FinetuneError) -> FinetuneError:
        """Add to `error` the origin of the config value it is about, if any; return `error`.

        The errors in a `SeveralFaultsError` are sorted by line.
        """
        if isinstance(error, SeveralFaultsError):
            for one in error.errors:
                self.located(one)
            error.errors = tuple(sorted(error.errors, key=self._line_of))
        # An error that names its own place, such as a table, keeps it.
        elif error.key and error.where is None:
            error.where = str(self.locate(error.key) or dotted(error.key))
            error.hint = error.hint or self._searched(error.key)
        return error

    @property
    def places(self) -> tuple[Place, ...]:
        """The relative paths with the folders they were found in; none if made in Python."""
        return self._provenance.places

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to report to the user: old names of keys, and where files were found."""
        on_places = (place.note for place in self.places if place.note is not None)
        of_sweep = () if self.sweep is None else ("`sweep` has an effect only in `finetune sweep`",)
        return (*self._provenance.notes, *on_places, *of_sweep)

    def _searched(self, key: Key) -> str | None:
        """Return where a path was searched, as a hint, if it was not found."""
        lost = (place for place in self.places if place.key == key and place.found is None)
        return next((redacted(place.searched) for place in lost), None)

    def _line_of(self, error: FinetuneError) -> float:
        """Return the line of an error, as a sort key; unknown lines come last."""
        origin = self.locate(error.key) if error.key else None
        return math.inf if origin is None or origin.line is None else origin.line

    def with_provenance(self, provenance: Provenance, values: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with this provenance, and with some `values` replaced."""
        copy = self.model_copy(update=values)
        copy._provenance = provenance
        return copy


def _not_calibrated(task: AnyTask) -> str | None:
    """Return why the probabilities of a task cannot be calibrated; None if they can."""
    if not isinstance(task, ClassificationTask) or task.learns_embeddings:
        what = "a list of tasks" if isinstance(task, TaskList) else f"this {task.type} task"
        return f"is for a classification with a probability of each class, and not for {what}"
    if task.threshold is not None:
        return "the threshold is one for probabilities as the network gives them"
    return None
