"""`data:` where samples come from, how they are split, and what is done to each sample."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from finetune.config.base import PLACE, PUBLIC, Node, OpenNode, refuse
from finetune.config.bounds import MAX_DIGITS, Arguments, Count, Seed
from finetune.config.catalogue import TRANSFORMS, Complaint, check_arguments
from finetune.config.image_keys import ImageKeys


class _FileSource(Node):
    path: Annotated[str, PLACE]
    """File or folder. May begin with `package:NAME/` to reach into an installed package."""


class NamingSource(_FileSource):
    """A source whose files name or link to other files."""

    # A table from a stranger could otherwise name any file that the user can read, and the run
    # would keep its contents.
    within: Annotated[str | None, PLACE] = None
    """Folder that files which it names or links to must not leave, symbolic links resolved; the folder of the data if left out. Paths in a table are always relative to the table."""


class TableSource(NamingSource, ImageKeys):
    """A table, or a folder of tables. The format is recognised by content: separated values, JSON or Parquet, also compressed by gzip."""

    missing: tuple[str, ...] = ()
    """Cells that mean no value, such as `["?", "NA"]`; they are read as empty ones. An empty cell is never a number or a label."""

    @field_validator("missing", mode="before")
    @classmethod
    def _numbers_are_cells_too(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            # YAML reads an unquoted -999 as a number, and cells are compared as text.
            str(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else cell
            for cell in value
        )


class CsvSource(TableSource):
    """Rows of comma-separated values whose first line names the columns."""

    type: Literal["csv"]
    """Discriminator."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """The character between two values."""
    quote: Literal['"', "'", "none"] = '"'
    """The character around values that contain separators or line breaks; `none` treats it as ordinary text."""
    encoding: str = "utf-8"
    """Character encoding of the file, if it has no byte order mark."""


class JsonlSource(TableSource):
    """JSON objects: one per line, over several lines, or in an array."""

    type: Literal["jsonl"]
    """Discriminator."""


class ParquetSource(TableSource):
    """A Parquet file."""

    type: Literal["parquet"]
    """Discriminator."""


class TextFolderSource(NamingSource):
    """A folder of text files in one subfolder per class: columns `text` and `label`."""

    type: Literal["textfolder"]
    """Discriminator."""
    encoding: str = "utf-8"
    """Character encoding of the files."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What happens to bytes that the encoding lacks: an error, a replacement character, or removal."""


_CHANNELS_OF = {"RGB": "rgb", "L": "grey"}


class ImageFolderSource(NamingSource, ImageKeys):
    """A folder of images in one subfolder per class: columns `image` and `label`."""

    type: Literal["imagefolder"]
    """Discriminator."""
    mode: Literal["RGB", "L"] | None = None
    """Colour mode that every image is converted to; `RGB` if left out. Same as `channels: rgb` and `channels: grey`."""

    @property
    def colour_mode(self) -> Literal["RGB", "L"]:
        """The colour mode that every image is converted to."""
        # Not decided by the images, as for other sources: runs from before `channels` have always
        # had RGB.
        return self.mode or ("L" if self.channels == "grey" else "RGB")

    @model_validator(mode="after")
    def _one_colour_mode(self) -> Self:
        if self.channels not in (None, "grey", "rgb"):
            raise ValueError(f"'channels: {self.channels}' is for arrays; images are grey or rgb")
        if self.mode is not None and self.channels not in (None, _CHANNELS_OF[self.mode]):
            raise ValueError(
                f"'mode: {self.mode}' and 'channels: {self.channels}' contradict each other"
            )
        return self


_NUMBER = rf"-?\d{{1,{MAX_DIGITS}}}"
# As text, since YAML knows no slices; checked here, so that a wrong one is told with its line.
_SLICE = rf"^({_NUMBER}|({_NUMBER})?:({_NUMBER})?(:-?[1-9]\d{{0,{MAX_DIGITS - 1}}})?)$"
Shape = Annotated[tuple[Count, ...], Field(max_length=16)]


