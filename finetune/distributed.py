"""What the processes of one run tell each other; the only importer of torch.distributed.

torchrun starts the processes, numbers them (their ranks) and ends them; nothing here does. A run in
one process has a `Link` too, whose methods return at once.
"""

import atexit
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

import torch
from safetensors.torch import load, save as packed
from torch import Tensor, nn

from finetune.errors import FinetuneError, is_out_of_memory
from finetune.gathering import GatheredModule
from finetune.process import skip_teardown
from finetune.which_rank import Ranks

_TIMEOUT_S = 1800.0
"""Seconds that a process waits for the others, if the config has no limit: longer than any part of
a run that one process does alone, such as hashing files or writing a report."""
_MIXED = "mixed torch.Tensor and DTensor"
"""Part of what torch raises if a sharded parameter meets a whole tensor."""


class RankLostError(FinetuneError):
    """Another process of the run has failed or does not answer."""

    is_between_steps: bool = False
    """Whether it was told before a step, so that this process holds what the last step has made."""


class Link:
    """Exchanges values with the other ranks; every rank must make the same calls in one order.

    Control values go between CPUs (gloo), tensors of the network between their devices (NCCL on
    GPUs). No object is pickled: what is exchanged are tensors.

    Args:
        ranks: Which process this is.
    """

    __slots__ = ("ranks",)

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @classmethod
    def connect(cls, timeout_s: float | None = None) -> Self:
        """Return a link to the processes that torchrun started with this one.

        Args:
            timeout_s: Seconds to wait for the others, then the run ends; half an hour if None.

        Raises:
            RankLostError: they do not answer.
        """
        link = cls(Ranks.of_environment())
        dist = torch.distributed
        if not link.ranks.is_several or dist.is_initialized():
            return link
        # Not at the top: a torch without torch.distributed runs in one process.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        has_gpu = torch.cuda.is_available() and link.ranks.local_rank < torch.cuda.device_count()
        if has_gpu:
            torch.cuda.set_device(link.ranks.local_rank)
        # Both: the few numbers of a step must not wait for the queue of a GPU.
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        timeout = timedelta(seconds=timeout_s or _TIMEOUT_S)
        with _lost():
            store, rank, world = next(rendezvous("env://", timeout=timeout))
            store.set_timeout(timeout)
            store = PrefixStore(f"finetune/{_start()}", store)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=timeout
            )
        # Threads of gloo abort the process if they let go of a tensor while Python ends.
        if not skip_teardown():
            atexit.register(_disconnect)
        return link

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the ranks."""
        if not self.ranks.is_several:
            return list(values)
        # In doubles: counts of pixels are larger than float32 counts exactly.
        sums = torch.tensor(values, dtype=torch.float64)
        self.add(sums)
        return sums.tolist()

    def of_first(self, values: Sequence[float]) -> list[float]:
        """Return the values of rank 0."""
        if not self.ranks.is_several:
            return list(values)
        known = torch.tensor(values, dtype=torch.float64)
        self.take_first([known])
        return known.tolist()

    def first_says(self, *, claim: bool) -> bool:
        """Return what rank 0 claims."""
        return bool(self.of_first([float(claim)])[0])

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks, in place."""
        if self.ranks.is_several:
            with _lost():
                torch.distributed.all_reduce(tensor)

    def rows(self, own: Tensor) -> Tensor:
        """Return the tensors of all ranks, `(world, ...)`; they are of one shape and device."""
        if not self.ranks.is_several:
            return own[None]
        found = [torch.empty_like(own) for _ in range(self.ranks.world)]
        with _lost():
            torch.distributed.all_gather(found, own)
        return torch.stack(found)

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""
        if not self.ranks.is_several:
            return
        for alike in _by_kind(tensors):
            # One message for all tensors of a kind.
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            with _lost():
                torch.distributed.broadcast(flat, src=0)
            parts = flat.split([tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.detach().copy_(part.reshape(tensor.shape))

    def gathered(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of each rank, in order of the ranks, on the CPU.

        Ranks may have different numbers of tensors, of any shape.
        """
        if not self.ranks.is_several:
            return [list(tensors)]
        # Copies: tensors that share memory are refused.
        own = packed({str(n): t.detach().cpu().clone() for n, t in enumerate(tensors)})
        dist, world = torch.distributed, self.ranks.world
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        with _lost():
            dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = max(int(size) for size in sizes)
        # Padded: all parts of one message are of one length.
        mine = torch.frombuffer(bytearray(own.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(world)]
        with _lost():
            dist.all_gather(parts, mine)
        found = []
        for part, size in zip(parts, sizes, strict=True):
            by_number = load(part[: int(size)].numpy().tobytes())
            found.append([by_number[str(number)] for number in range(len(by_number))])
        return found

    def wait(self) -> None:
        """Wait until every rank has come here."""
        self.totals([0.0])


def _start() -> str:
    """Return the number of this start of the processes by torchrun, or `any` if it is not known.

    `torchrun --max-restarts` keeps one store for all starts, in which torch would find the
    addresses of processes that are dead, and fail to connect. Agents of several machines count
    their restarts each for itself, so there one part of the store serves all starts.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_one_machine else "any"


def _disconnect() -> None:
    """End the threads of gloo in a process that ends well; else they may wait for other ranks."""
    dist = torch.distributed
    if dist.is_initialized() and dist.get_backend() == "gloo" and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    kept: Collection[nn.Parameter],
    device: torch.device,
) -> list[GatheredModule]:
    """Leave each rank a part of each parameter; units and model gather theirs for their passes.

    Gradients are summed over the ranks, not averaged. torch follows `requires_grad` from pass to
    pass, so a change of mask needs nothing here.

    Args:
        model: The network, the same on every rank. Its parameters become sharded in place.
        units: Modules that gather their parameters together, none inside another.
        kept: Parameters that every rank keeps whole, and whose gradients are not summed.
        device: Gets the parts, the kept parameters and the buffers. A unit moves there whole
            before it is cut, so that the device never holds two of them; what lies outside the
            units moves at last, together.
    """
    # Loaded here: a run in one process has no use for it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    with _lost():
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in kept:
        parameter.data = parameter.data.to(device)

    def shard_it(module: nn.Module) -> None:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(kept))
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        # gloo cannot scale as it adds, and a factor of one needs no scaling.
        module.set_force_sum_reduction_for_comms(True)

    return [GatheredModule(module, shard_it) for module in (*units, model)]


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this rank holds only a part of a tensor, or of a parameter."""
    # By its method: the class is loaded in runs that shard alone.
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; every rank must ask for the same sharded tensors in one order."""
    if not is_sharded(tensor):
        return tensor
    with _lost():
        found: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return found


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this rank holds, in the same memory."""
    if not is_sharded(tensor):
        return tensor
    found: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return found


def whole_like(part: Tensor, like: Tensor) -> Tensor:
    """Return all of a tensor, of which each rank holds the part that it holds of `like`."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    mesh, places = like.device_mesh, like.placements
    return whole(DTensor.from_local(part, mesh, places, shape=like.shape, stride=like.stride()))


def part_like(values: Tensor, like: Tensor) -> Tensor:
    """Return of all values those that this rank holds of `like`; all if that is not sharded."""
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    # As torch cuts: parts of one size but for the last ones, which may be smaller or empty.
    size = -(-len(values) // like.device_mesh.size())
    begin = min(like.device_mesh.get_local_rank() * size, len(values))
    return values[begin : begin + size]


@contextmanager
def naming_faults() -> Iterator[None]:
    """Turn what torch raises where ranks meet in a pass into errors that say what has happened."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no class of errors of its own.
        if "gloo/" in str(error) or isinstance(error, torch.distributed.DistError):
            with _lost():
                raise
        if _MIXED in str(error):
            raise FinetuneError(
                "train.parallel: fsdp2: the network reads a parameter of a block while the block "
                "is not called, and this process has a part of it",
                hint="train.parallel: ddp goes with it",
                key=("train", "parallel"),
            ) from error
        raise


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


@contextmanager
def _lost() -> Iterator[None]:
    """Turn an error of torch.distributed into one that says what has happened."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # This process has failed then, and not another one.
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise RankLostError(
            f"another process of the run has ended or does not answer: {reason}",
            hint="its own lines tell why; the same command goes on from the newest checkpoint",
        ) from error
