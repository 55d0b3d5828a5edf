"""Export a network as a program of `torch.export`, for any number of samples and tokens."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from finetune.errors import FinetuneError
from finetune.export.agreement import Outputs, Pass, named_outputs
from finetune.export.source import ExportSource, WrittenFormat, argument_names, is_tokens
from finetune.models.detectors import Detector
from finetune.models.shapes import first_line

FILE = "model.pt2"
_HINT = "--format safetensors holds the weights of any network"


def write_torch(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write a network as a program.

    Raises:
        FinetuneError: torch cannot trace it for any number of samples.
    """
    program = traced(source)
    torch.export.save(program, folder / FILE)
    # The comparison is of what another program would load, not of the program in memory.
    loaded = torch.export.load(folder / FILE).module()
    names = argument_names(source.run.columns)

    def run(one: Pass) -> Outputs:
        with torch.no_grad():
            return named_outputs(loaded(**{names[n]: t for n, t in one.inputs.items()}))

    code = "\n".join(
        [
            "import torch",
            "",
            f'network = torch.export.load("{FILE}").module()',
            *example_code(source),
            "with torch.no_grad():",
            f"    output = network({', '.join(f'{name}={name}' for name in names.values())})",
        ]
    )
    return WrittenFormat(code, run, "pytorch", about=(_sizes(program),))


def traced(source: ExportSource) -> ExportedProgram:
    """Return a network as a program whose arguments are its columns by name.

    Raises:
        FinetuneError: torch cannot trace it for any number of samples.
    """
    if any(isinstance(module, Detector) for module in source.network.modules()):
        # torch would log its whole trace before it fails.
        raise FinetuneError(
            "torch.export cannot trace a detector, which finds another number of boxes in each "
            "image",
            hint=_HINT,
        )
    names = argument_names(source.run.columns)
    example = {names[name]: tensor for name, tensor in source.example().items()}
    # A length may turn out to be fixed by the network; the number of samples may not.
    shapes = {
        names[name]: {0: Dim.DYNAMIC, 1: Dim.AUTO} if is_tokens(name) else {0: Dim.DYNAMIC}
        for name in source.run.columns
    }
    try:
        with torch.no_grad():
            return torch.export.export(
                named_arguments(source.network, list(names.values())),
                (),
                example,
                dynamic_shapes=shapes,
            )
    # Tracing runs any code of the network, and fails in as many ways.
    except Exception as error:
        raise FinetuneError(
            f"torch.export cannot trace this network for any number of samples: "
            f"{first_line(error)}",
            hint=_HINT,
        ) from error


def named_arguments(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a module that takes the columns of a network as arguments of these names.

    A network takes any columns by `**columns`; a traced program needs a name for each.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]

    class NamedArguments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *args: Tensor, **columns: Tensor) -> Any:
            return self.network(*args, *columns.values())

    # torch.export reads the names from the signature.
    setattr(NamedArguments.forward, "__signature__", inspect.Signature(parameters))  # noqa: B010
    return NamedArguments()


def example_code(source: ExportSource) -> list[str]:
    """Return lines that make an example of each argument."""
    names = argument_names(source.run.columns)
    return [
        f"{names[name]} = torch.{'zeros' if tensor.is_floating_point() else 'ones'}"
        f"({tuple(tensor.shape)}, dtype={tensor.dtype})"
        for name, tensor in source.example().items()
    ]


def _sizes(program: ExportedProgram) -> str:
    """Return a sentence on the arguments and their sizes."""
    inputs = [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    texts = []
    for node in inputs:
        tensor = node.meta["val"]
        sizes = ["any" if not isinstance(size, int) else str(size) for size in tensor.shape]
        dtype = str(tensor.dtype).removeprefix("torch.")
        texts.append(f"`{node.name}` ({', '.join(sizes)}) {dtype}")
    return f"Arguments, as the network takes them after all transforms: {'; '.join(texts)}."
