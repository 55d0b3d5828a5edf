"""The head that a task needs of a whole network, and which class of `transformers` has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from finetune.errors import Key, ModelError
from finetune.models.transformers_package import load_transformers

# Letters: B samples, T tokens, H and W height and width.

HeadKind = Literal["sample", "token", "span", "pixel"]

_CLASSES: dict[HeadKind, tuple[str, ...]] = {
    "sample": ("SequenceClassification", "ImageClassification", "AudioClassification"),
    "token": ("TokenClassification", "AudioFrameClassification"),
    "span": ("QuestionAnswering",),
    "pixel": ("SemanticSegmentation",),
}
"""Ends of the names `AutoModelFor...`: for texts first, then for images, then for sound."""
_OF_IMAGES, _OF_SOUND = "Image", "Audio"
"""Parts of these names."""


@dataclass(frozen=True, slots=True)
class HeadWanted:
    """The head that `output: logits` gives a whole network."""

    kind: HeadKind = "sample"
    """What has logits of its own: each sample `(B, width)`, each token `(B, T, width)`, each token
    as the start and as the end of a span `(B, T, 2)`, or each pixel `(B, width, H, W)`."""
    width: int | None = None
    """Number of logits; None if neither task nor data tells it. A span always has two."""


@dataclass(frozen=True, slots=True)
class OutputWanted:
    """One of several outputs of a network."""

    head: HeadWanted
    """The head, if the layer is a whole network; its width is the number of classes."""
    key: Key
    """Position in the config of what names the layer."""


def auto_with_head(
    config: Any, wanted: HeadWanted, incoming: Sequence[object], *, label: str, key: Key
) -> Any:
    """Return the `AutoModelFor...` of `transformers` that has the wanted head for a config.

    Args:
        config: The network's own config.
        wanted: The head.
        incoming: Inputs of the layer for an example batch. They decide where a network has heads
            for several kinds of input.
        label: The layer's name in messages.
        key: Its position in the config.

    Raises:
        ModelError: `transformers` has no such head for this architecture.
    """
    transformers = load_transformers()
    autos = [getattr(transformers, f"AutoModelFor{name}") for name in _CLASSES[wanted.kind]]
    found = [auto for auto in autos if type(config) in auto._model_mapping]
    if found:
        return next((auto for auto in found if _takes(auto, incoming)), found[0])
    each = "" if wanted.kind == "sample" else f" for each {wanted.kind}"
    raise ModelError(
        f"{label}: transformers has no head for output 'logits'{each} for {config.model_type!r}",
        hint="use output: cls, mean or hidden and a Linear layer behind it",
        key=(*key, "output"),
    )


def _takes(auto: Any, incoming: Sequence[object]) -> bool:
    """Tell whether the inputs are of the kind that a class is for: texts, images or sound."""
    tensors = [value for value in incoming if isinstance(value, Tensor)]
    axes = {tensor.ndim for tensor in tensors if tensor.is_floating_point()}
    kind = "" if not axes else _OF_IMAGES if 4 in axes else _OF_SOUND
    return kind == next((kind for kind in (_OF_IMAGES, _OF_SOUND) if kind in auto.__name__), "")


def token_of_padding(model: Any) -> int | None:
    """Return the token by which the head of a decoder finds the end of a text; else None.

    Such a head takes the last token that is not padding, and knows padding by its number, not by
    the mask. A network that names no such number gets its token for the end of a text, or 0:
    otherwise it takes one text at a time. Mutates the network's config.
    """
    settings = model.config.get_text_config()
    known: int | None = getattr(settings, "pad_token_id", None)
    if model.main_input_name != "input_ids" or (known is not None and not hasattr(model, "score")):
        return None
    if known is None:
        end = getattr(settings, "eos_token_id", None)
        first = end[0] if isinstance(end, list) and end else end
        known = first if isinstance(first, int) and first < settings.vocab_size else 0
        # After the network is built: an embedding would never train the row of its padding.
        settings.pad_token_id = known
    return known
