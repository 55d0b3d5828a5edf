"""Networks whose frozen parts are not what they look like, and such as only look difficult.

Each has a frozen `body`; what it does to betray a store is told by its docstring.
"""

import random
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A frozen body and a trained head on 8 x 8 images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32))
        self.head = nn.Linear(32, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)))


class Detached(Net):
    """The frozen body is fed with what a trained layer gives, detached."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.stem = nn.Linear(64, 64)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image.flatten(1))
        return self.head(self.body(stem.detach())) + stem[:, :10].pow(2).mean(1, keepdim=True)


class WithoutGrad(Detached):
    """The same, by no_grad."""

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image.flatten(1))
        with torch.no_grad():
            hidden = self.body(stem)
        return self.head(hidden) + stem[:, :10].pow(2).mean(1, keepdim=True)


class ByChoice(Net):
    """The frozen body gets whole numbers that trained weights choose."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.choice, self.body = nn.Linear(64, 16), nn.Embedding(16, 32)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.choice(image.flatten(1))
        return self.head(self.body(scores.argmax(1))) + scores.mean()


class Scaled(Net):
    """A trained number reaches the frozen body through Python."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1) * self.scale.item())) * self.scale


class HandingOn(Net):
    """Beside frozen outputs, the body returns a trained number itself, detached."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(64, 32), nn.Parameter(torch.ones(()))

        def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(flat), self.scale.detach()

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        hidden, scale = self.body(image.flatten(1))
        return self.head(hidden * scale) * self.body.scale


class Counting(Net):
    """The frozen body keeps a number from call to call, and goes by it in the end."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(64, 32), 0

        def forward(self, flat: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(flat) * (1 if self.calls < 15 else 2)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()


class Averaging(Net):
    """The frozen body keeps a running mean in a plain tensor."""

    class Body(Counting.Body):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.zeros(64)

        def forward(self, flat: Tensor) -> Tensor:
            self.mean.lerp_(flat.mean(0), 0.1)
            return self.linear(flat - self.mean)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()


class Sloping(Net):
    """The trained part asks autograd for a slope in the middle of the forward pass."""

    def forward(self, image: Tensor) -> Tensor:
        scores = self.head(self.body(image.flatten(1)))
        if not self.training:
            return scores
        (slope,) = torch.autograd.grad(scores.logsumexp(1).sum(), scores, create_graph=True)
        return scores + slope


class Saving(Net):
    """The frozen body leaves a tensor in an attribute, where the rest finds it."""

    class Body(Counting.Body):
        def forward(self, flat: Tensor) -> Tensor:
            self.saved = self.linear(flat).tanh()
            return self.saved.sin()

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)) + self.body.saved * 2)


class Hooked(Net):
    """A hook keeps what a layer inside the frozen body gives, as feature extractors do."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.kept: list[Tensor] = []
        self.body[1].register_forward_hook(lambda module, args, output: self.kept.append(output))

    def forward(self, image: Tensor) -> Tensor:
        self.kept.clear()
        return self.head(self.body(image.flatten(1)) + self.kept[0])


class Stepping(Net):
    """The trained part counts its calls and goes by them: trials must not count."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.calls, self.mean, self.seen = 0, torch.zeros(()), []

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        hidden = self.body(image.flatten(1))
        self.mean.lerp_(hidden.mean(), 0.1)
        return self.head(hidden) * (1 + 0.01 * self.calls) + self.mean + 0.01 * len(self.seen)


class Spoiling(Net):
    """The network changes its input in place."""

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.mul_(2).sub_(0.5).flatten(1)))


class SelfDrawing(Net):
    """The frozen body draws random numbers that it does not use, before a trained dropout."""

    class Body(Counting.Body):
        def forward(self, flat: Tensor) -> Tensor:
            torch.rand(())
            return self.linear(flat)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body, self.drop = self.Body(), nn.Dropout(0.3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.body(image.flatten(1))))


class Sized(Net):
    """The frozen body returns the number of samples beside its tensor."""

    class Body(Counting.Body):
        def forward(self, flat: Tensor) -> tuple[Tensor, int]:
            return self.linear(flat), len(flat)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        hidden, size = self.body(image.flatten(1))
        return self.head(hidden) * (1 + 1 / size)


class Routed(Net):
    """Samples go through one of two frozen bodies each, as in a mixture of experts."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.dark, self.bright = nn.Linear(64, 32), nn.Linear(64, 32)
        self.body = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        # hardly any image is so bright: a few samples may all go one way
        is_bright = flat.mean(1) > 0.39
        hidden = torch.zeros(len(flat), 32)
        hidden[~is_bright] = self.dark(flat[~is_bright])
        if is_bright.any():
            hidden[is_bright] = self.bright(flat[is_bright])
        return self.head(hidden)


