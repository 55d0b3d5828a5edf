"""`data:` where samples come from, how they are split, and what is done to each sample."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.config.base import PUBLIC, Node, refuse
from finetune.config.bounds import Seed
from finetune.config.names import Names
from finetune.config.source_keys import Source
from finetune.config.transform_keys import Mix, Transform, is_random


class SplitConfig(Node):
    """How one source is split into training, validation and test samples."""

    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples used for evaluation during training."""
    test: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples kept for the final test."""
    by: Annotated[str | None, PUBLIC] = None
    """Column that names the part of each sample: train, validation or test; or true where a sample is for validation."""
    group: Annotated[str | None, PUBLIC] = None
    """Column whose equal values stay in one part, such as the author of a text."""
    folds: int | None = Field(default=None, ge=2, le=1000)
    """Number of folds for cross-validation: one of them is for validation, the others train."""
    fold: int | None = Field(default=None, ge=0, le=1000)
    """Which fold is for validation, from 0; the first if left out."""
    per_class: int | None = Field(default=None, ge=1, le=10**9)
    """Training samples kept of each class, drawn by the seed; the others are left out."""
    stratify: bool = False
    """Whether every class keeps its share in each part."""
    copies: Literal["leave", "together", "drop"] = "leave"
    """What happens to samples whose inputs are exact copies: they stay where they fall (their number is reported), are kept in one part, or all but the first are dropped."""
    seed: Seed | None = None
    """Seed of the split; the run's seed if left out."""

    @property
    def shares(self) -> dict[str, float]:
        """Shares of validation and test that are not 0; folds make the validation part too."""
        held = self.validation if self.folds is None else (1 - self.test) / self.folds
        shares = {"validation": held, "test": self.test}
        return {part: share for part, share in shares.items() if share > 0}

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"leaves nothing to train on: validation ({self.validation}) and test "
                f"({self.test}) must add up to less than 1"
            )
        return self

    @model_validator(mode="after")
    def _there_is_one_way_to_split(self) -> Self:
        if self.by is not None:
            # By value: a run's own config names every key, also those that have no effect.
            drawn = {name: getattr(self, name) for name in ("validation", "test", "group", "folds")}
            drawn |= {"stratify": self.stratify, "copies": self.copies != "leave"}
            if (other := next((name for name, value in drawn.items() if value), None)) is not None:
                raise ValueError(f"'by' names the part of each sample, {other!r} draws it")
        if self.folds is not None and self.validation:
            raise ValueError("'folds' makes the validation part, so 'validation' has no effect")
        if self.folds is None and self.fold is not None:
            raise ValueError("'fold' needs 'folds'")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold ({self.fold}) counts from 0 to {self.folds - 1}")
        return self


class LabelsConfig(Node):
    """How labels become classes."""

    fold: bool = False
    """Whether labels that differ only in case, blanks or invisible characters are one class, in lower case."""
    order: Literal["head", "sorted"] = "head"
    """Order of the classes: that of the pretrained head which produces the outputs, if its names (`id2label`) match the labels; or sorted."""


class SampleWeights(Node):
    """Draw training samples by a column of weights."""

    weights: Annotated[str, PUBLIC]
    """Column of numbers from 0 on: a sample with twice the weight is drawn twice as often."""


