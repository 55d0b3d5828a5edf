"""Steps that are applied to samples: those of `data.transforms`, or those of the pretraining.

A step maps a sample (a dict of column to value) to a sample. In a sample numbers are tensors, text
is `str`, and an image from a file is a `PIL.Image`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor

from finetune.config.fitted_keys import (
    CategoriesTransform,
    ClipTransform,
    FillTransform,
    StandardizeTransform,
)
from finetune.config.transform_keys import (
    CutmixTransform,
    ImportTransform,
    MaskTokensTransform,
    MixupTransform,
    SpecAugmentTransform,
    StackTransform,
    TokenizeTransform,
    Transform,
    VisionTransform,
    is_random,
)
from finetune.data.cells import words_as_numbers
from finetune.data.column_kinds import is_image_column
from finetune.data.samples import Columns, Prepared, Sample, replaced
from finetune.data.steps.augmenting import MaskTokens, SpecAugment, mask_tokens
from finetune.data.steps.fitted_steps import FittedStep
from finetune.data.steps.text_steps import (
    columns_to_tokenize,
    is_text,
    nodes_for_each,
    text_or_pair,
    tokenize_step,
    tokenized_singly,
)
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.steps.vision import Vision, vision_step
from finetune.data.table import Numbers
from finetune.data.vectors import OneHot, Vectors
from finetune.errors import DataError, Key, did_you_mean, named
from finetune.importing import call_trusted
from finetune.models.preprocessing import ImagePreprocessing, Preprocessing

Origins = dict[str, str]
"""Names of columns, each with words on where it comes from."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Joins columns of numbers into one column of float32 vectors."""

    columns: tuple[str, ...]
    name: str
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Return one sample with its numbers joined to `(D,)`."""
        parts = [self._flat(name, sample[name]).reshape(-1) for name in self.columns]
        return replaced(sample, self.columns, {self.name: torch.cat(parts)})

    def whole(self, columns: Columns) -> Columns:
        """Return the columns, `(N,)` or `(N, ...)` each, joined to `(N, D)`."""
        parts: list[Tensor | OneHot] = []
        for name in self.columns:
            column = columns[name]
            if isinstance(column, Vectors):
                parts += column.parts
            else:
                parts.append(self._flat(name, numbers_of(column)))
        joined = Vectors(tuple(parts))
        # One-hot vectors are made when they are fetched; what has none is joined once and for all.
        has_one_hot = any(isinstance(part, OneHot) for part in parts)
        made = joined if has_one_hot else joined.whole()
        return replaced(columns, self.columns, {self.name: made})

    def _flat(self, name: str, values: object) -> Tensor:
        """Return numbers as float32; raise for anything else."""
        if not isinstance(values, Tensor):
            raise DataError(
                f"stack needs numbers, column {name!r} holds none",
                hint=words_as_numbers(name),
                key=self.key,
            )
        return values.float()


@dataclass(frozen=True, slots=True)
class Imported:
    """The user's own function from sample to sample."""

    function: Callable[[Sample], Any]
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Return what the function makes of a copy of the sample."""
        # A copy, since the function may add or remove columns.
        result = self.function(dict(sample))
        if not isinstance(result, Mapping):
            raise DataError(
                f"the transform returned {type(result).__name__}, not a sample (a dict)",
                key=self.key,
            )
        return dict(result)


Step = Stack | Tokenize | Vision | MaskTokens | SpecAugment | FittedStep | Imported
"""One step from a raw sample towards what the network takes; the sample itself is not changed."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, whether two calls on one sample may differ, and what it was made from."""

    step: Step
    random: bool
    node: Transform