@dataclass
class Levels:
    low: Tensor
    high: tuple[Tensor, dict[str, Tensor]]


class Branches(Net):
    """The frozen body has branches and returns tuples, dicts and dataclasses of them."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.side = (nn.Linear(64, 32) for _ in range(3))

        def forward(self, flat: Tensor) -> Levels:
            high = self.high(flat).relu()
            return Levels(self.low(flat), (high, {"side": self.side(flat), "again": high}))

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        levels = self.body(image.flatten(1))
        high, rest = levels.high
        # the very same tensor under two names: a change of one is a change of both
        high.add_(1)
        return self.head(levels.low * rest["again"] + rest["side"].abs_())


class PassedOn(Net):
    """A frozen module hands on its input, which is changed in place and read again."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body, self.same = nn.Linear(64, 32), nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.body(image.flatten(1))
        same = self.same(hidden)
        self.act(hidden)
        same += 0.5
        return self.head(hidden + same)


class Laid(Net):
    """The frozen body leaves its axes in another order in memory, as channels-last nets do."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = nn.Conv2d(1, 8, 3, padding=1).to(memory_format=torch.channels_last)
        self.top = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.body(image.contiguous(memory_format=torch.channels_last))
        assert hidden.is_contiguous(memory_format=torch.channels_last)
        return self.head(self.top(hidden).relu().mean((2, 3)))


class Recurrent(Net):
    """A frozen recurrent network, of which only the last output is used."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = nn.GRU(8, 32, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image[:, 0])[0][:, -1])


class Inferring(Net):
    """The frozen body runs in inference mode."""

    def forward(self, image: Tensor) -> Tensor:
        with torch.inference_mode():
            hidden = self.body(image.flatten(1))
        return self.head(hidden.clone())


class ThawedOtherwise(Net):
    """A body that doubles a value between frozen layers while it is in training mode."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.between(self.one(x).tanh())).tanh())

        def between(self, x: Tensor) -> Tensor:
            return x * 2 if self.training else x

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()


class ThawedRarely(ThawedOtherwise):
    """A body that cuts off a value between frozen layers, of very few samples, in training mode."""

    class Body(ThawedOtherwise.Body):
        def between(self, x: Tensor) -> Tensor:
            return x.clamp(-0.9, 0.9) if self.training else x


class ThawedAtRandom(ThawedOtherwise):
    """A body that drops values between frozen layers while it is in training mode."""

    class Body(ThawedOtherwise.Body):
        def between(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)


class Shifting(Net):
    """The frozen body is given what is left of a mean that moves with every batch."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        hidden = self.body(x - self.mean)
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.head(hidden)


