"""Small modules that connect declared layers: merging, pooling, chaining."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import Key, ModelError
from finetune.models.shapes import describe

# Shapes: B samples, T tokens, D features, C channels, H and W height and width.


class Add(nn.Module):
    """The sum of tensors of equal shape."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the sum of `tensors`, which have equal shapes."""
        total = tensors[0]
        for tensor in tensors[1:]:
            total = total + tensor
        return total


class Concat(nn.Module):
    """Tensors joined along one axis.

    Args:
        dim: The axis; 0 is the samples.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the `tensors` joined; they are equal in all other axes."""
        return torch.cat(tensors, dim=self.dim)

    def extra_repr(self) -> str:
        """Return the text that `print` shows in brackets."""
        return f"dim={self.dim}"


class SideBySide(nn.Module):
    """Tensors of equal shape side by side, along a new axis behind the samples."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the `tensors` `(B, ...)` as one, `(B, number of tensors, ...)`."""
        return torch.stack(tensors, dim=1)


class Affine(nn.Module):
    """A tensor times a constant plus a constant, none of them trained.

    Args:
        scale: The factor, or one for each place of the last axis.
        shift: What is added, likewise.
    """

    def __init__(self, scale: float | Sequence[float], shift: float | Sequence[float]) -> None:
        super().__init__()
        self.scale = scale
        self.shift = shift

    def forward(self, value: Tensor) -> Tensor:
        """Return `scale * value + shift`, `(B, ...)` as `value`."""
        # No buffers: these numbers come from the config, and a checkpoint need not hold them.
        return value * value.new_tensor(self.scale) + value.new_tensor(self.shift)

    def extra_repr(self) -> str:
        """Return the text that `print` shows in brackets."""
        return f"scale={self.scale}, shift={self.shift}"


class MeanPooling(nn.Module):
    """The mean over real tokens, or over the area of a feature map."""

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `(B, D)`: the mean of `hidden` `(B, T, D)` over tokens with `mask` 1.

        A sample without real tokens gives zeros. Feature maps `(B, C, H, W)` give `(B, C)`.

        Args:
            hidden: Last hidden states.
            mask: `(B, T)`, 1 for real tokens and 0 for padding. All tokens are real if left out.
        """
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        if mask is None:
            return hidden.mean(dim=1)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        # `clamp`: a text without tokens would be divided by zero, and NaN spreads to all weights.
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class FirstToken(nn.Module):
    """The state of the first token, which many encoders train to represent the whole text."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `(B, D)`: the first token of `hidden`, which is `(B, T, D)`."""
        return hidden[:, 0]


class LastToken(nn.Module):
    """The state of the last token, the only one of a decoder that has seen the whole text."""

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `(B, D)`: of `hidden` `(B, T, D)` the last token with `mask` 1.

        Padding may be on either side. A sample without real tokens gives its first position.

        Args:
            hidden: Last hidden states.
            mask: `(B, T)`, 1 for real tokens and 0 for padding. All tokens are real if left out.
        """
        if mask is None:
            return hidden[:, -1]
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask.ne(0) * places).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


class FilledPadding(nn.Module):
    """Token numbers with one number wherever the mask says padding.

    Args:
        token: That number.
    """

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return `ids` `(B, T)` with `token` wherever `mask` is 0, which means padding."""
        return ids.masked_fill(mask == 0, self.token)


class PaddingMask(nn.Module):
    """Where tokens are padding, as attention layers of torch take it."""

    def forward(self, mask: Tensor) -> Tensor:
        """Return `(B, T)` bool, True where `mask` is 0."""
        return mask == 0


class SpanLogits(nn.Module):
    """The logits of the start and of the end of a span, side by side."""

    def forward(self, start: Tensor, end: Tensor) -> Tensor:
        """Return `(B, T, 2)` for the logits of both ends, `(B, T)` each."""
        return torch.stack((start, end), dim=-1)


class ResizedLogits(nn.Module):
    """The logits of a coarse grid, brought to the size of the image."""

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return `logits` `(B, C, h, w)` as `(B, C, H, W)`, by linear interpolation."""
        return functional.interpolate(logits, size=image.shape[-2:], mode="bilinear")


class Chain(nn.Sequential):
    """Layers in sequence; if one returns a tuple, the next takes its first element."""

    def forward(self, input: Any) -> Any:
        """Return the output of the last layer."""
        for layer in self:
            input = first_of(layer(input))
        return input


def picked(output: Any, place: str) -> Any:
    """Return one of several outputs of a layer, by its place: `2`, `1.0` or `mask`.

    A number counts in a list or tuple, from 0; any other word is a key of a mapping.

    Raises:
        LookupError: there is no such output. Its text is what there is.
    """
    for word in place.split("."):
        if isinstance(output, Mapping) and word in output:
            output = output[word]
        elif isinstance(output, list | tuple) and word.isdecimal() and int(word) < len(output):
            output = output[int(word)]
        else:
            raise LookupError(_places(output))
    return output


def _places(output: Any) -> str:
    """Return in words by which places the outputs of a layer are named."""
    if isinstance(output, Mapping):
        return f"has the outputs {', '.join(map(repr, output))}"
    if isinstance(output, list | tuple):
        return f"has the outputs 0 to {len(output) - 1}"
    return f"has one output, {describe(output)}"


def first_of(output: Any) -> Any:
    """Return the first element of a tuple, and anything else unchanged."""
    return output[0] if isinstance(output, tuple) else output


def check_merge(
    module: Add | Concat | SideBySide, tensors: Sequence[Tensor], *, label: str, key: Key
) -> None:
    """Raise if `module` cannot merge tensors, or if torch would merge them by broadcasting.

    Raises:
        ModelError: their shapes do not match.
    """
    shapes = [list(tensor.shape) for tensor in tensors]
    wish = "inputs of one shape"
    if isinstance(module, Concat):
        dim = module.dim
        # Axis 0 is the samples: joined along it, a batch would have twice as many.
        if not all(-len(shape) < dim < len(shape) and dim != 0 for shape in shapes):
            wish = f"inputs that have an axis {dim} beside the samples"
            raise ModelError(f"{label}: takes {wish}, got {describe(*tensors)}", key=(*key, "dim"))
        wish = f"inputs equal in every axis but {dim}"
        for shape in shapes:
            # The one axis in which they may differ.
            shape[dim] = 0
    if any(shape != shapes[0] for shape in shapes):
        raise ModelError(f"{label}: takes {wish}, got {describe(*tensors)}", key=key)


def check_affine(
    numbers: Sequence[float | Sequence[float]], inputs: Sequence[Tensor], *, label: str, key: Key
) -> None:
    """Raise `ModelError` unless there is one input, and lists of numbers fit its last axis.

    Args:
        numbers: Scale and shift.
        inputs: What the layer takes.
        label: The layer, for messages.
        key: Its position in the config.
    """
    if len(inputs) != 1 or inputs[0].ndim < 2:
        got = ", ".join(map(describe, inputs))
        raise ModelError(f"{label}: takes one tensor (N, ...), got {got}", key=key)
    width = inputs[0].shape[-1]
    for name, given in zip(("scale", "shift"), numbers, strict=True):
        # A list that does not fit would broadcast, and make more outputs than there are.
        if not isinstance(given, int | float) and len(given) != width:
            message = (
                f"{label}: {name} has {len(given)} numbers, its input {width} in its last axis"
            )
            raise ModelError(message, key=(*key, name))