class ArrayColumn(Node):
    """One column, cut out of an array."""

    array: str | None = None
    """Name of the array in an `.npz`; may be left out if the file holds only one."""
    take: str | None = Field(default=None, pattern=_SLICE)
    """Part of the second axis, by Python's slice rules: `:-1` for all but the last, `-1` for the last one alone."""
    shape: Shape | None = None
    """Shape of one sample, if it differs from the file's."""
    dtype: Literal["uint8", "int64", "float32"] | None = None
    """Number type. `uint8` with two axes or more is an image whose 0..255 becomes 0..1. If left out, uint8 stays, other whole numbers become int64, and the rest float32."""

    @field_validator("take", mode="before")
    @classmethod
    # YAML reads an unquoted -1 as a number.
    def _a_number_is_one_position(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ArraysSource(_FileSource):
    """Arrays of numbers, samples first: `.npz`, `.npy`, or a headless `.csv` or `.csv.gz`."""

    type: Literal["arrays"]
    """Discriminator."""
    columns: dict[str, ArrayColumn] | None = None
    """The columns by name. If left out, every array of an `.npz` under its own name."""
    channels: Literal["first", "last"] | None = None
    """Position of the channels of images: `(C, H, W)` or `(H, W, C)`. If left out, `last` where the shape is unambiguous."""


class SklearnSource(Node):
    """A data set that scikit-learn bundles: `image` or `features`, and `label` or `target`."""

    type: Literal["sklearn"]
    """Discriminator."""
    name: Literal["digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud"]
    """Name of the data set."""


_MAX_DRAWN = 2**28
"""Most numbers of a random column: 1 GiB as float32."""


class RandomSource(Node):
    """Numbers drawn from a standard normal distribution: columns `features` and `target`."""

    type: Literal["random"]
    """Discriminator."""
    samples: Count = 1
    """How many samples."""
    features: Shape = (16,)
    """Shape of one sample's features."""
    targets: Shape = (10,)
    """Shape of one sample's target."""
    seed: Seed = 0
    """Seed of the draw."""

    @field_validator("features", "targets", mode="before")
    @classmethod
    def _a_number_is_a_shape_of_one_axis(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _the_numbers_can_be_drawn(self) -> Self:
        for name in ("features", "targets"):
            # Each dimension has bounds of its own, but their product may still exceed all memory.
            count = self.samples * math.prod(getattr(self, name))
            if count > _MAX_DRAWN:
                message = f"gives {count} numbers with {name}, at most {_MAX_DRAWN} are drawn"
                refuse("RandomSource", (("samples",), message, None))
        return self


class HuggingFaceSource(NamingSource, ImageKeys):
    """A data set of the `datasets` library: a hub id, or a folder made by `save_to_disk`."""

    type: Literal["huggingface"]
    """Discriminator."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    part: str = "train"
    """Split of the data set to read, by its own name."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""


class ImportSource(ImageKeys):
    """The user's own data, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.data:make`: returns a mapping of column to array with samples first, a `datasets.Dataset`, or a map-style torch `Dataset`."""
    within: str | None = None
    """Folder that files named in the data must not leave, symbolic links resolved; the current folder if left out, to which their names are relative."""
    args: Arguments = Field(default={})
    """Keyword arguments of the call."""


Source = Annotated[
    CsvSource
    | JsonlSource
    | ParquetSource
    | TextFolderSource
    | ImageFolderSource
    | ArraysSource
    | SklearnSource
    | RandomSource
    | HuggingFaceSource
    | ImportSource,
    Field(discriminator="type"),
]


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
    def columns(self) -> tuple[str, ...]:
        """The columns that say where a sample goes."""
        return tuple(name for name in (self.by, self.group) if name is not None)

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


class TokenizeTransform(Node):
    """Turn text into token ids for a `transformers` layer."""

    type: Literal["tokenize"]
    """Discriminator."""
    column: Annotated[str | None, PUBLIC] = None
    """Column of text. If left out, the only text column, or the only two as a pair."""
    columns: Annotated[tuple[str, ...] | None, PUBLIC] = Field(
        default=None, min_length=1, max_length=2
    )
    """In place of `column`: two text columns, encoded as a pair."""
    max_length: int = Field(default=128, gt=0, le=10**6)
    """Longest sequence in tokens; longer ones are cut."""
    tokenizer: Annotated[str | None, PLACE] = None
    """Folder or hub id of the tokenizer; that of the first transformers layer if left out."""
    padding: Literal["longest", "max_length"] = "longest"
    """Pad each batch to its longest sequence, or always to `max_length`."""

    @model_validator(mode="after")
    def _one_way_to_name_columns(self) -> Self:
        if self.columns is not None and self.column is not None:
            raise ValueError("'column' and 'columns' exclude each other")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"a text makes no pair with itself: {list(self.columns)!r}")
        return self


class StackTransform(Node):
    """Join columns of numbers into one column of vectors."""

    type: Literal["stack"]
    """Discriminator."""
    columns: Annotated[tuple[str, ...] | None, PUBLIC] = None
    """The columns, in order; all of `data.inputs` if left out."""
    name: Annotated[str, PUBLIC] = "features"
    """Name of the new column, which replaces them among the inputs."""


class ImportTransform(Node):
    """The user's own transform, from a package named by `--trust`."""

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.data:make`: called with `args`, it returns a callable from sample (a dict) to sample."""
    args: Arguments = Field(default={})
    """Keyword arguments of the call."""
    random: bool = False
    """Whether two calls on one sample may differ. Random transforms run anew in each epoch, and only in training."""


class VisionTransform(OpenNode):
    """A class of `torchvision.transforms.v2` by its own name, with its own arguments."""

    type: str
    """Name of the class, such as `Resize`."""
    column: Annotated[str | None, PUBLIC] = None
    """Column of images; the first of `data.inputs` if left out."""

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for an unknown class, and for each argument that does not fit."""
        type_, own = value.get("type"), sorted(_OWN_TYPES)
        # A type that is no text is reported by pydantic already.
        if not isinstance(type_, str):
            return []
        return check_arguments(TRANSFORMS, "transform", type_, cls.arguments_in(value), also=own)


# All other types are names of torchvision's classes.
_OWN_TYPES = {"tokenize", "stack", "import"}


def _kind_of_transform(value: Any) -> str:
    """Return the tag of the node that a transform, written or built, is validated by."""
    type_ = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return type_ if isinstance(type_, str) and type_ in _OWN_TYPES else "vision"


Transform = Annotated[
    Annotated[TokenizeTransform, Tag("tokenize")]
    | Annotated[StackTransform, Tag("stack")]
    | Annotated[ImportTransform, Tag("import")]
    | Annotated[VisionTransform, Tag("vision")],
    Discriminator(_kind_of_transform),
]


def is_random(transform: Transform) -> bool:
    """Tell whether two calls of `transform` on one sample may differ."""
    if isinstance(transform, VisionTransform):
        return TRANSFORMS[transform.type].is_random_with(transform.arguments)
    return isinstance(transform, ImportTransform) and transform.random


class LabelsConfig(Node):
    """How labels become classes."""

    fold: bool = False
    """Whether labels that differ only in case, blanks or invisible characters are one class, in lower case."""
    order: Literal["head", "sorted"] = "head"
    """Order of the classes: that of the pretrained head which produces the outputs, if its names (`id2label`) match the labels; or sorted."""


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
    inputs: Annotated[tuple[str, ...] | None, PUBLIC] = None
    """Columns that the network takes. Needed where the source leaves it open."""
    target: Annotated[str | tuple[str, ...] | None, PUBLIC] = None
    """Column that the network learns to predict; or a list of columns of numbers, such as one of 0 and 1 for each label of a multilabel task."""
    labels: LabelsConfig = LabelsConfig()
    """How labels become classes."""
    transforms: tuple[Transform, ...] | None = None
    """Steps applied to each sample, in order; those of the model's pretraining if left out. Random ones run in training only."""
    evaluation_transforms: tuple[Transform, ...] | None = None
    """Used in place of `transforms` for validation, test and prediction; the deterministic ones of `transforms` if left out."""
    workers: Annotated[int, Field(ge=0, le=512)] | Literal["auto"] = "auto"
    """Processes that read, decode and transform samples; 0 does it in the training process, `auto` takes as many as pay. Their number changes no bit."""
    memory_gb: Annotated[float, Field(ge=0, le=1e6)] | Literal["auto"] = "auto"
    """GiB that samples may take after the transforms that give the same every time; `auto` for a quarter of the free memory. Beyond it they are made again in every epoch."""

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
    def _evaluation_is_deterministic(self) -> Self:
        # Two evaluations of one checkpoint must agree, and so must a resumed run and one never
        # stopped.
        for position, transform in enumerate(self.evaluation_transforms or ()):
            if is_random(transform):
                message = f"{transform.type!r} is random, and evaluation must give the same twice"
                refuse("DataConfig", (("evaluation_transforms", position), message, None))
        return self
