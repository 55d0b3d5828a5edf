"""`data.transforms`: what is done to each sample."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import Discriminator, Field, Tag, model_validator

from finetune.config.base import PLACE, PUBLIC, Node, OpenNode, tags_of
from finetune.config.bounds import Arguments
from finetune.config.catalogue import TRANSFORMS, Complaint, check_arguments
from finetune.config.fitted_keys import (
    CategoriesTransform,
    ClipTransform,
    FillTransform,
    StandardizeTransform,
)
from finetune.config.names import Names


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
    columns: Annotated[Names | None, PUBLIC] = None
    """The columns, in order; all of `data.inputs` if left out."""
    name: Annotated[str, PUBLIC] = "features"
    """Name of the new column, which replaces them among the inputs."""


class MaskTokensTransform(Node):
    """Replace random tokens by the tokenizer's mask token, in training only; special tokens stay."""

    type: Literal["mask_tokens"]
    """Discriminator."""
    probability: float = Field(default=0.15, gt=0, lt=1)
    """Probability with which a token is masked."""
    column: Annotated[str, PUBLIC] = "input_ids"
    """Column of tokens, which `tokenize` has made."""


class SpecAugmentTransform(Node):
    """Mask random bands of a spectrogram, frequencies before time, in training only."""

    type: Literal["spec_augment"]
    """Discriminator."""
    column: Annotated[str | None, PUBLIC] = None
    """Column of spectrograms `(..., F, T)`; the first of `data.inputs` if left out."""
    frequency_masks: int = Field(default=2, ge=0, le=100)
    """Number of bands of frequencies."""
    frequency_width: int = Field(default=27, ge=0, le=10**6)
    """Most frequencies of a band; each is of a random width up to it."""
    time_masks: int = Field(default=2, ge=0, le=100)
    """Number of bands of time."""
    time_width: int = Field(default=100, ge=0, le=10**6)
    """Most points in time of a band."""
    fill: float = Field(default=0.0, ge=-1e6, le=1e6)
    """Value of what is masked."""


class MixupTransform(Node):
    """Blend each training sample with another one of its step, and their targets alike. Comes last."""

    type: Literal["mixup"]
    """Discriminator."""
    alpha: float = Field(default=0.2, gt=0, le=1000)
    """Shares are drawn from Beta(alpha, alpha): near 0 samples hardly mix, at 1 all shares are alike."""


class CutmixTransform(Node):
    """Paste a box of another image of its step into each training image, and mix the targets by area. Comes last."""

    type: Literal["cutmix"]
    """Discriminator."""
    alpha: float = Field(default=1.0, gt=0, le=1000)
    """Shares of area are drawn from Beta(alpha, alpha)."""


Mix = MixupTransform | CutmixTransform
"""Transforms that work on the samples of a step together. Of several, each step draws one."""


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


_NOT_NEEDED = ("ToTensor", "ToFloat", "ToFloat32", "Rescale")
"""Steps of other tools that only scale bytes to 0..1."""
_BY_ITSELF = (
    "leave it out: images of bytes become float32 from 0 to 1 by themselves behind all steps; "
    "before a Normalize write {type: ToDtype, dtype: float32, scale: true}"
)


