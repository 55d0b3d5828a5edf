"""`data.source`: where samples come from."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetune.config.audio_keys import AudioKeys
from finetune.config.base import AS_WRITTEN, PLACE, PUBLIC, Node, refuse
from finetune.config.bounds import MAX_DIGITS, Arguments, Count, Seed
from finetune.config.expressions import Expression
from finetune.config.image_keys import ImageKeys
from finetune.config.names import Names


class _FileSource(Node):
    path: Annotated[str, PLACE]
    """File or folder. May begin with `package:NAME/` to reach into an installed package."""


class NamingSource(_FileSource):
    """A source whose files name or link to other files."""

    # A table from a stranger could otherwise name any file that the user can read, and the run
    # would keep its contents.
    within: Annotated[str | None, PLACE] = None
    """Folder that files which it names or links to must not leave, symbolic links resolved; the folder of the data if left out. Paths in a table are relative to the table, or to its `folder`."""


def _as_cell(value: Any) -> Any:
    """Return a number as text, for a config made in Python; in a file it stays as written."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


class TableSource(NamingSource, ImageKeys, AudioKeys):
    """A table, several by a pattern (`part-*.csv`), or a folder of tables. The format is recognised by content: separated values, JSON or Parquet, also compressed by gzip."""

    folder: Annotated[str | None, PLACE] = None
    """Folder that names of files in the table are relative to; that of the table if left out."""
    missing: Annotated[Names, AS_WRITTEN] = ()
    """Cells that mean no value, such as `["?", "NA"]`; they are read as empty ones. An empty cell is never a number or a label."""

    @field_validator("missing", mode="before")
    @classmethod
    def _numbers_are_cells_too(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(_as_cell, value))
        return _as_cell(value)


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
    """JSON objects: one per line, over several lines, or in an array; both names mean all of it."""

    type: Literal["jsonl", "json"]
    """Discriminator."""


class ParquetSource(TableSource):
    """A Parquet file."""

    type: Literal["parquet"]
    """Discriminator."""


class LabelOfName(Node):
    """A label that is a part of the file's name."""

    regex: Expression
    """Expression that is looked for in the name of each file, with one group in parentheses, which is the label: `"(.+)_[0-9]+\\.jpg"`. By the rules of Python's `re`, in limited time."""

    @field_validator("regex")
    @classmethod
    def _has_one_group(cls, value: str) -> str:
        # To compile it is safe; what may take for ever is matching, which has a limit of time.
        if (count := re.compile(value).groups) != 1:
            raise ValueError(f"needs one group in parentheses, the label; got {count}")
        return value


class FolderSource(NamingSource):
    """A folder of files, in one subfolder per class unless their names tell the label."""

    label: LabelOfName | None = None
    """In place of subfolders: how the name of a file tells its label, `label: {regex: ...}`."""


class TextFolderSource(FolderSource):
    """A folder of text files in one subfolder per class: columns `text` and `label`."""

    type: Literal["textfolder"]
    """Discriminator."""
    encoding: str = "utf-8"
    """Character encoding of the files."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What happens to bytes that the encoding lacks: an error, a replacement character, or removal."""


_CHANNELS_OF = {"RGB": "rgb", "L": "grey"}


class ImageFolderSource(FolderSource, ImageKeys):
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


class CocoSource(NamingSource, ImageKeys):
    """A JSON file of COCO: columns `image` and `objects`, the boxes of each image with `bbox` and `label`."""

    type: Literal["coco"]
    """Discriminator."""
    folder: Annotated[str | None, PLACE] = None
    """Folder of the images; that of the file if left out."""


class AudioFolderSource(FolderSource, AudioKeys):
    """A folder of recordings in one subfolder per class: columns `audio` and `label`."""

    type: Literal["audiofolder"]
    """Discriminator."""


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


class HuggingFaceSource(NamingSource, ImageKeys, AudioKeys):
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
    | AudioFolderSource
    | CocoSource
    | ArraysSource
    | SklearnSource
    | RandomSource
    | HuggingFaceSource
    | ImportSource,
    Field(discriminator="type"),
]
