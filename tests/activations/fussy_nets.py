"""Networks and losses that go by more than a sample: its company, padding, the mode, the phase.

Each has a frozen `body`; what it goes by is told by its docstring.
"""

from dataclasses import dataclass

import torch
from sly_nets import Counting, Net
from torch import Tensor, nn


class Whole(Net):
    """The frozen body alone reads the image."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = nn.Sequential(nn.Flatten(), *self.body)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


class ReadInEvaluation(Whole):
    """The image itself is read behind the body in evaluation mode only."""

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.body(image)
        return self.head(hidden if self.training else hidden + image.mean((1, 2, 3))[:, None])


def brightness_loss():
    """A loss that weighs samples by the brightness of their images."""

    def losses(outputs: Tensor, batch) -> Tensor:
        weights = 0.5 + batch.inputs["image"].mean((1, 2, 3))
        return nn.functional.cross_entropy(outputs, batch.target, reduction="none") * weights

    return losses


class Factored(Net):
    """The frozen body gives a factor beside its rows, the same in all batches but a few."""

    class Body(Counting.Body):
        def __init__(self) -> None:
            super().__init__()
            del self.calls

        def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
            # hardly any image is so bright
            return self.linear(flat), flat.mean(1).max().gt(0.39).float() + 1

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        hidden, factor = self.body(image.flatten(1))
        return self.head(hidden * factor)


class EvaluatedOtherwise(Net):
    """The frozen body is given other values in evaluation than in training."""

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        return self.head(self.body(flat * 2 if self.training else flat))


@dataclass
class Checked:
    """Never empty: it cannot be made anew of nothing."""

    value: Tensor

    def __post_init__(self) -> None:
        if self.value.numel() == 0:
            raise ValueError("is empty")


class CheckedOutput(Net):
    """The frozen body returns something that is particular about what it is made of."""

    class Body(Counting.Body):
        def forward(self, flat: Tensor) -> Checked:
            return Checked(self.linear(flat))

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)).value)


class ShortOfMemory(Net):
    """Memory does not hold what trials of batches take; steps fit."""

    def forward(self, image: Tensor) -> Tensor:
        if not torch.is_autocast_cache_enabled():  # only so in those trials
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(image)


class Attending(nn.Module):
    """The frozen body leaves its mask out where no text is filled up, as `transformers` do."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(31000, 16), nn.Linear(16, 16)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            hidden = self.linear(self.table(ids))
            return hidden if mask.all() else hidden * (1 + 2**-20) * mask[..., None]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(16, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Tensor:
        return self.head(self.body(input_ids, attention_mask).sum(1))


class Unpacked(Attending):
    """The frozen body gives as many tokens as the longest text has, however far it is filled up."""

    class Body(Attending.Body):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            longest = int(mask.sum(1).max())
            return self.linear(self.table(ids[:, :longest])) * mask[:, :longest, None]
