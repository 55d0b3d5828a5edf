"""Share the forward passes of an evaluation between the ranks.

Each rank runs every n-th batch. Outputs and targets go to all ranks, which then compute losses and
metrics from the same values in the same order as one process: so no sample is left out or counted
twice, every metric is exact, whatever its library, and all ranks decide alike on what follows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from finetune.data.batches import Batch
from finetune.distributed import Link
from finetune.train.stopping import Stop


class RankPass(NamedTuple):
    """What one forward pass gives."""

    outputs: Any
    """What the network returned; None if no sample of the batch can be made."""
    batch: Batch


_PLAIN = (int, float, str)
"""Parts of outputs, besides tensors and None, that are the same for every batch."""
Run = Callable[[Sequence[Tensor]], Iterator[RankPass]]
"""Runs the network on batches, given as sample indices."""


@dataclass(slots=True)
class SharedPasses:
    """Runs a part of the batches on each rank, and gives the results of all to each."""

    link: Link
    stop: Stop
    sends_inputs: bool
    """Whether losses of the user's own may read the inputs; of others only their shape is sent."""
    meets_in_passes: bool = False
    """Whether a pass waits for those of the other ranks, so that all must run equally many."""
    _spec: Any = field(default=None, init=False)
    """How the outputs of the network are made of tensors."""
    _others: list[Any] = field(default_factory=list, init=False)
    """The parts of the outputs that are no tensors, `...` in place of each tensor."""
    _like: Batch | None = field(default=None, init=False)
    """A batch of this rank."""

    def __call__(
        self, run: Run, cuts: Sequence[Tensor], device: torch.device
    ) -> Iterator[RankPass]:
        """Yield what all batches give, in order, whichever rank has run them.

        Args:
            run: Runs the network on batches of this rank.
            cuts: All batches.
            device: Where the results of other ranks are placed.

        Raises:
            StopRequest: some rank has got a signal.
        """
        ranks = self.link.ranks
        if not ranks.is_several or len(cuts) < ranks.world:
            # So few that it is no use: each rank runs all of them.
            yield from run(cuts)
            return
        # What is left over is then run by every rank.
        left = len(cuts) % ranks.world if self.meets_in_passes else 0
        cuts, last = cuts[: len(cuts) - left], cuts[len(cuts) - left :]
        own = run(cuts[ranks.rank :: ranks.world])
        for begin in range(0, len(cuts), ranks.world):
            done = next(own, None)
            sent = self._packed(done)
            told = self.link.gathered([torch.tensor([float(sent is not None), *self.stop.told()])])
            self.stop.agree(torch.stack([one for (one,) in told]).sum(0)[1:].tolist())
            self.stop.answer()
            if not all(one[0] for (one,) in told):
                # The outputs hold objects that cannot be sent: each rank runs everything.
                own.close()  # type: ignore[attr-defined]
                yield from run([*cuts[begin:], *last])
                return
            found = self.link.gathered(sent or [])
            for rank, tensors in enumerate(found[: len(cuts) - begin]):
                is_own = rank == ranks.rank and done is not None
                yield done if is_own and done else self._unpacked(tensors, device)
        if last:
            yield from run(last)

    def _packed(self, done: RankPass | None) -> list[Tensor] | None:
        """Return a pass as a list of tensors; None if its outputs cannot be sent."""
        if done is None:
            return []
        batch = done.batch
        self._like = batch
        sent = [batch.indices, *([] if batch.target is None else [batch.target])]
        sent += batch.columns.values()
        sent += [self._input(values) for values in batch.inputs.values()]
        if not len(batch):
            return None if self._spec is None else sent
        leaves, self._spec = pytree.tree_flatten(done.outputs)
        self._others = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if not all(one in (..., None) or isinstance(one, _PLAIN) for one in self._others):
            return None
        return sent + [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _input(self, values: Tensor) -> Tensor:
        return values if self.sends_inputs else torch.tensor(values.shape)

    def _unpacked(self, tensors: Sequence[Tensor], device: torch.device) -> RankPass:
        """Return the pass of another rank."""
        assert self._like is not None
        like, left = self._like, iter([tensor.to(device) for tensor in tensors])
        indices = next(left)
        target = None if like.target is None else next(left)
        columns = {name: next(left) for name in like.columns}
        inputs = {name: self._shown(next(left), own) for name, own in like.inputs.items()}
        batch = replace(
            like, indices=indices, target=target, columns=columns, inputs=inputs, rows=None
        )
        if not len(indices):
            return RankPass(None, batch)
        whole = [next(left) if one is ... else one for one in self._others]
        return RankPass(pytree.tree_unflatten(whole, self._spec), batch)

    def _shown(self, sent: Tensor, own: Tensor) -> Tensor:
        """Return an input column, or zeros of its shape, which take no memory."""
        if self.sends_inputs:
            return sent
        return torch.zeros((), dtype=own.dtype, device=own.device).expand(*sent.tolist())
