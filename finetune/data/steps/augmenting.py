"""Random steps of our own: masked tokens of a text, and masked bands of a spectrogram.

Letters: L tokens, F frequencies, T points in time.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from finetune.config.transform_keys import MaskTokensTransform, SpecAugmentTransform
from finetune.data.ragged import Tokens
from finetune.data.samples import Sample
from finetune.errors import DataError, Key


@dataclass(frozen=True, slots=True)
class MaskTokens:
    """Replaces random tokens of a text by the mask token, but never a special one."""

    name: ClassVar[str] = "mask_tokens"
    column: str
    probability: float
    mask: int
    special: tuple[int, ...]
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Return one sample in which each token was masked with the probability."""
        tokens = sample.get(self.column)
        if not isinstance(tokens, Tokens):
            raise DataError(
                f"mask_tokens needs tokens, column {self.column!r} holds none", key=self.key
            )
        values = tokens.values
        masked = torch.rand(len(values)) < self.probability
        masked &= ~torch.isin(values, torch.tensor(self.special))
        return {
            **sample,
            self.column: replace(tokens, values=values.masked_fill(masked, self.mask)),
        }


def mask_tokens(node: MaskTokensTransform, tokenizer: Any, key: Key) -> MaskTokens:
    """Return the step that masks what `tokenizer` makes.

    Raises:
        DataError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the tokenizer has no mask token",
            hint="those of BERT and its relatives have one, those of decoders have none",
            key=key,
        )
    special = tuple(int(number) for number in tokenizer.all_special_ids)
    mask = int(tokenizer.mask_token_id)
    return MaskTokens(node.column, node.probability, mask, special, key)


@dataclass(frozen=True, slots=True)
class SpecAugment:
    """Masks random bands of frequencies and of time of a spectrogram `(..., F, T)`.

    Park et al., "SpecAugment" (2019), section 2, without the warping of time: a band is `w` wide,
    `w ~ U{0, ..., width}`, and begins at `b ~ U{0, ..., size - w}`.
    """

    name: ClassVar[str] = "spec_augment"
    column: str
    node: SpecAugmentTransform
    key: Key

    def __call__(self, sample: Sample) -> Sample:
        """Return one sample with bands of its spectrogram masked."""
        values = sample[self.column]
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim < 2:
            found = describe(values)
            raise DataError(
                f"spec_augment needs a spectrogram of floats, frequencies before time; column "
                f"{self.column!r} holds {found}",
                key=self.key,
            )
        # Bands are filled in place, and a step leaves its sample as it was.
        node, values = self.node, values.clone()
        for count, width, axis in (
            (node.frequency_masks, node.frequency_width, -2),
            (node.time_masks, node.time_width, -1),
        ):
            for _ in range(count):
                _mask_band(values, axis, width, node.fill)
        return {**sample, self.column: values}


def describe(value: object) -> str:
    """Return type and shape of a value of a sample, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__


def _mask_band(values: Tensor, axis: int, width: int, fill: float) -> None:
    """Fill a random band of one axis, in place."""
    size = values.shape[axis]
    # No wider than the axis; each width up to that has the same probability.
    wide = int(torch.randint(min(width, size) + 1, ()))
    begin = int(torch.randint(size - wide + 1, ()))
    values.narrow(axis, begin, wide).fill_(fill)
