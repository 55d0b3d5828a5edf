"""Under which names tensors are exported: those of the original network, as far as it can be.

A network of one layer with tensors gives them the names that the layer's own library gives them:
`network.bert.embeddings...` of the run is `bert.embeddings...`. Of several layers each keeps its
name in front, or two of them could clash.
"""

from torch import nn

from finetune.models.declared import Network


def layers_with_tensors(network: Network) -> dict[str, nn.Module]:
    """Return the children of a network that have parameters or buffers, by name."""
    return {name: child for name, child in network.named_children() if len(child.state_dict())}


def exported_prefix(network: Network) -> str:
    """Return what is left out at the beginning of all names; empty for several layers."""
    layers = layers_with_tensors(network)
    return f"{next(iter(layers))}." if len(layers) == 1 else ""


def exported_module(network: Network) -> nn.Module:
    """Return a module whose tensors have the exported names; it shares them with the network."""
    layers = layers_with_tensors(network)
    return next(iter(layers.values())) if len(layers) == 1 else nn.ModuleDict(layers)
