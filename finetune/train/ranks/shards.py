"""Share weights, gradients and optimizer state between the ranks: FSDP2 of torch.

Each rank holds a part of each parameter, cut by its first axis, as an ordinary tensor that the
optimizer steps. So frozen means the same as in one process: no gradient, no state. Checkpoints hold
whole tensors, whatever the number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from finetune.distributed import Link, is_sharded, own_part, part_like, shard, whole_like
from finetune.errors import named
from finetune.freezing.rows import rows_of
from finetune.gathering import GatheredModule, gathered
from finetune.models.inventory import ParamInfo
from finetune.train.ranks.one_copy import memory_place, memory_places
from finetune.train.ranks.shard_units import blocks_of, read_from_outside
from finetune.which_rank import ALONE


@dataclass(slots=True)
class Shards:
    """The parameters of which each rank holds a part; none at all unless a run shards."""

    link: Link
    names: tuple[str, ...] = ()
    """Names of the sharded parameters."""
    parts: dict[str, nn.Parameter] = field(default_factory=dict)
    """What this rank holds of each that trains in some phase; the optimizer steps these."""
    lines: tuple[str, ...] = ()
    """Lines for the user."""
    units: Sequence[GatheredModule] = ()
    """The modules that gather their parameters, the network itself among them."""
    _wholes: dict[str, nn.Parameter] = field(default_factory=dict)
    """The sharded parameters of the network, by the names in `parts`."""
    _depth: int = field(default=0, init=False)
    """Number of blocks around the present code in which every rank holds all of the network."""

    @classmethod
    def of(
        cls,
        link: Link,
        model: nn.Module,
        inventory: Sequence[ParamInfo],
        trained: Iterable[str],
        run: Callable[[], object],
        device: torch.device,
    ) -> Self:
        """Shard a network in place; each block moves to its device as it is cut.

        Args:
            link: To the other ranks, which hold the same network.
            model: The network, whole.
            inventory: Its parameters, cut into row slices where a phase freezes rows.
            trained: Names that train in some phase.
            run: Calls the network once, as training and evaluation do.
            device: Where this rank trains.
        """
        kept = dict(_kept_whole(model, inventory))
        blocks = blocks_of(model, inventory)
        outside = read_from_outside(model, blocks, run)
        # torch waits for ever where the ranks gather otherwise.
        told = link.totals([float(name in outside) for name in blocks])
        read = [name for name, count in zip(blocks, told, strict=True) if count]
        units = {name: block for name, block in blocks.items() if name not in read}
        # No list of all parameters here: each must go as soon as it is sharded.
        whole = [model.get_parameter(name) for name in kept]
        sharded = shard(model, list(units.values()), whole, device)
        wholes = {n: one for n, one in model.named_parameters() if is_sharded(one)}
        lines = [
            f"processes: {link.ranks.world}, each holds a part of {len(wholes)} parameters; "
            f"{len(units)} blocks gather theirs one after the other"
        ]
        if read:
            lines.append(
                f"processes: {named(read)} are gathered for the whole pass, as the network reads "
                "their parameters outside of their own calls"
            )
        if kept:
            why = named(dict.fromkeys(kept.values()))
            lines.append(f"processes: {named(kept)} are whole in each, as they are {why}")
        ever = {name: wholes[name] for name in trained if name in wholes}
        # Of the same memory: an update of the part is one of what the network gathers.
        parts = {name: nn.Parameter(own_part(one)) for name, one in ever.items()}
        return cls(link, tuple(wholes), parts, tuple(lines), sharded, ever)

    @property
    def is_on(self) -> bool:
        """Whether the run shards."""
        return bool(self.names)

    @contextmanager
    def whole_network(self) -> Iterator[None]:
        """Let every rank hold all of the network in the block, which all ranks enter together."""
        self._depth += 1
        try:
            with gathered(self.units if self._depth == 1 else ()):
                yield
        finally:
            self._depth -= 1

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes checkpoints."""
        return self.link.ranks.is_first

    def kept(self, tensor: Tensor) -> Tensor:
        """Return a copy on the CPU for a checkpoint; on ranks that write none, one number for it.

        The number is finite if all of the tensor is, so that all ranks refuse the same.
        """
        if self.is_writer:
            # Contiguous, and it shares memory with nothing.
            return tensor.detach().to("cpu", copy=True).contiguous()
        return torch.zeros(()) if bool(tensor.isfinite().all()) else torch.full((), torch.nan)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return all of a tensor that is shaped as a parameter: optimizer state, an average."""
        like = self._wholes.get(name)
        return tensor if like is None or not tensor.ndim else whole_like(tensor, like)

    def part(self, name: str, value: Any) -> Any:
        """Return what this rank holds of a whole tensor that is shaped as a parameter.

        Numbers and tensors of no axes are the same on every rank.
        """
        like = self._wholes.get(name)
        if like is None or not isinstance(value, Tensor) or not value.ndim:
            return value
        return part_like(value, like).clone()

    def hand_over(self) -> None:
        """Give the parts their gradients, summed over the ranks; take them from the network.

        If a gradient has NaN or infinity on some rank, its parts are NaN on all, so that all refuse
        the step and name the same parameters.
        """
        if not self.parts:
            return
        largest = torch.zeros(len(self.parts), dtype=torch.float64)
        for number, (name, part) in enumerate(self.parts.items()):
            gradient = self._wholes[name].grad
            self._wholes[name].grad = None
            part.grad = None if gradient is None else own_part(gradient)
            # The part of a small tensor may be empty, which has no largest number.
            if part.grad is not None and part.numel():
                largest[number] = torch.linalg.vector_norm(part.grad, torch.inf)
        wrong = (~largest.isfinite()).double()
        self.link.add(wrong)
        for part, count in zip(self.parts.values(), wrong.tolist(), strict=True):
            if count and part.grad is not None:
                part.grad.fill_(torch.nan)

    def drop_gradients(self) -> None:
        """Drop what a step has left in the network that did not come to its end."""
        for one in self._wholes.values():
            one.grad = None

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the norm over the gradients of parameters, of all ranks together, `()`.

        Args:
            parameters: Those of the optimizer: parts, and parameters that are whole on every rank.
        """
        gradients = [one.grad for one in parameters if one.grad is not None]
        if not self.parts:
            return torch.nn.utils.get_total_norm(gradients)
        own = {id(part) for part in self.parts.values()}
        # Squares of parts add up over the ranks; whole parameters are the same on each, and would
        # count once for every rank.
        split = [one.grad for one in parameters if one.grad is not None and id(one) in own]
        rest = [one.grad for one in parameters if one.grad is not None and id(one) not in own]
        squares = torch.nn.utils.get_total_norm([g for g in split if g.numel()]).double().square()
        squares = squares.reshape(1).cpu()
        self.link.add(squares)
        whole = torch.nn.utils.get_total_norm(rest).double().square().cpu()
        norm: Tensor = (squares[0] + whole).sqrt().to(gradients[0]) if gradients else whole.float()
        return norm


NO_SHARDS = Shards(Link(ALONE))
"""A run whose processes hold all of the network each."""


def _kept_whole(model: nn.Module, inventory: Sequence[ParamInfo]) -> Iterator[tuple[str, str]]:
    """Yield the parameters that are not sharded, each with what it is."""
    cut = {rows_of(one.name)[0] for one in inventory if one.slice_of is not None}
    tied = {one.name for one in inventory if one.aliases}
    places = memory_places(model)
    for name, parameter in model.named_parameters():
        reasons = {
            "cut into rows": name in cut,
            "tied": name in tied or places[memory_place(parameter)] > 1,
            "single numbers": not parameter.ndim,
            "no floating point": not parameter.is_floating_point(),
            "laid out in another order": not parameter.is_contiguous(),
        }
        reason = next((text for text, applies in reasons.items() if applies), None)
        if reason is not None:
            yield name, reason