class ShiftingAttribute(Net):
    """The same with a plain attribute, that every batch sets anew."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.mean = torch.zeros(64)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        hidden = self.body(x - self.mean)
        if self.training:
            self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return self.head(hidden)


class ShiftingNumber(Shifting):
    """The same with a number that Python makes of the mean."""

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        hidden = self.body(x - self.mean.mean().item())
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.head(hidden)


class Doubling(Net):
    """A network that evaluates with weights of the head twice as large as it trains."""

    def train(self, mode: bool = True) -> "Doubling":
        if mode != self.training:
            self.head.weight.data.mul_(0.5 if mode else 2.0)
        return super().train(mode)


class Keeping(Net):
    """A body that keeps a table in evaluation mode, and forgets it when it is to train."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 32), nn.Linear(32, 32)
            self.table: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if not self.table:
                self.table["bias"] = torch.linspace(0, 1, 32)
            return self.two((self.one(x) + self.table["bias"]).tanh())

        def train(self, mode: bool = True) -> "Keeping.Body":
            self.table.clear()
            return super().train(mode)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body, self.last = self.Body(), nn.Linear(32, 32)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.last(self.body(image.flatten(1))))


class Remembering(Net):
    """The trained part keeps things of many kinds from call to call, and goes by all of them."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.deep = {"lists": [[], (torch.zeros(2), deque(maxlen=3))], "seen": set()}
        self.deep["itself"] = self.deep
        self.array, self.draws = np.zeros(3), torch.Generator().manual_seed(0)
        self.numpy_draws, self.old_draws = np.random.default_rng(0), np.random.RandomState(0)
        self.python_draws = random.Random(0)

    def forward(self, image: Tensor) -> Tensor:
        (calls, (mean, last)), seen = self.deep["lists"], self.deep["seen"]
        calls.append(len(image))
        mean += 0.1
        last.append(len(calls))
        seen.add(len(calls) % 7)
        self.array += 1
        numbers = [len(calls), float(mean.sum()), sum(last), sum(seen), self.array.sum()]
        numbers += [torch.rand((), generator=self.draws).item(), self.numpy_draws.random()]
        numbers += [self.old_draws.rand(), self.python_draws.random()]
        numbers += [random.random(), np.random.rand()]
        factor = 1 + 0.001 * float(np.sum(numbers))
        return self.head(self.body(image.flatten(1))) * factor


class Graph(Net):
    """Neighbours are told by sparse matrices: a buffer of the frozen part, one of the trained."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 32)
            self.register_buffer("near", ring(32).to_sparse(), persistent=False)

        def forward(self, flat: Tensor) -> Tensor:
            return torch.sparse.mm(self.near, self.linear(flat).T).T.relu()

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body, self.near = self.Body(), ring(32).to_sparse()

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.body(image.flatten(1))
        return self.head(hidden + torch.sparse.mm(self.near, hidden.T).T)


def ring(size: int) -> Tensor:
    return torch.eye(size) + torch.eye(size).roll(1, 0)


class Thin(Net):
    """What the frozen body returns is sparse."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 32)

        def forward(self, flat: Tensor) -> Tensor:
            return self.linear(flat).relu().to_sparse()

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = self.Body()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)).to_dense())


class ReadingOnly(Net):
    """A frozen part and a trained one hold arrays that cannot be written."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.table = np.frombuffer(b"12345678", np.uint8)
        self.body.table = np.broadcast_to(np.ones(1), (3,))


class Drawing(Net):
    """The frozen body draws numbers of one kind, from a generator of its own or everybody's."""

    class Body(Counting.Body):
        def __init__(self, kind: str) -> None:
            super().__init__()
            del self.calls
            self.kind, self.draws = kind, np.random.default_rng(0)
            self.array, self.nested = np.zeros(1), [[0], {"again": ()}]

        def forward(self, flat: Tensor) -> Tensor:
            return self.linear(flat) * (1 + self.drawn())

        def drawn(self) -> float:
            match self.kind:
                case "python":
                    return random.random()
                case "numpy":
                    return np.random.rand()
                case "own":
                    return self.draws.random()
                case "array":
                    self.array += 1
                    return self.array[0] > 15
                case _:
                    self.nested[0][0] += 1
                    return self.nested[0][0] > 15

    def __init__(self, classes: int, kind: str) -> None:
        super().__init__(classes)
        self.body = self.Body(kind)
