"""The networks by hand, with the parameter names of the configs, and cut where a border lies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contest.cases import Boundary
from contest.job import Job

Inputs = Mapping[str, Tensor]
Suffix = Callable[[Tensor, Inputs], Tensor]
"""What follows a border: from the stored tensor and the remaining inputs to the outputs."""


class Text(nn.Module):
    """A sentence encoder, the mean over its tokens, a head."""

    def __init__(self, options: Mapping[str, Any], classes: int) -> None:
        from transformers import AutoModel  # not needed by the other cases, and slow to import

        super().__init__()
        self.encoder: Any = AutoModel.from_pretrained(options["weights"], add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the outputs `(B, C)`."""
        hidden = self.encoder(**inputs).last_hidden_state
        outputs: Tensor = self.head(_mean(hidden, inputs["attention_mask"]))
        return outputs

    def at_borders(self, inputs: Inputs, boundaries: Sequence[Boundary]) -> list[Tensor]:
        """Return what the network holds at each border."""
        blocks, found = self.encoder.encoder.layer, []
        for border in boundaries:
            below = blocks if border == "pooled" else blocks[:border]
            self.encoder.encoder.layer = below
            hidden = self.encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"]
            found.append(_mean(hidden, mask) if border == "pooled" else hidden)
        self.encoder.encoder.layer = blocks
        return found

    def suffix(self, border: Boundary) -> Suffix:
        """Return what follows a border."""
        if border == "pooled":
            return lambda stored, inputs: self.head(stored)

        def run(stored: Tensor, inputs: Inputs) -> Tensor:
            from transformers.masking_utils import create_bidirectional_mask

            mask = create_bidirectional_mask(
                config=self.encoder.config,
                inputs_embeds=stored,
                attention_mask=inputs["attention_mask"],
            )
            for block in self.encoder.encoder.layer[border:]:
                stored = block(stored, mask)
            outputs: Tensor = self.head(_mean(stored, inputs["attention_mask"]))
            return outputs

        return run


class Image(nn.Module):
    """EfficientNet-Lite0 with a head of its own."""

    def __init__(self, options: Mapping[str, Any], classes: int) -> None:
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]

        super().__init__()
        self.network: Any = EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
        weights = torch.load(options["weights"], weights_only=True)
        for name in ("_fc.weight", "_fc.bias"):
            weights.pop(name)
        self.network.load_state_dict(weights, strict=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the outputs `(B, C)`."""
        outputs: Tensor = self.network(image)
        return outputs

    def at_borders(self, inputs: Inputs, boundaries: Sequence[Boundary]) -> list[Tensor]:
        """Return what the network holds at each border, in one pass."""
        network, found = self.network, dict[Boundary, Tensor]()
        numbers = [border for border in boundaries if isinstance(border, int)]
        last = len(network._blocks) if "pooled" in boundaries else max(numbers)
        x = network._swish(network._bn0(network._conv_stem(inputs["image"])))
        for number in range(last):
            found[number] = x
            x = self._block(x, number)
        found[last] = x
        if "pooled" in boundaries:
            found["pooled"] = self._pooled(x)
        return [found[border] for border in boundaries]

    def suffix(self, border: Boundary) -> Suffix:
        """Return what follows a border."""

        def run(stored: Tensor, inputs: Inputs) -> Tensor:
            if border != "pooled":
                assert border is not None
                for number in range(border, len(self.network._blocks)):
                    stored = self._block(stored, number)
                stored = self._pooled(stored)
            outputs: Tensor = self.network._fc(self.network._dropout(stored))
            return outputs

        return run

    def _block(self, x: Tensor, number: int) -> Tensor:
        blocks, rate = self.network._blocks, self.network._global_params.drop_connect_rate
        rate = rate * float(number) / len(blocks) if rate else rate
        outputs: Tensor = blocks[number](x, drop_connect_rate=rate)
        return outputs

    def _pooled(self, x: Tensor) -> Tensor:
        x = self.network._swish(self.network._bn1(self.network._conv_head(x)))
        pooled: Tensor = self.network._avg_pooling(x)
        return pooled.view(len(x), -1)


class Digits(nn.Module):
    """The small convolutional network of `configs/digits.yaml`."""

    def __init__(self, options: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64 * 4 * 4, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the outputs `(B, C)`."""
        for layer in self.children():
            image = layer(image)
        return image


def build(job: Job) -> Text | Image | Digits:
    """Build the network of a job with its first weights."""
    kind: Any = {"text": Text, "image": Image, "digits": Digits}[job.network]
    model: Text | Image | Digits = kind(job.options, job.classes)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in job.start.items():
            parameters[name].copy_(value)
    return model


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real tokens, `(B, T, D)` to `(B, D)`."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
