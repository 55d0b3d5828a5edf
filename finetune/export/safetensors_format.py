"""Export all tensors of a network, or what was trained, as one safetensors file."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from finetune.data.meaning import META, document_of
from finetune.errors import FinetuneError
from finetune.export.agreement import Outputs, Pass, named_outputs
from finetune.export.construction import code_of_layers
from finetune.export.layer_names import exported_module, layers_with_tensors
from finetune.export.source import ExportSource, WrittenFormat

FILE = "model.safetensors"


def write_safetensors(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write the merged weights of a network.

    Raises:
        FinetuneError: a layer has state that is no tensor.
    """
    refuse_other_state(source)
    module, told = exported_module(source.network), document_of(source.run.facts)
    # By safetensors' own function: a tensor of several names is stored once, and its reader
    # `load_model` gives it all of them.
    save_model(module, str(folder / FILE), metadata={"format": "pt", META: told})
    network = copy.deepcopy(source.network)
    with torch.no_grad():
        # So that a tensor which the file lacks cannot be right by chance.
        for tensor in network.state_dict().values():
            tensor.zero_()
    load_model(exported_module(network), str(folder / FILE))

    def run(one: Pass) -> Outputs:
        with torch.inference_mode():
            return named_outputs(network(**one.inputs))

    built = code_of_layers(source, folder)
    if built is None:
        code = f'from safetensors.torch import load_file\n\ntensors = load_file("{FILE}")'
    else:
        lines = [f'load_model(network, "{FILE}")', "network.eval()"]
        code = "\n".join(["from safetensors.torch import load_model", *built, *lines])
    return WrittenFormat(code, run, "safetensors", about=(_order(source),))


def refuse_other_state(source: ExportSource) -> None:
    """Raise if a layer keeps state that is no tensor (`get_extra_state`).

    Raises:
        FinetuneError: one does.
    """
    for name, value in source.network.state_dict().items():
        if not isinstance(value, Tensor):
            raise FinetuneError(
                f"{name!r} is no tensor, but {type(value).__name__}: safetensors holds tensors only"
            )


def _order(source: ExportSource) -> str:
    """Return a sentence on the names of the tensors, and on how layers call each other."""
    layers = list(layers_with_tensors(source.network))
    if len(layers) == 1:
        return "The tensors have the names that the original network gives them."
    named = ", ".join(f"`{layer}.`" for layer in layers)
    return (
        f"Names begin with the layer: {named}; the rest is the name in the layer's own library. "
        "The layers are called in the order in which the config lists them."
    )