class VisionTransform(OpenNode):
    """A class of `torchvision.transforms.v2` by its own name, with its own arguments."""

    type: str
    """Name of the class, such as `Resize`."""
    column: Annotated[str | None, PUBLIC] = None
    """Column of images; the first of `data.inputs` if left out."""
    with_: Annotated[Names | None, PUBLIC] = Field(default=None, alias="with")
    """Columns that move along with the image: masks, boxes `(K, 4)` as x1, y1, x2, y2 or points `(K, 2)` of the target or of `data.loss_columns`, or further images."""

    @classmethod
    def known_types(cls) -> Collection[str]:
        """Return the classes of torchvision and the steps of our own."""
        return (*TRANSFORMS, *_OWN_TYPES)

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> list[Complaint]:
        """Return a complaint for an unknown class, and for each argument that does not fit."""
        type_, own = value.get("type"), sorted(_OWN_TYPES)
        # A type that is no text is reported by pydantic already.
        if not isinstance(type_, str):
            return []
        if type_ in _NOT_NEEDED:
            return [(("type",), f"no transform {type_!r}", _BY_ITSELF)]
        if (ours := _OTHER_NAMES.get(type_.casefold().replace("_", ""))) is not None:
            return [(("type",), f"no transform {type_!r}", f"did you mean {ours!r}?")]
        if type_ not in TRANSFORMS and type_.casefold() == "normalize":
            return [(("type",), f"no transform {type_!r}", _OF_IMAGES_OR_NUMBERS)]
        return check_arguments(TRANSFORMS, "transform", type_, cls.arguments_in(value), also=own)


_OF_IMAGES_OR_NUMBERS = (
    "did you mean 'standardize', of columns of numbers, or 'Normalize', of images?"
)
_OTHER_NAMES = {
    **dict.fromkeys(("standardscaler", "scaler", "zscore", "scale"), "standardize"),
    **dict.fromkeys(
        ("impute", "imputer", "simpleimputer", "fillna", "fillmissing", "fillnull"), "fill"
    ),
    **dict.fromkeys(
        ("onehot", "onehotencoder", "onehotencode", "ordinalencoder", "labelencoder", "categorify"),
        "categories",
    ),
    **dict.fromkeys(("winsorize", "clamp"), "clip"),
}
"""What other tools call our steps, in small letters and without `_`."""


def _kind_of_transform(value: Any) -> str:
    """Return the tag of the node that a transform, written or built, is validated by."""
    type_ = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    # An unknown type goes to the open node, which knows what it may be meant for.
    return type_ if isinstance(type_, str) and type_ in _OWN_TYPES else "vision"


Transform = Annotated[
    Annotated[TokenizeTransform, Tag("tokenize")]
    | Annotated[StackTransform, Tag("stack")]
    | Annotated[MaskTokensTransform, Tag("mask_tokens")]
    | Annotated[SpecAugmentTransform, Tag("spec_augment")]
    | Annotated[MixupTransform, Tag("mixup")]
    | Annotated[CutmixTransform, Tag("cutmix")]
    | Annotated[ImportTransform, Tag("import")]
    | Annotated[StandardizeTransform, Tag("standardize")]
    | Annotated[FillTransform, Tag("fill")]
    | Annotated[CategoriesTransform, Tag("categories")]
    | Annotated[ClipTransform, Tag("clip")]
    | Annotated[VisionTransform, Tag("vision")],
    Discriminator(_kind_of_transform),
]
_OWN_TYPES = tags_of(Transform) - {"vision"}
"""Types of the union; all other types are names of torchvision's classes."""


def is_random(transform: Transform) -> bool:
    """Tell whether two calls of `transform` on one sample may differ."""
    if isinstance(transform, VisionTransform):
        return TRANSFORMS[transform.type].is_random_with(transform.arguments)
    if isinstance(transform, ImportTransform):
        return transform.random
    return isinstance(transform, MaskTokensTransform | SpecAugmentTransform | Mix)


def named_columns(transform: Transform) -> tuple[str, ...]:
    """Return the columns that a transform names; none if it takes what the data have for it."""
    match transform:
        case TokenizeTransform():
            return transform.columns or (() if transform.column is None else (transform.column,))
        case StackTransform():
            return transform.columns or ()
        case StandardizeTransform() | FillTransform() | CategoriesTransform() | ClipTransform():
            return transform.columns
        case MaskTokensTransform():
            return (transform.column,)
        case SpecAugmentTransform() | VisionTransform():
            return () if transform.column is None else (transform.column,)
        case ImportTransform() | MixupTransform() | CutmixTransform():
            return ()
    assert_never(transform)
