"""Export a network of timm as a folder that `timm.create_model` loads."""

from pathlib import Path
from typing import Any

import torch

from finetune.config.model import TimmLayer
from finetune.errors import FinetuneError
from finetune.export.agreement import Outputs, Pass
from finetune.export.layer_names import layers_with_tensors
from finetune.export.source import ExportSource, WrittenFormat
from finetune.importing import require

_OTHERWISE = "--format torch or onnx holds the whole network, --format safetensors its weights"


def write_timm(source: ExportSource, folder: Path) -> WrittenFormat:
    """Write weights, architecture, image settings and names of the classes.

    Raises:
        FinetuneError: the network is more than one network of timm.
    """
    timm: Any = require("timm", extra="vision")
    layers = source.run.config.model.layers
    node = layers[0]
    if len(layers) > 1 or not isinstance(node, TimmLayer) or node.output == "maps":
        types = ", ".join(str(layer.type) for layer in layers)
        raise FinetuneError(
            f"such a folder holds one network of timm with features or logits, and the layers are "
            f"of type {types}",
            where="--format timm",
            hint=_OTHERWISE,
        )
    if node.architecture.startswith("local-dir:"):
        raise FinetuneError(
            f"{node.architecture!r} lies on this machine, and timm would look for it there",
            where="--format timm",
            hint=_OTHERWISE,
        )
    model: Any = next(iter(layers_with_tensors(source.network).values()))
    classes = source.run.facts.classes if node.output == "logits" else None
    settings = {"num_classes": model.num_classes}
    if classes is not None:
        settings |= {"label_names": list(classes)}
    timm.models.save_for_hf(
        model,
        folder,
        model_config=settings,
        model_args=dict(node.args),
        safe_serialization=True,
    )
    place = f"local-dir:{folder}"
    # The network that is compared with the predictor is read from the folder that was written.
    loaded = timm.create_model(place, pretrained=True).eval()

    def run(one: Pass) -> Outputs:
        with torch.inference_mode():
            return {"output": loaded(next(iter(one.inputs.values())))}

    shape = tuple(next(iter(source.example().values())).shape)
    code = "\n".join(
        [
            "import timm",
            "import torch",
            "",
            'network = timm.create_model("local-dir:.", pretrained=True).eval()',
            "with torch.no_grad():",
            f"    output = network(torch.zeros({shape}))",
        ]
    )
    about = (
        f"`timm.create_model` loads it. Its input is what the run's transforms give: {shape}.",
    )
    return WrittenFormat(code, run, "timm", about)
