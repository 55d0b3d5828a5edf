"""What is done to each sample: the steps of `data.transforms`, or those the model calls for.

A step maps a sample (a dict of column to value) to a sample. In a sample numbers are tensors, text
is `str`, an image from a file is a `PIL.Image`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor

from finetune.config.data import (
    ImportTransform,
    StackTransform,
    TokenizeTransform,
    Transform,
    VisionTransform,
    is_random,
)
from finetune.config.messages import shown
from finetune.data.images import Images
from finetune.data.table import Listed, Numbers, Prepared, Ragged, Tokens, infer
from finetune.data.tokens import Tokenizing, TokenStore, tokenizer_facts
from finetune.data.vision import PretrainedImage, Vision, vision_step
from finetune.errors import DataError, Key, did_you_mean
from finetune.importing import call_trusted, package_path, require
from finetune.models.preprocessing import Preprocessing

Sample = dict[str, Any]
Columns = dict[str, Prepared]

_SURROGATE = re.compile("[\ud800-\udfff]")


NOT_A_NUMBER = (
    "words for categories: write a column of 0 and 1 for each word into the file, or leave the "
    "column out of data.inputs; other text: {type: tokenize}"
)
"""Hint for a column of text where the network takes numbers."""


class Step(Protocol):
    """One step of the way from a raw sample to what the network takes."""

    def __call__(self, sample: Sample) -> Sample:
        """Return the transformed sample; the given one is left as it is."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, and whether two calls on one sample may differ."""

    step: Step
    random: bool


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Text to `input_ids`, `attention_mask` and whatever else the tokenizer gives."""

    column: str
    max_length: int
    pad_to_max: bool
    tokenizer: Any
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Tokenize the text of one sample."""
        text = sample[self.column]
        if not isinstance(text, str):
            raise self._no_text(type(text).__name__)
        encoded = {name: values[0] for name, values in self._encode([text]).items()}
        tokens = {name: self._tokens(name, ids) for name, ids in encoded.items()}
        return replaced(sample, (self.column,), tokens)

    def whole(self, columns: Columns, store: TokenStore | None) -> Columns:
        """Tokenize every text of the column, but for those that `store` knows."""
        column = columns[self.column]
        if not isinstance(column, Listed) or column.kind == "things":
            raise self._no_text("numbers" if isinstance(column, Numbers) else "no text")
        return replaced(columns, (self.column,), self._stored(column, store) or self._made(column))

    def _stored(self, column: Listed, store: TokenStore | None) -> dict[str, Ragged] | None:
        if store is None:
            return None
        tokenizing = Tokenizing(
            self._encode, self.max_length, lambda: tokenizer_facts(self.tokenizer)
        )
        found = store.sequences(column, tokenizing)
        if found is None:
            return None
        return {
            name: Ragged.flat(*tokens, pad=self._pad(name), length=self._length)
            for name, tokens in found.items()
        }

    def _made(self, column: Listed) -> dict[str, Ragged]:
        return {
            name: Ragged.of(ids, pad=self._pad(name), length=self._length)
            for name, ids in self._encode(list(column.values)).items()
        }

    @property
    def _length(self) -> int | None:
        return self.max_length if self.pad_to_max else None

    def _encode(self, texts: list[str]) -> dict[str, list[list[int]]]:
        try:
            return dict(self.tokenizer(texts, truncation=True, max_length=self.max_length))
        except (TypeError, UnicodeEncodeError) as error:
            # JSON may hold half of a pair of surrogates, which is no text in any encoding
            broken = next(filter(_SURROGATE.search, texts), None)
            if broken is None:
                raise
            found = f"{shown(broken)}, which holds half a character"
            raise self._no_text(found) from error

    def _tokens(self, name: str, ids: list[int]) -> Tokens:
        return Tokens(torch.tensor(ids, dtype=torch.int64), self._pad(name), self._length)

    def _pad(self, name: str) -> int:
        """Return what fills up the output `name`. The mask hides it where there is no own token."""
        if name == "input_ids":
            known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
            return int(next(number for number in known if number is not None))
        return int(self.tokenizer.pad_token_type_id) if name == "token_type_ids" else 0

    def _no_text(self, found: str) -> DataError:
        return DataError(f"tokenize needs text, column {self.column!r} holds {found}", key=self.key)


