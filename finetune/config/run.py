"""The whole config of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from finetune.config.activation_cache import Cache, CacheConfig
from finetune.config.base import PUBLIC, Node
from finetune.config.bounds import MAX_NAME_BYTES, Count, Seed
from finetune.config.data import DataConfig
from finetune.config.freeze import ShortFreeze
from finetune.config.messages import shown
from finetune.config.model import ModelConfig
from finetune.config.optim import ConstantSchedule, OptimizerConfig, Schedule
from finetune.config.places import Place
from finetune.config.task import Task
from finetune.config.train import TrainConfig
from finetune.config.written import Written, dotted, locate
from finetune.errors import FinetuneError, Key, Origin, SeveralFaultsError
from finetune.redaction import redacted
from finetune.trust import Trust


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a config comes from and what it may import. No part of its value: all are equal.

    Args:
        path: Its file; None for one made in Python.
        written: Its values with the lines they stand on.
        trust: Packages that the user, never the config, allows it to import.
        places: Its relative paths, and where they were found.
        notes: What the person who wrote it should know of its keys.
    """

    path: Path | None = field(default=None, compare=False)
    written: Written | None = field(default=None, compare=False, repr=False)
    trust: Trust = field(default_factory=Trust, compare=False)
    places: tuple[Place, ...] = field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)


class InferenceConfig(Node):
    """How the trained network is run."""

    mode: Literal["inference_mode", "no_grad"] = "inference_mode"
    """Which of torch's two ways to leave gradients out. Outputs of `no_grad` may enter a later graph."""
    batch_size: Count | None = None
    """Samples of one forward pass; as many as training takes if left out."""


class RunConfig(Node):
    """One fine-tuning run."""

    name: Annotated[str | None, PUBLIC] = Field(default=None, pattern=r"^\w[\w.-]*$")
    """Name of the run and of its folder below `runs/`; the file's name if left out."""
    folder: str | None = None
    """Folder in which relative paths begin, in place of that of this file. A run keeps it in its `config.yaml`. What is not found there is looked for in the current folder."""
    seed: Seed = 0
    """Where all randomness begins: initial weights, order of samples, dropout, augmentation."""
    model: ModelConfig
    """The network."""
    data: DataConfig
    """The samples."""
    task: Task
    """What is learned."""
    freeze: ShortFreeze | None = None
    """What is frozen; nothing if left out."""
    optimizer: OptimizerConfig
    """How parameters move."""
    schedule: Schedule = ConstantSchedule()
    """How the rate changes over the run."""
    train: TrainConfig
    """How training proceeds."""
    cache: Cache = CacheConfig()
    """The activation cache: the frozen prefix runs once per sample."""
    inference: InferenceConfig = InferenceConfig()
    """How the trained network is run."""

    @field_validator("name")
    @classmethod
    def _a_folder_can_have_the_name(cls, name: str | None) -> str | None:
        if name is not None and len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"takes at most {MAX_NAME_BYTES} bytes, got {shown(name)}")
        return name

    _provenance: Provenance = PrivateAttr(default=Provenance())

    @property
    def trust(self) -> Trust:
        """Packages that the user allows this run to import code from."""
        return self._provenance.trust

    @property
    def path(self) -> Path | None:
        """The file this config was read from, or None."""
        return self._provenance.path

    @property
    def written(self) -> Written | None:
        """The values as written, with their lines; None if made in Python."""
        return self._provenance.written

    @property
    def run_name(self) -> str:
        """Name of the run; `load_config` takes it from the file where the config has none."""
        return self.name or "run"

    def locate(self, key: Key) -> Origin | None:
        """Return where `key`, or the nearest key above it, was written; None if made in Python."""
        written = self._provenance.written
        return None if written is None else locate(written, key)

    def located(self, error: FinetuneError) -> FinetuneError:
        """Add to `error` the place of the config value at fault, if it names one; return `error`.

        Several faults are put in the order of their lines.
        """
        if isinstance(error, SeveralFaultsError):
            for one in error.errors:
                self.located(one)
            error.errors = tuple(sorted(error.errors, key=self._line_of))
        elif error.key and error.where is None:
            error.where = str(self.locate(error.key) or dotted(error.key))
            error.hint = error.hint or self._searched(error.key)
        return error

    @property
    def places(self) -> tuple[Place, ...]:
        """The relative paths, and where they were found; none in a config made in Python."""
        return self._provenance.places

    @property
    def notes(self) -> tuple[str, ...]:
        """What the person who wrote it should know: old names of keys, where files were found."""
        on_places = (place.note for place in self.places if place.note is not None)
        return (*self._provenance.notes, *on_places)

    def _searched(self, key: Key) -> str | None:
        """Return where a path was looked for that was not found."""
        lost = (place for place in self.places if place.key == key and place.found is None)
        return next((redacted(place.searched) for place in lost), None)

    def _line_of(self, error: FinetuneError) -> float:
        origin = self.locate(error.key) if error.key else None
        return math.inf if origin is None or origin.line is None else origin.line

    def with_provenance(self, provenance: Provenance, values: Mapping[str, Any]) -> "RunConfig":
        """Return a copy that knows where it comes from, with some `values` replaced."""
        copy = self.model_copy(update=values)
        copy._provenance = provenance
        return copy
