"""Networks whose frozen prefix is not a straight line, or cannot be stored, and why."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def some_digits() -> dict[str, Tensor]:
    """Return 330 digits: in batches of 32 the last one of an epoch is short."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:330]).float().unsqueeze(1) / 16
    return {"image": images, "label": torch.from_numpy(digits.target[:330])}


def conv(ins: int, outs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU())


class UNet(nn.Module):
    """An encoder whose stages are joined, across the boundary, with those of a decoder."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(1, 8), conv(8, 12), conv(12, width)
        self.up2, self.up1 = conv(width + 12, 12), conv(12 + 8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, image: Tensor) -> Tensor:
        one = self.down1(image)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        bottom = self.middle(nn.functional.max_pool2d(two, 2))
        up = self.up2(torch.cat([nn.functional.interpolate(bottom, scale_factor=2), two], 1))
        up = self.up1(torch.cat([nn.functional.interpolate(up, scale_factor=2), one], 1))
        return self.head(up.mean((2, 3)))


class Straight(nn.Module):
    """Three layers, one after the other."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh())
        self.two = nn.Sequential(nn.Linear(48, 32), nn.Tanh())
        self.head = nn.Linear(32, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.two(self.one(image)))


class Twice(nn.Module):
    """One frozen module called three times, each time on something else."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(128, classes)

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        one = self.body(flat)
        two = self.body(one * 2)
        return self.head(torch.cat([two, self.body(flat.flip(1))], 1))


SEEN: dict[str, list[bool]] = {"body": [], "head": []}


class _Telling(nn.Module):
    def __init__(self, name: str, ins: int, outs: int) -> None:
        super().__init__()
        self.name, self.linear = name, nn.Linear(ins, outs)

    def forward(self, values: Tensor) -> Tensor:
        SEEN[self.name].append(torch.compiler.is_compiling())
        return self.linear(values)


class TellsWhatIsCompiled(nn.Module):
    """Notes in `SEEN` whether a call of its parts was compiled code."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = _Telling("body", 64, 32), _Telling("head", 32, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)).relu())


@dataclass
class Parts:
    low: Tensor
    high: Tensor
    names: tuple[str, ...]


class InPlace(nn.Module):
    """A frozen module that gives a dataclass, changed in place by the network behind it."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(64, 32), nn.Linear(64, 32)

        def forward(self, flat: Tensor) -> Parts:
            return Parts(self.low(flat), self.high(flat), ("low", "high"))

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(32, classes)

    def forward(self, image: Tensor) -> Tensor:
        parts = self.body(image.flatten(1))
        parts.low.mul_(parts.high.sigmoid_())
        parts.low[:, 0] += 1
        return self.head(parts.low)


class Noisy(nn.Module):
    """Dropout that no mode turns off."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image, 0.5, training=True)


class Dropping(nn.Module):
    """A frozen layer and a dropout in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        return self.drop(self.linear(image))


class Normed(nn.Module):
    """A batch norm by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(image)


class Deep(nn.Module):
    """As many rounds as the first sample says."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(64, 64)

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        for _ in range(1 + int(flat[0].sum().abs() * 1000) % 5):
            flat = self.step(flat).tanh()
        return flat


class AcrossBatch(nn.Module):
    """Samples that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(64, 16)

    def forward(self, image: Tensor) -> Tensor:
        key = self.key(image.flatten(1))
        return (key @ key.T).softmax(1) @ key


class Headed(nn.Module):
    """A frozen body, some layers that go with it, and a head."""

    def __init__(self, body: str, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 3, padding=1)
        self.body = globals()[body]()
        self.head = nn.LazyLinear(classes)
        with torch.no_grad():
            self(torch.zeros(2, 1, 8, 8))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(self.stem(image)).flatten(1))


class Reader(nn.Module):
    """A small transformer on tokens, with a trained layer on top of a frozen one."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool, self.embed = pool, nn.Embedding(30522, 16)
        self.query, self.value = nn.Linear(16, 16), nn.Linear(16, 16)
        self.bottom = Attention(self.query, self.value)
        self.top = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
        hidden = self.bottom(self.embed(input_ids), attention_mask)
        if self.pool == "first":
            return self.top(hidden[:, 0])
        if self.pool == "tokens":
            hidden = self.top(hidden).tanh()
        weight = attention_mask.unsqueeze(-1).float()
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        return pooled if self.pool == "tokens" else self.top(pooled)


class Attention(nn.Module):
    """Tokens that attend to each other, but not to padding."""

    def __init__(self, query: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.query, self.value = query, value

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(hidden) @ hidden.transpose(1, 2)
        scores = scores.masked_fill(mask[:, None] == 0, float("-inf"))
        return (hidden + scores.softmax(-1) @ self.value(hidden)).tanh()
