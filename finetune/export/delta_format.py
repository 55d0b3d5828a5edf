"""Export what a run has trained, for whoever has the weights that it began with."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import FinetuneError, named
from finetune.export.agreement import Outputs, Pass, named_outputs
from finetune.export.construction import code_of_layers
from finetune.export.layer_names import exported_module, exported_prefix
from finetune.export.source import ExportSource, WrittenFormat
from finetune.freezing.origins import Sources
from finetune.freezing.rows import rows_of, tensor_of
from finetune.runs.kept import Checkpoints
from finetune.runs.manifest import read_manifest
from finetune.train.checkpoints.checkpoint import read_tensors

FILE = "delta.safetensors"


def write_delta(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write the tensors that were trained, and the buffers that moved.

    Raises:
        FinetuneError: a frozen tensor comes from no file: nobody else could have it.
    """
    chosen = Checkpoints(source.run.folder.checkpoints, keep_last=1).chosen()
    prefix = exported_prefix(source.network)
    delta = {
        name.removeprefix(prefix): tensor
        for name, tensor in read_tensors(chosen / "weights.safetensors").items()
    }
    base = source.base_network()
    _refuse_random(base, {f"{prefix}{name}" for name in delta})
    fingerprint = read_manifest(chosen).base
    save_file(delta, folder / FILE, metadata={"format": "pt", "base": fingerprint})
    # Read again from the file, so that the comparison is of what was written.
    put_delta(load_file(folder / FILE), exported_module(base))

    def run(one: Pass) -> Outputs:
        with torch.inference_mode():
            return named_outputs(base(**one.inputs))

    about = (
        f"{len(delta)} tensors: those that were trained, and buffers that moved. All others are "
        f"those of the base, whose fingerprint is `{fingerprint}`; `docs/export.md` tells what it "
        "is of.",
    )
    return WrittenFormat(_code(source, folder, delta), run, "safetensors", about=about)


def put_delta(delta: dict[str, Tensor], module: nn.Module) -> None:
    """Write a delta into a module whose tensors have the exported names."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in delta.items():
            tensor_of(tensors, name).copy_(tensor)


def _refuse_random(base: nn.Module, trained: set[str]) -> None:
    """Raise if a tensor that is not in the delta has its first random values.

    Raises:
        FinetuneError: one has.
    """
    reports = getattr(base, "weights_reports", ())
    sources = Sources.of(base, reports)
    whole = {rows_of(name)[0] for name in trained}
    known = whole | sources.loaded | sources.constants
    if alone := sorted(base.state_dict().keys() - known):
        raise FinetuneError(
            f"{len(alone)} tensors were neither trained nor loaded from weights: {named(alone)}",
            where="--delta",
            hint="without --delta the export holds all tensors",
        )


def _code(source: ExportSource, folder: Path, delta: dict[str, Tensor]) -> str:
    """Return code that builds the base and puts the delta into it."""
    built = code_of_layers(source, folder, with_base=True)
    if built is None:
        return f'from safetensors.torch import load_file\n\ndelta = load_file("{FILE}")'
    lines = ["from safetensors.torch import load_file", *built, "tensors = network.state_dict()"]
    # Where some rows of a tensor were trained, its name says which: `table[0:100]`.
    if any("[" in name for name in delta):
        lines += [
            f'for name, value in load_file("{FILE}").items():',
            '    name, _, rows = name.partition("[")',
            '    ends = [int(end) for end in rows[:-1].split(":")] if rows else []',
            "    tensors[name][slice(*ends) if ends else ...].copy_(value)",
        ]
    else:
        lines += [
            f'for name, value in load_file("{FILE}").items():',
            "    tensors[name].copy_(value)",
        ]
    return "\n".join([*lines, "network.eval()"])