class DataConfig(Node):
    """Samples: one source that is split, or one source for each part."""

    source: Source | None = None
    """The one source, divided by `split`."""
    split: SplitConfig | None = None
    """How `source` is split; if left out, all of it is for training."""
    train: Source | None = None
    """Source of the training samples, in place of `source`."""
    validation: Source | None = None
    """Source of the validation samples, with `train`."""
    test: Source | None = None
    """Source of the test samples, with `train`."""
    inputs: Annotated[Names | None, PUBLIC] = None
    """Columns that the network takes, or a single one. Needed where the source leaves it open."""
    target: Annotated[str | tuple[str, ...] | None, PUBLIC] = None
    """Column that the network learns to predict; or a list of columns of numbers, such as one of 0 and 1 for each label of a multilabel task."""
    loss_columns: Annotated[Names, PUBLIC] = ()
    """Columns that go to a loss or task of your own alone, as `batch.columns`: numbers, masks, lists of whole numbers. Prediction needs none of them."""
    labels: LabelsConfig = LabelsConfig()
    """How labels become classes."""
    transforms: tuple[Transform, ...] | None = None
    """Steps applied to each sample, in order; those of the model's pretraining if left out. Random ones run in training only."""
    evaluation_transforms: tuple[Transform, ...] | None = None
    """Used in place of `transforms` for validation, test and prediction; the deterministic ones of `transforms` if left out."""
    balance: Literal["none", "oversample"] | SampleWeights = "none"
    """How often an epoch draws each training sample. `none`: once. `oversample`: every class as often as the largest one. `{weights: COLUMN}`: as many draws as there are samples, each sample in proportion to its weight."""
    workers: Annotated[int, Field(ge=0, le=512)] | Literal["auto"] = "auto"
    """Processes that read, decode and transform samples; 0 does it in the training process, `auto` takes as many as pay. Their number changes no bit."""
    memory_gb: Annotated[float, Field(ge=0, le=1e6)] | Literal["auto"] = "auto"
    """GiB that samples may take after the transforms that give the same every time; `auto` for a quarter of the free memory. Beyond it they are made again in every epoch."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens when an image of a sample, or its mask, cannot be read: the run stops, or goes on without the sample. Recordings, texts, pixels of no class and faults of transforms always stop it. In training the next sample that can be read takes its place, in evaluation none does; how many are skipped is told."""

    @model_validator(mode="after")
    def _one_source_or_one_for_each_part(self) -> Self:
        # Both at once would leave open which of them the validation samples come from.
        if (self.source is None) == (self.train is None):
            raise ValueError("needs exactly one of 'source' and 'train'")
        if self.source is not None and (self.validation or self.test):
            raise ValueError("'validation' and 'test' go with 'train'; part 'source' by 'split'")
        if self.split is not None and self.source is None:
            raise ValueError("'split' goes with 'source'")
        return self

    @model_validator(mode="after")
    def _target_columns_are_distinct(self) -> Self:
        several = self.target if isinstance(self.target, tuple) else ("one",)
        if not several or len(set(several)) < len(several):
            raise ValueError(f"target needs columns, each once, got {list(several)!r}")
        return self

    @model_validator(mode="after")
    def _inputs_are_distinct(self) -> Self:
        names = self.inputs or ()
        if (twice := next((n for n in names if names.count(n) > 1), None)) is not None:
            refuse("DataConfig", (("inputs",), f"{twice!r} is named twice", None))
        return self

    @model_validator(mode="after")
    def _loss_columns_are_further_ones(self) -> Self:
        names = [*(self.inputs or ()), *self.loss_columns]
        names += [self.target] if isinstance(self.target, str) else (self.target or ())
        if (twice := next((n for n in self.loss_columns if names.count(n) > 1), None)) is not None:
            message = (
                f"{twice!r} is named twice; a loss finds inputs and target in its batch anyway"
            )
            refuse("DataConfig", (("loss_columns",), message, None))
        return self

    @model_validator(mode="after")
    def _mixing_comes_last(self) -> Self:
        nodes = self.transforms or ()
        for position, (one, following) in enumerate(pairwise(nodes)):
            if isinstance(one, Mix) and not isinstance(following, Mix):
                # A step after it would get mixed samples, and all other steps work on single ones.
                message = f"{one.type!r} mixes finished samples, so it comes after all other steps"
                refuse("DataConfig", (("transforms", position), message, None))
        return self

    @model_validator(mode="after")
    def _evaluation_is_deterministic(self) -> Self:
        # Two evaluations of one checkpoint must agree, and so must a resumed run and one never
        # stopped.
        for position, transform in enumerate(self.evaluation_transforms or ()):
            if is_random(transform):
                message = f"{transform.type!r} is random, and evaluation must give the same twice"
                refuse("DataConfig", (("evaluation_transforms", position), message, None))
        return self
