"""Make the policy that a config names, over the blocks of a network."""

from collections.abc import Sequence, Set as AbstractSet
from typing import assert_never

from finetune.config.freeze import Lisa, PolicyMethod
from finetune.errors import SelectorError
from finetune.freezing.methods import head_of
from finetune.freezing.policies.lisa import LisaDraws
from finetune.freezing.policies.policy import Policy
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo


def make_policy(
    method: PolicyMethod,
    inventory: Sequence[ParamInfo],
    never: AbstractSet[str],
    *,
    seed: int,
) -> Policy:
    """Return the policy of a method.

    Args:
        method: From the config.
        inventory: The parameters of the network.
        never: Names that stay frozen throughout.
        seed: Seed of the run.

    Raises:
        SelectorError: the network has fewer blocks than the method wants.
    """
    blocks = _blocks(method, inventory, never)
    match method:
        case Lisa():
            if method.blocks > len(blocks):
                raise SelectorError(
                    f"lisa draws {method.blocks} blocks, and the network has {len(blocks)} that "
                    "can train beside head and embeddings",
                    key=("freeze", "blocks"),
                )
            return LisaDraws(blocks, method.period, method.blocks, seed)
        case _:
            assert_never(method)


def _blocks(
    method: PolicyMethod, inventory: Sequence[ParamInfo], never: AbstractSet[str]
) -> dict[int, frozenset[str]]:
    """Return the names that a policy may freeze, by depth of their block.

    Head and embeddings are left out. They have a depth, too, in a network without repeated blocks,
    where each layer counts as a block.
    """
    always = select(head_of(method, inventory), inventory) | never
    blocks: dict[int, set[str]] = {}
    for param in inventory:
        is_free = param.name not in always and "embedding" not in param.kinds
        if param.depth is not None and is_free:
            blocks.setdefault(param.depth, set()).add(param.name)
    return {depth: frozenset(names) for depth, names in sorted(blocks.items())}
