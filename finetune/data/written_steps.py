"""Write the steps of a network's pretraining as config nodes that do the same."""

from collections.abc import Sequence
from typing import Any

from finetune.config.data import TokenizeTransform, Transform, VisionTransform
from finetune.data.tokenizing import Tokenize
from finetune.data.transforms import PlannedStep
from finetune.data.vision import PretrainedImage


def as_transforms(planned: Sequence[PlannedStep]) -> tuple[Transform, ...]:
    """Return nodes of `data.transforms` that do what `usual_steps` does, with the same bits."""
    nodes: list[Transform] = []
    for each in planned:
        match each.step:
            case Tokenize() as step:
                nodes.append(_tokenize(step))
            case PretrainedImage() as step:
                nodes += _vision(step)
    return tuple(nodes)


def in_words(nodes: Sequence[Transform]) -> str:
    """Return nodes as text, as a config has them on one line."""
    return ", ".join(_flow(node.model_dump(mode="json", exclude_none=True)) for node in nodes)


def _tokenize(step: Tokenize) -> TokenizeTransform:
    """Return the config node of a tokenize step."""
    one, *others = step.columns
    columns = {"columns": [one, *others]} if others else {"column": one}
    values = {"type": "tokenize", **columns, "max_length": step.max_length}
    return TokenizeTransform.model_validate(values)


def _vision(step: PretrainedImage) -> list[VisionTransform]:
    """Return the config nodes that do what the image step does."""
    image = step.image
    written: list[dict[str, Any]] = [
        {"type": "Resize", "size": [image.height, image.width]},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
        {"type": "Normalize", "mean": list(image.mean), "std": list(image.std)},
    ]
    if len(image.mean) == 3:
        # First, as `PretrainedImage` does it: grey is widened before it is resized.
        written.insert(0, {"type": "RGB"})
    return [VisionTransform.model_validate({**node, "column": step.column}) for node in written]


def _flow(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