@dataclass(frozen=True, slots=True)
class Stack:
    """Columns of numbers side by side in one column of float32 vectors."""

    columns: tuple[str, ...]
    name: str
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Join the numbers of one sample to `(D,)`."""
        parts = [self._flat(name, sample[name]).reshape(-1) for name in self.columns]
        return replaced(sample, self.columns, {self.name: torch.cat(parts)})

    def whole(self, columns: Columns) -> Columns:
        """Join whole columns `(N,)` or `(N, ...)` to `(N, D)`."""
        parts = [
            self._flat(name, numbers_of(columns[name])).reshape(len(columns[name]), -1)
            for name in self.columns
        ]
        return replaced(columns, self.columns, {self.name: Numbers(torch.cat(parts, dim=1))})

    def _flat(self, name: str, values: object) -> Tensor:
        if not isinstance(values, Tensor):
            raise DataError(
                f"stack needs numbers, column {name!r} holds none",
                hint=NOT_A_NUMBER,
                key=self.key,
            )
        return values.float()


@dataclass(frozen=True, slots=True)
class Imported:
    """The user's own function from sample to sample."""

    function: Callable[[Sample], Any]
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Call the function with a copy of the sample."""
        result = self.function(dict(sample))
        if not isinstance(result, Mapping):
            raise DataError(
                f"the transform returned {type(result).__name__}, not a sample (a dict)",
                key=self.key,
            )
        return dict(result)


def plan_steps(
    transforms: Sequence[Transform],
    inputs: Sequence[str],
    preprocessing: Preprocessing,
    *,
    trust: Collection[str],
    key: Key,
) -> list[PlannedStep]:
    """Make the steps that `transforms` name.

    Args:
        transforms: The config nodes, in order.
        inputs: The raw columns.
        preprocessing: What the pretrained network was fed with: its tokenizer, image mean and std.
        trust: Names of packages whose code may be imported.
        key: Where the nodes stand in the config.

    Raises:
        DataError: a column is not there, or an argument makes no sense to the class it is for.
    """
    planned: list[PlannedStep] = []
    columns: tuple[str, ...] | None = tuple(inputs)
    for position, node in enumerate(transforms):
        here = (*key, position)
        step = _step(node, columns or tuple(inputs), preprocessing, trust, here)
        columns = _columns_after(step, columns, here)
        planned.append(PlannedStep(step, is_random(node)))
    return planned


def usual_steps(columns: Mapping[str, Prepared], preprocessing: Preprocessing) -> list[PlannedStep]:
    """Return the steps where the config names none: those the network was pretrained with."""
    steps: list[Step] = []
    for name, column in columns.items():
        if isinstance(column, Listed) and column.kind != "things" and preprocessing.tokenizer:
            node = TokenizeTransform(type="tokenize", column=name)
            if column.kind == "text" or isinstance(infer(column), Listed):
                steps.append(_tokenize(node, name, preprocessing, ("data", "inputs")))
        elif preprocessing.image is not None and is_image_column(column):
            steps.append(PretrainedImage(name, preprocessing.image))
    return [PlannedStep(step, random=False) for step in steps]


def is_image_column(column: Prepared) -> bool:
    """Tell whether a column holds images: from files, or arrays `(C, H, W)`, or uint8 `(H, W)`."""
    if isinstance(column, Numbers):
        shape = column.values.shape[1:]
        is_grey = len(shape) == 2 and column.values.dtype == torch.uint8
        return is_grey or (len(shape) == 3 and shape[0] in (1, 3, 4))
    return isinstance(column, Images)


def numbers_of(column: Prepared) -> Tensor | None:
    """Return the tensor of a column of numbers, None for another column."""
    return column.values if isinstance(column, Numbers) else None


def replaced(
    old: Mapping[str, Any], names: Collection[str], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `old` with `new` in the place of the first of `names`, and without the others."""
    result: dict[str, Any] = {}
    for name, value in old.items():
        if name not in names:
            result[name] = value
        elif not new.keys() <= result.keys():
            result.update(new)
    return result


def _step(
    node: Transform,
    columns: Sequence[str],
    preprocessing: Preprocessing,
    trust: Collection[str],
    key: Key,
) -> Step:
    match node:
        case TokenizeTransform():
            return _tokenize(node, node.column or columns[0], preprocessing, key)
        case StackTransform():
            return Stack(node.columns or tuple(columns), node.name, key)
        case ImportTransform():
            return Imported(_imported(node, trust, key), key)
        case VisionTransform():
            return vision_step(node, node.column or columns[0], preprocessing.image, key)
        case _:
            assert_never(node)


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


def _columns_after(step: Step, columns: tuple[str, ...] | None, key: Key) -> tuple[str, ...] | None:
    """Check the columns a step takes and return those it leaves; None once nobody can know."""
    if columns is None:
        return None
    match step:
        case Stack():
            taken, given = step.columns, (step.name,)
        case Tokenize():
            taken, given = (step.column,), tuple(step.tokenizer.model_input_names)
        case Vision():
            taken = given = (step.column,)
        case _:
            return None
    for name in taken:
        if name not in columns:
            raise DataError(
                f"no input column {name!r} here; there are: {', '.join(columns)}",
                hint=did_you_mean(name, columns),
                key=key,
            )
    return tuple(replaced(dict.fromkeys(columns), taken, dict.fromkeys(given)))


def _tokenize(
    node: TokenizeTransform, column: str, preprocessing: Preprocessing, key: Key
) -> Tokenize:
    name = node.tokenizer or preprocessing.tokenizer
    if name is None:
        raise DataError(
            "no transformers layer to take the tokenizer from",
            hint="name one: {type: tokenize, tokenizer: ...}",
            key=key,
        )
    tokenizer = _load_tokenizer(str(_resolved(name, key)), key)
    return Tokenize(column, node.max_length, node.padding == "max_length", tokenizer, key)


def _resolved(name: str, key: Key) -> Any:
    return package_path(name, key=(*key, "tokenizer")) if name.startswith("package:") else name


def _load_tokenizer(name: str, key: Key) -> Any:
    transformers = require("transformers", extra="text")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            name, use_fast=True, trust_remote_code=False
        )
    except Exception as error:  # `tokenizers` raises it bare over a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"cannot load the tokenizer {name!r}: {reason}", key=key) from error