def plan_steps(
    transforms: Sequence[Transform],
    inputs: Mapping[str, Prepared],
    preprocessing: Preprocessing,
    *,
    trust: Collection[str],
    keys: Sequence[Key],
) -> list[PlannedStep]:
    """Return the steps that config nodes name.

    Args:
        transforms: The config nodes, in order.
        inputs: The raw columns.
        preprocessing: Tokenizer, image mean and std that the network was pretrained with.
        trust: Names of packages whose code may be imported.
        keys: Where each node stands in the config.

    Raises:
        DataError: a column is missing, a class does not accept an argument, or a step would
            replace a column that is in use.
    """
    planned: list[PlannedStep] = []
    texts = [name for name, column in inputs.items() if is_text(column)]
    # Followed through all steps before any runs: a missing column is told in a second, not after an
    # hour.
    columns: Origins | None = dict.fromkeys(inputs, "an input")
    singly = tokenized_singly(texts, preprocessing)
    for written, here in zip(transforms, keys, strict=True):
        for node in nodes_for_each(written, _texts_left(texts, columns), singly):
            # Behind a step of the user's own, nothing better than the columns of the data is known.
            known = tuple(inputs if columns is None else columns)
            left = _texts_left(texts, columns)
            before = [each.step for each in planned]
            step = _step(node, known, left, preprocessing, trust, here, before, singly)
            columns = _columns_after(step, columns, here)
            planned.append(PlannedStep(step, is_random(node), node))
    return planned


def _texts_left(texts: Sequence[str], columns: Origins | None) -> Sequence[str]:
    """Return the columns that are text still: what a step made of a text is not."""
    return texts if columns is None else [n for n in texts if columns.get(n) == "an input"]


def usual_transforms(
    columns: Mapping[str, Prepared], preprocessing: Preprocessing
) -> tuple[Transform, ...]:
    """Return the transforms where the config names none: those the network was pretrained with.

    Two text columns are a pair, unless a layer names one of them.

    Raises:
        DataError: there are more columns of text.
    """
    nodes: list[Transform] = []
    texts = [name for name, column in columns.items() if is_text(column)]
    if texts and (preprocessing.tokenizer or preprocessing.no_tokenizer):
        singly = tokenized_singly(texts, preprocessing)
        pair = text_or_pair([name for name in texts if name not in singly], ("data", "inputs"))
        # The pair is empty where layers name all texts.
        for one, *others in filter(None, (*((name,) for name in singly), pair)):
            named_columns = {"columns": [one, *others]} if others else {"column": one}
            nodes.append(TokenizeTransform.model_validate({"type": "tokenize", **named_columns}))
    for name, column in columns.items():
        if preprocessing.image is not None and is_image_column(column):
            nodes += _usual_of_images(name, preprocessing.image)
    return tuple(nodes)


def _usual_of_images(column: str, image: ImagePreprocessing) -> list[VisionTransform]:
    """Return size, channels, mean and standard deviation as the network was pretrained with."""
    written: list[dict[str, Any]] = [
        {"type": "Resize", "size": [image.height, image.width]},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", "mean": list(image.mean), "std": list(image.std)},
    ]
    if len(image.mean) == 3:
        # First: grey is widened before it is resized, which gives all three the same bits.
        written.insert(0, {"type": "RGB"})
    return [VisionTransform.model_validate({**node, "column": column}) for node in written]


def numbers_of(column: Prepared) -> Tensor | None:
    """Return the tensor of a column of numbers; None for any other column."""
    return column.values if isinstance(column, Numbers) else None


def _step(
    node: Transform,
    columns: Sequence[str],
    texts: Sequence[str],
    preprocessing: Preprocessing,
    trust: Collection[str],
    key: Key,
    before: Sequence[Step],
    singly: Collection[str],
) -> Step:
    """Return the step that one config node names, after the steps `before`.

    Texts in `singly` are tokenized each by itself.
    """
    match node:
        case TokenizeTransform():
            taken = columns_to_tokenize(node, columns, texts, key)
            prefix = f"{taken[0]}." if len(taken) == 1 and taken[0] in singly else ""
            return tokenize_step(node, taken, preprocessing, key, prefix)
        case StackTransform():
            return Stack(node.columns or tuple(columns), node.name, key)
        case StandardizeTransform() | FillTransform() | CategoriesTransform() | ClipTransform():
            return FittedStep(node, key)
        case ImportTransform():
            return Imported(_imported(node, trust, key), key)
        case VisionTransform():
            return vision_step(node, node.column or columns[0], preprocessing.image, key)
        case _:
            return _augmenting(node, columns, before, key)


