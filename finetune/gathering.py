"""When a module gathers the parameters of which each process holds a part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from finetune.errors import FinetuneError, is_out_of_memory


class NotGatheredError(FinetuneError):
    """Memory of a rank runs out while all gather: the others wait for it, and cannot be told."""


class GatheredModule:
    """A module that gathers its sharded parameters when it is called, and gives them back.

    It gathers nothing for calls that need no weights: a replaced `forward` tells so by its
    attribute `needs_weights`, a function.

    Args:
        module: Becomes sharded in place.
        shard_it: Shards it, whereby torch adds a hook on each side of its calls.
    """

    __slots__ = ("_added", "_after", "_before", "_has_gathered", "_kinds", "_module")

    def __init__(self, module: nn.Module, shard_it: Callable[[nn.Module], None]) -> None:
        kind, before, after = type(module), module._forward_pre_hooks, module._forward_hooks
        known = {*before}, {*after}
        has = {*vars(module)}
        shard_it(module)
        self._added = {name: vars(module)[name] for name in vars(module).keys() - has}
        self._module, self._kinds, self._has_gathered = module, (kind, type(module)), True
        (number,) = before.keys() - known[0]
        self._before = number, partial(self._enter, before[number])
        (number,) = after.keys() - known[1]
        self._after = number, partial(self._leave, after[number])
        self._add_hooks()

    def gather(self) -> None:
        """Hold all of the parameters from now on, as a module that is not sharded."""
        self._module.unshard()  # type: ignore[operator]
        # What looks at the code of the network, or at its attributes, must not see those of torch.
        self._module.__class__ = self._kinds[0]
        for name in self._added:
            del vars(self._module)[name]
        del self._module._forward_pre_hooks[self._before[0]]
        del self._module._forward_hooks[self._after[0]]

    def give_back(self) -> None:
        """Hold a part of the parameters from now on."""
        if self._before[0] in self._module._forward_pre_hooks:
            # It has not gathered, as the others do not answer.
            return
        self._module.__class__ = self._kinds[1]
        vars(self._module).update(self._added)
        self._add_hooks()
        self._module.reshard()  # type: ignore[operator]

    def _add_hooks(self) -> None:
        """Add the hooks as torch does: the first on entry, the last on exit."""
        number, hook = self._before
        others = {**self._module._forward_pre_hooks}
        self._module._forward_pre_hooks.clear()
        self._module._forward_pre_hooks.update({number: hook} | others)
        number, hook = self._after
        self._module._forward_hooks[number] = hook

    def _enter(self, hook: Callable[..., Any], module: nn.Module, *given: Any) -> Any:
        needs_weights = getattr(vars(module).get("forward"), "needs_weights", None)
        self._has_gathered = needs_weights is None or needs_weights()
        return hook(module, *given) if self._has_gathered else None

    def _leave(self, hook: Callable[..., Any], module: nn.Module, *given: Any) -> Any:
        return hook(module, *given) if self._has_gathered else None


@contextmanager
def gathered(units: Sequence[GatheredModule]) -> Iterator[None]:
    """Let every rank hold all parameters in the block, which all ranks enter together.

    No rank waits for another one in the block, whichever passes it runs.

    Raises:
        NotGatheredError: memory runs out.
    """
    try:
        try:
            for unit in units:
                unit.gather()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NotGatheredError(
                "memory has run out where each process holds all weights for a moment",
                hint="only what the activation cache tries out needs that: cache: {use: off}",
                key=("cache", "use"),
            ) from error
        yield
    finally:
        for unit in units:
            unit.give_back()
