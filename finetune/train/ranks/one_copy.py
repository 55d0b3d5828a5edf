"""Build a network that will be sharded; the processes of a machine hold one copy of it together.

A run whose processes share the weights (FSDP2) needs all of the network for a short time only:
until it is cut it is tried out and looked at. So the processes of a machine build it one after the
other, and each then has a map of one file in place of its own copy; they share its pages. At any
time a machine holds two copies at most, however many processes it runs.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import accumulate, chain
from mmap import ACCESS_COPY, ALLOCATIONGRANULARITY, mmap
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.disk import open_to_read, temporary_file
from finetune.distributed import Link
from finetune.errors import Faults
from finetune.models.network import Network


def built_in_turns(build: Callable[[], Network], link: Link) -> tuple[Network, list[str]]:
    """Return what `build` returns, with its parameters in a file that the machine's ranks share.

    The map is private: what a rank writes there, no other one sees. The file has no name any more
    when this returns, and vanishes with the last of its tensors. All ranks call this together.

    Args:
        build: Builds the network on the CPU, the same one on every rank.
        link: To the other ranks.

    Returns:
        The network, and lines for the user: none, unless the file could not be written.

    Raises:
        FinetuneError: the network cannot be built.
    """
    own, faults, built = link.ranks.local_rank, Faults(), list[Network]()
    turns = 1 + max(int(one) for one in link.rows(torch.tensor([own])))
    lines, place = list[str](), None
    with ExitStack() as until_all_have_it:
        for turn in range(turns):
            # A fault waits until all have had their turn: the other ranks have the same to tell.
            with faults.noted():
                if turn == own:
                    built.append(build())
            if turn == 0:
                if own == 0 and built:
                    place, lines = _written(built[0], until_all_have_it)
                place = _agreed(link, place)
            if turn == own and built and place:
                _map(built[0], place)
            link.wait()
    faults.raise_if_any()
    return built[0], lines


def memory_places(model: nn.Module) -> Mapping[int, int]:
    """Return how many parameters and buffers of a network lie in each memory, by `memory_place`."""
    return Counter(map(memory_place, chain(model.parameters(), model.buffers())))


def memory_place(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins; its own number if it is sparse or empty."""
    is_plain = tensor.layout == torch.strided and tensor.numel()
    return tensor.untyped_storage().data_ptr() if is_plain else id(tensor)


def _agreed(link: Link, path: Path | None) -> Path | None:
    """Return the path that the first rank of this machine gives; None if it gives none."""
    told = torch.tensor([*os.fsencode(path or "")], dtype=torch.uint8)
    names = link.gathered([told])
    # torchrun numbers the processes of a machine one after the other.
    (found,) = names[link.ranks.rank - link.ranks.local_rank]
    return Path(os.fsdecode(bytes(found.tolist()))) if len(found) else None


def _written(network: nn.Module, until: ExitStack) -> tuple[Path | None, list[str]]:
    """Write the parameters into a new file.

    Args:
        network: Has the parameters.
        until: Removes the file when it is closed.

    Returns:
        The file, or None and a line for the user if there is no room for it.
    """
    try:
        path, file = until.enter_context(temporary_file())
        for parameter, begin in _places_in_file(network):
            file.seek(begin)
            rest = _bytes_of(parameter).numpy().data
            while rest:
                rest = rest[file.write(rest) :]
    except OSError as error:
        return None, [
            "processes: each holds all of the network until it is cut, as there is no file for "
            f"them to share (TMPDIR): {error.strerror}"
        ]
    return path, []


def _map(network: nn.Module, path: Path) -> None:
    """Let the parameters of a network lie in a file, which holds them."""
    with open_to_read(path) as file:
        for parameter, begin in _places_in_file(network):
            # A map for each: tensors of one memory would look as if they were tied.
            held = mmap(file.fileno(), parameter.nbytes, access=ACCESS_COPY, offset=begin)
            values = torch.frombuffer(held, dtype=parameter.dtype)
            parameter.data = values.view(parameter.shape)


def _places_in_file(network: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield each parameter that the file holds, with its first byte there.

    Left out are those that share their memory with others, which must go on to do so, and those
    that are no plain rows of numbers.
    """
    counts = memory_places(network)
    held = [
        one
        for one in network.parameters()
        if type(one) is nn.Parameter
        and one.layout == torch.strided
        and one.is_contiguous()
        and one.numel()
        and counts[memory_place(one)] == 1
    ]
    sizes = [-(-one.nbytes // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY for one in held]
    return zip(held, accumulate(sizes, initial=0), strict=False)


def _bytes_of(parameter: nn.Parameter) -> Tensor:
    """Return the bytes of a parameter, in the same memory."""
    return parameter.detach().reshape(-1).view(torch.uint8)
