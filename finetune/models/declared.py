"""Build a network from a list of named layers, checking shapes layer by layer."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from finetune.config.model import ModelConfig
from finetune.models.assembly import Assembly
from finetune.models.heads import HeadWanted, OutputWanted
from finetune.models.layers import Surroundings
from finetune.models.network import Network as Network, TensorSpec as TensorSpec
from finetune.models.weights import load_weights
from finetune.randomness import random_state_kept, seed_all


def build_network(
    config: ModelConfig,
    inputs: Mapping[str, TensorSpec],
    *,
    classes: int | None,
    categories: Mapping[str, int] | None = None,
    head: HeadWanted | None = None,
    outputs: Mapping[str, OutputWanted] = MappingProxyType({}),
    seed: int,
    trust: Collection[str],
) -> Network:
    """Return the network that `config` declares, in training mode, on the CPU.

    Each layer runs once on an example batch as soon as it is built, so that the next layer can
    take its input sizes from it, and a misfit is reported at the layer that causes it. Initial
    weights depend only on `seed`; the random state of the caller is unchanged.

    Args:
        config: The layers.
        inputs: Input columns of the data, in the order of positional arguments of `forward`.
        classes: Number that the text `classes` stands for; None if the data has none.
        categories: Number that the text `categories` stands for, by column of positions.
        head: The head of whole networks whose output is `logits`. If left out, it gives a whole
            sample a logit for each class.
        outputs: The layers that are outputs, by name, for a network that gives a dict of several.
        seed: Seed of the initial weights.
        trust: Packages whose code may be imported.

    Raises:
        ModelError: a layer cannot be built, or cannot take its input.
        TrustError: a layer asks for code that is not trusted.
    """
    with random_state_kept():
        seed_all(seed)
        around = Surroundings(classes, trust, head or HeadWanted("sample", classes))
        assembly = Assembly(inputs, around, categories or {}, outputs)
        for position, node in enumerate(config.layers):
            assembly.add(node, node.name or str(position), ("model", "layers", position))
        network = assembly.finished()
    # After the layers' own weights, which it may replace.
    if config.weights is not None:
        report = load_weights(network, config.weights, key=("model", "weights"))
        network.weights_reports += (report,)
    return network.train()
