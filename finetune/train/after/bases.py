"""Networks before training, built once for several runs that begin with the same one."""

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from finetune.config.run import RunConfig
from finetune.data.opening import DataFacts
from finetune.freezing.rows import rows_of
from finetune.models.declared import Network, TensorSpec, build_network
from finetune.train.build import network_arguments, plan_of


class Bases:
    """Networks as configs build them; each run gets a copy over the same frozen parameters.

    To load several runs in one go: files of weights are read once, and their tensors are in memory
    once. Networks that are trained for the most part are built for each run. Whether a network is
    the base of a run is checked against its checkpoint all the same.
    """

    def __init__(self) -> None:
        self._built: dict[str, Network] = {}

    def network(
        self,
        config: RunConfig,
        facts: DataFacts,
        specs: Mapping[str, TensorSpec],
        device: torch.device,
    ) -> Network:
        """Return the network of a run before training. What the run trains is its own."""
        arguments = network_arguments(config, facts, specs)
        if config.trust:
            # Modules of a user's own may hold what cannot be copied.
            return build_network(**arguments).to(device)
        # With `channels_last` the layout of all weights is changed in place.
        layout = config.inference.channels_last
        key = repr((sorted(arguments.items()), device, layout))
        built = self._built.get(key) or build_network(**arguments).to(device)
        trained = {rows_of(name)[0] for name in plan_of(config, built).ever_trained}
        named = dict(built.named_parameters())
        if key not in self._built and _size_bytes(named, trained) > _size_bytes(named) / 2:
            # To keep it for other runs would take more memory than it could save.
            return built
        self._built[key] = built
        # Buffers may move in a run, so each copy has its own.
        shared = {id(p): p for name, p in named.items() if name not in trained}
        return copy.deepcopy(built, shared)


def _size_bytes(named: Mapping[str, Tensor], only: Collection[str] | None = None) -> int:
    """Return the bytes of tensors, of all or of those with some names."""
    return sum(one.nbytes for name, one in named.items() if only is None or name in only)
