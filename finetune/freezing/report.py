"""The freeze map: which parameters are frozen, folded by block, as plain rows and as text."""

from collections.abc import Sequence, Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from finetune.freezing.apply import frozen_now
from finetune.freezing.plan import Plan
from finetune.models.inventory import ParamInfo, take_inventory


@dataclass(frozen=True, slots=True)
class MapRow:
    """Neighbouring parameters of one module that share a state."""

    name: str
    state: str
    """`frozen`, `trained`, or `mixed` where a folded module holds both."""
    tensors: int
    parameters: int
    """How many numbers they hold."""
    size_bytes: int


def freeze_map(model: nn.Module) -> str:
    """Return which parameters of `model` are frozen now, as a text with one line per block."""
    return mask_as_text(take_inventory(model), frozen_now(model))


def mask_as_text(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> str:
    """Return a mask as a text with one line per block and a line of totals."""
    rows = fold(inventory, frozen)
    width = max(len(row.name) for row in rows)
    lines = [
        f"{_SIGNS[row.state]} {row.name:<{width}}  {row.state:<7}  {row.parameters:>13,}"
        for row in rows
    ]
    trained = sum(param.numel for param in inventory if param.name not in frozen)
    total = sum(param.numel for param in inventory)
    share = trained / total if total else 0.0
    return "\n".join([*lines, f"trained {trained:,} of {total:,} parameters ({share:.2%})"])


def fold(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> list[MapRow]:
    """Fold parameters into one row per block, or per child module outside the blocks.

    A row whose parameters differ in state is told as `mixed`.
    """
    folded: dict[str, list[ParamInfo]] = {}
    for param in inventory:
        folded.setdefault(_fold_name(param), []).append(param)
    return [_row(name, params, frozen) for name, params in folded.items()]


def unfold(inventory: Sequence[ParamInfo], frozen: AbstractSet[str]) -> list[MapRow]:
    """Return one row per parameter."""
    return [_row(param.name, [param], frozen) for param in inventory]


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """Return every phase with every parameter's state and the totals, as plain data."""
    total = sum(param.numel for param in plan.inventory)
    return {
        "parameters": total,
        "ever_trained": list(plan.ever_trained),
        "phases": [
            {
                "name": phase.name,
                "trained_parameters": sum(
                    param.numel for param in plan.inventory if param.name not in phase.frozen
                ),
                "frozen_parameters": sum(
                    param.numel for param in plan.inventory if param.name in phase.frozen
                ),
                "states": [_state_as_data(param, phase.frozen) for param in plan.inventory],
            }
            for phase in plan.phases
        ],
    }


def freeze_picture(plan: Plan, began: Sequence[int], total_steps: int) -> np.ndarray:
    """Draw the freeze map: a row per block, optimizer steps from left to right.

    Args:
        plan: The phases.
        began: First step of each phase that has begun; later phases are not drawn.
        total_steps: Steps of the whole run, the width of the picture.

    Returns:
        Pixels `(H, W, 3)`, bytes.
    """
    rows = [row.name for row in fold(plan.inventory, frozenset())]
    font = ImageFont.load_default(13)
    left = 12 + max(int(font.getlength(name)) for name in rows)
    top, right, bottom = 26, left + _MAP_WIDTH, 26 + _ROW_HEIGHT * len(rows)
    image = Image.new("RGB", (right + 12, bottom + 44), "white")
    draw = ImageDraw.Draw(image)
    edges = [
        left + round(_MAP_WIDTH * step / max(1, total_steps)) for step in (*began, total_steps)
    ]
    for number, (start, end) in enumerate(pairwise(edges)):
        phase = plan.phases[number]
        for place, row in enumerate(fold(plan.inventory, phase.frozen)):
            y = top + _ROW_HEIGHT * place
            draw.rectangle((start, y, end - 1, y + _ROW_HEIGHT - 2), fill=_COLOURS[row.state])
        draw.line((start, top - 4, start, bottom), fill="black")
        draw.text((start + 3, 6), _shortened(phase.name, end - start, font), "black", font)
    for place, name in enumerate(rows):
        draw.text((6, top + _ROW_HEIGHT * place + 1), name, "black", font)
    draw.text((left, bottom + 2), "step 0", "black", font)
    draw.text((right, bottom + 2), str(total_steps), "black", font, anchor="ra")
    for place, (state, colour) in enumerate(_COLOURS.items()):
        x = 6 + 90 * place
        draw.rectangle((x, bottom + 24, x + 12, bottom + 36), fill=colour)
        draw.text((x + 17, bottom + 22), state, "black", font)
    return np.asarray(image)


_MAP_WIDTH, _ROW_HEIGHT = 640, 18
_COLOURS = {"frozen": "#c9d6e8", "trained": "#e07b39", "mixed": "#efc39a"}


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while text and font.getlength(text) > width - 6:
        text = text[:-1]
    return text


_SIGNS = {"frozen": "░", "trained": "█", "mixed": "▒"}


def _state_as_data(param: ParamInfo, frozen: AbstractSet[str]) -> dict[str, Any]:
    return {
        "name": param.name,
        "state": "frozen" if param.name in frozen else "trained",
        "shape": list(param.shape),
        "parameters": param.numel,
        "size_bytes": param.size_bytes,
        "depth": param.depth,
        "aliases": list(param.aliases),
    }


def _fold_name(param: ParamInfo) -> str:
    """Name a block by its path up to the index that counts it; else the first two segments."""
    segments = param.name.split(".")
    numbers = [place for place, segment in enumerate(segments) if segment.isdigit()]
    if param.depth is not None and numbers:
        return ".".join(segments[: numbers[0] + 1])
    return ".".join(segments[: min(2, len(segments) - 1)])


def _row(name: str, params: Sequence[ParamInfo], frozen: AbstractSet[str]) -> MapRow:
    states = {"frozen" if param.name in frozen else "trained" for param in params}
    return MapRow(
        name=name,
        state=states.pop() if len(states) == 1 else "mixed",
        tensors=len(params),
        parameters=sum(param.numel for param in params),
        size_bytes=sum(param.size_bytes for param in params),
    )
