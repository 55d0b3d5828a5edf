"""Which blocks of a network gather their sharded parameters by themselves.

A block gathers them when it is called, and gives them back when it returns. So a network that reads
them at another time would get the part of one rank: such blocks are found by trial.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from finetune.block_names import by_block
from finetune.models.inventory import ParamInfo
from finetune.module_calls import is_read_of_shape
from finetune.preserved import preserved
from finetune.structure import tensors_in


def blocks_of(model: nn.Module, inventory: Sequence[ParamInfo]) -> dict[str, nn.Module]:
    """Return by name the blocks that may gather their parameters each; none is inside another."""
    found: dict[str, nn.Module] = {}
    for name, params in by_block(inventory).items():
        if any(param.depth is None for param in params):
            continue
        module = _module(model, name)
        # A list of modules is never called, and what is never called gathers nothing.
        if module is not None and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            found[name] = module
    outer = [f"{name}." for name in found]
    return {n: m for n, m in found.items() if not any(n.startswith(name) for name in outer)}


def read_from_outside(
    model: nn.Module, blocks: Mapping[str, nn.Module], run: Callable[[], object]
) -> set[str]:
    """Return the blocks whose parameters are read while the block itself is not called.

    As by `block.method()`, `F.linear(x, block.weight)` or `block.weight.mean().item()`. The network
    is restored afterwards, the random state too.

    Args:
        model: The network, whole.
        blocks: Its blocks by name.
        run: Calls the network once, as training and evaluation do.
    """
    owners = {id(one): name for name, block in blocks.items() for one in block.parameters()}
    reads = _Reads(owners)
    with _noting_calls(blocks, reads.called):
        for is_training in (True, False):
            kept = preserved(model, buffers=True, attributes=True, modes=True, random=0)
            with kept, torch.no_grad(), reads:
                model.train(is_training)
                run()
    return reads.found


class _Reads(TorchFunctionMode):
    """Notes blocks whose parameters are read outside of their calls.

    Args:
        owners: Name of the block of each parameter, by the parameter's `id`.
    """

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.called: list[str] = []
        """Blocks whose calls have begun and not ended."""
        self._owners = owners

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`; note the blocks of its arguments that are not called now."""
        result = func(*args, **(kwargs or {}))
        if not is_read_of_shape(func, result):
            owners = (self._owners.get(id(one)) for one in tensors_in([*args, kwargs or {}]))
            self.found |= {name for name in owners if name and name not in self.called}
        return result


@contextmanager
def _noting_calls(blocks: Mapping[str, nn.Module], called: list[str]) -> Iterator[None]:
    """Keep `called` up to date while the block runs: each block is in it during its calls."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    def leave(*_: Any) -> None:
        called.pop()

    # As those of torch's FSDP: the first on entry and the last on exit.
    handles = [
        block.register_forward_pre_hook(enter(n), prepend=True) for n, block in blocks.items()
    ]
    handles += [block.register_forward_hook(leave, always_call=True) for block in blocks.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """Return a module by name; None if the name is that of a parameter."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
