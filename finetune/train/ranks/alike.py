"""Check that all processes of a run hold the same bits: where phases begin, and at checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor, nn

from finetune.bits import fingerprint
from finetune.distributed import Link, is_sharded
from finetune.errors import named
from finetune.runs.progress import Progress


class UnlikeRanksError(RuntimeError):
    """The processes of a run hold other bits: a bug, or machines of different kinds."""


@dataclass(slots=True)
class Alike:
    """Compares network and progress of the ranks; in one process it does nothing."""

    link: Link
    model: nn.Module
    about: Callable[[], str] = str
    """Returns what else must be equal, such as the digest of the samples."""
    _is_begun: bool = field(default=False, init=False)

    def check(self, progress: Progress) -> None:
        """Compare what may have changed since the last call, at the first call everything.

        Raises:
            UnlikeRanksError: the ranks differ. The message names rank and tensors.
        """
        if not self.link.ranks.is_several:
            return
        # Frozen parameters are left out later: the proof of each rank is about them.
        tensors = {
            name: tensor
            for name, tensor in self.model.state_dict(keep_vars=True).items()
            # Of what is sharded there is one copy only, which no rank can differ in.
            if isinstance(tensor, Tensor)
            and not is_sharded(tensor)
            and (not self._is_begun or tensor.requires_grad or not isinstance(tensor, nn.Parameter))
        }
        self._is_begun = True
        digests = {name: fingerprint(tensor) for name, tensor in tensors.items()}
        digests["its place in the run"] = f"{progress.step} {progress.phase} {self.about()}"
        numbers = torch.tensor([_number(f"{name} {digests[name]}") for name in digests])
        ranks = self.link.gathered([numbers])
        for rank, (other,) in enumerate(ranks):
            if not torch.equal(other, ranks[0][0]):
                raise UnlikeRanksError(_difference(list(digests), rank, other, ranks[0][0]))


def _difference(names: list[str], rank: int, other: Tensor, first: Tensor) -> str:
    """Return in words what differs between a rank and rank 0."""
    if other.shape != first.shape:
        return f"rank {rank} has other tensors than rank 0"
    unlike = [name for name, differs in zip(names, other != first, strict=False) if differs]
    return f"rank {rank} differs from rank 0 in {named(unlike)}"


def _number(text: str) -> int:
    """Return a hash of a text as a number of 63 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