def _augmenting(
    node: MaskTokensTransform | SpecAugmentTransform | MixupTransform | CutmixTransform,
    columns: Sequence[str],
    before: Sequence[Step],
    key: Key,
) -> Step:
    """Return a step that masks a part of each sample."""
    match node:
        case MaskTokensTransform():
            return mask_tokens(node, _last_tokenizer(before, key), key)
        case SpecAugmentTransform():
            return SpecAugment(node.column or columns[0], node, key)
        case MixupTransform() | CutmixTransform():
            raise AssertionError("samples of a step are mixed by the stepper")
        case _:
            assert_never(node)


def _last_tokenizer(before: Sequence[Step], key: Key) -> Any:
    """Return the tokenizer of the last step that tokenizes.

    Raises:
        DataError: there is none.
    """
    found = next((step for step in reversed(before) if isinstance(step, Tokenize)), None)
    if found is None:
        raise DataError("mask_tokens masks what tokenize has made, and comes after it", key=key)
    return found.tokenizer


def _imported(node: ImportTransform, trust: Collection[str], key: Key) -> Callable[[Sample], Any]:
    """Return the user's own function from sample to sample."""
    made = call_trusted(node.path, node.args, trust, key=key)
    if not callable(made):
        raise DataError(
            f"{node.path!r} returned {type(made).__name__}; expected a callable of one sample",
            key=(*key, "path"),
        )
    function: Callable[[Sample], Any] = made
    return function


class _Effect(NamedTuple):
    """What a step does to the names of columns."""

    about: str
    """What the step is called in messages."""
    parts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Columns taken, each time with those that take their place."""


def _effect(step: Step) -> _Effect | None:
    """Return what a step does to the names of columns; None for a step of the user's own."""
    match step:
        case Stack():
            return _Effect("stack", ((step.columns, (step.name,)),))
        case Tokenize():
            # The tokenizer decides which outputs there are.
            return _Effect("tokenize", ((step.columns, step.outputs),))
        case Vision() | MaskTokens() | SpecAugment():
            about = "images" if isinstance(step, Vision) else step.name
            return _Effect(about, (((step.column,), (step.column,)),))
        case FittedStep():
            # Each column keeps its place: `stack` without names takes them in this order.
            parts = tuple(((name,), step.given(name)) for name in step.columns)
            return _Effect(step.node.type, parts)
        case Imported():
            return None
        case _:
            assert_never(step)


def taken_by(step: Step) -> set[str] | None:
    """Return the columns that a step takes; None for a step of the user's own."""
    if (effect := _effect(step)) is None:
        return None
    along = step.along if isinstance(step, Vision) else ()
    return {name for taken, _ in effect.parts for name in (*taken, *along)}


def _columns_after(step: Step, columns: Origins | None, key: Key) -> Origins | None:
    """Return the columns that a step leaves, after checking those it takes; None if unknown.

    They are unknown from the first step of the user's own code on.

    Raises:
        DataError: a column is missing, or the step would replace another one.
    """
    if columns is None or (effect := _effect(step)) is None:
        return None
    for name in (name for taken, _ in effect.parts for name in taken):
        if name not in columns:
            raise DataError(
                f"no input column {name!r} here; there are: {', '.join(columns)}",
                hint=did_you_mean(name, columns),
                key=key,
            )
    for taken, given in effect.parts:
        about = f"{effect.about} of {named(taken)}"
        lost = next((name for name in given if name in columns and name not in taken), None)
        if lost is not None:
            raise DataError(
                f"{about} gives {lost!r}, which would replace {lost!r}, {columns[lost]}",
                hint=_other_name(step),
                key=key,
            )
        columns = replaced(columns, taken, dict.fromkeys(given, f"given by {about}"))
    return columns


def _other_name(step: Step) -> str:
    """Return a hint on how the column that a step gives gets another name."""
    match step:
        case Tokenize():
            return "two texts are encoded as a pair: {type: tokenize, columns: [first, second]}"
        case FittedStep():
            return "leave out flag, or that column"
    return "give it a name of its own: {type: stack, name: ...}"
