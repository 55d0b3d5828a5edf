"""Small modules that connect declared layers: merging, pooling, chaining."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


class Chain(nn.Sequential):
    """Layers in sequence; if one returns a tuple, the next takes its first element."""

    def forward(self, input: Any) -> Any:
        """Return the output of the last layer."""
        for layer in self:
            input = first_of(layer(input))
        return input


def first_of(output: Any) -> Any:
    """Return the first element of a tuple, and anything else unchanged."""
    return output[0] if isinstance(output, tuple) else output


def check_merge(module: Add | Concat, tensors: Sequence[Tensor], *, label: str, key: Key) -> None:
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
