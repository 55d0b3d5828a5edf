"""What is said of a run before its first step: where it runs, on what, from where it goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from finetune.config.data import Transform
from finetune.config.model import ImportLayer, Layer
from finetune.config.run import RunConfig
from finetune.data.opening import DataFacts
from finetune.data.written_steps import in_words
from finetune.freezing.lints import Lint
from finetune.freezing.origins import lines_on_weights
from finetune.freezing.plan import Plan
from finetune.train.built import Parts

_MOST_LAYERS = 6
"""Layers that are named; the rest are counted."""
_MOST_CLASSES = 10
"""Classes that are named; the rest are counted."""


def facts_of(config: RunConfig, parts: Parts) -> list[str]:
    """Return what a run is about, a line each, for the person who starts it.

    Args:
        config: The run's.
        parts: What it describes.
    """
    data, training = parts.data, parts.training
    facts = [
        f"device: {on_device(parts.device, training.precision)}",
        f"data: {on_samples(data.facts)}",
        f"network: {on_network(config, parts.plan)}",
        f"used: {on_choice(training.checkpoint.best, data.facts)}",
    ]
    if data.automatic:
        facts.append(f"transforms: {on_transforms(data.automatic)}")
    if not parts.model.weights_reports:
        facts.append(f"weights: {_no_weights(config)}")
    return facts


def notes_of(config: RunConfig, parts: Parts, lints: Mapping[str, Sequence[Lint]]) -> list[str]:
    """Return what was guessed, ignored or left out before the first step, a line each.

    Args:
        config: The run's.
        parts: What it describes.
        lints: Notes on it, by what they are about.
    """
    notes = list(config.notes)
    notes += [f"data: {note}" for note in parts.data.notes_on_all]
    notes += [f"weights: {line}" for line in lines_on_weights(parts.model.weights_reports)]
    return notes + [
        f"{about}: {lint.message}; {lint.hint}" for about, some in lints.items() for lint in some
    ]


def on_place(run: Path, step: int, total: int, checkpoint: Path | None) -> str:
    """Say where a run lies and where it goes on.

    Args:
        run: Its folder.
        step: Optimizer steps that are done.
        total: Those of the whole run.
        checkpoint: What it goes on from; None if it begins.
    """
    if checkpoint is None:
        return f"{run} begins at step 0 of {total:,}"
    return f"{run} goes on after step {step:,} of {total:,}, from {checkpoint}"


def on_device(device: torch.device, precision: str) -> str:
    """Say what computes, and in which number format."""
    name = str(device)
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{name}, {precision}, threads: {torch.get_num_threads()}"


def on_samples(facts: DataFacts) -> str:
    """Say how many samples and classes there are."""
    samples = f"{on_sizes(facts)} samples"
    if facts.classes is None:
        return samples
    return f"{samples}; classes {on_classes(facts.classes)}"


def on_sizes(facts: DataFacts) -> str:
    """Say how many samples each part has."""
    return ", ".join(f"{count:,} {part}" for part, count in facts.sizes.items())


def on_classes(classes: tuple[str, ...]) -> str:
    """Say how many classes there are, and name them."""
    more = ", ..." if len(classes) > _MOST_CLASSES else ""
    return f"{len(classes)}: {', '.join(classes[:_MOST_CLASSES])}{more}"


def on_transforms(automatic: Sequence[Transform]) -> str:
    """Say what is done to each sample because the network calls for it, and nobody else does."""
    return f"the config names none, the network calls for {in_words(automatic)}"


def on_network(config: RunConfig, plan: Plan) -> str:
    """Say which layers a network has, and how many of its parameters ever train."""
    layers = config.model.layers
    shown = ", ".join(map(_layer, layers[:_MOST_LAYERS]))
    more = f" and {len(layers) - _MOST_LAYERS} more" if len(layers) > _MOST_LAYERS else ""
    total = sum(param.numel for param in plan.inventory)
    ever_trained = set(plan.ever_trained)
    trained = sum(param.numel for param in plan.inventory if param.name in ever_trained)
    return f"{shown}{more}: {total:,} parameters, of which {trained:,} are trained"


def _layer(layer: Layer) -> str:
    what = getattr(layer, "architecture", None) or getattr(layer, "path", None)
    kind = layer.type if what is None else f"{layer.type} {what}"
    return kind if layer.name is None else f"{layer.name} ({kind})"


def _no_weights(config: RunConfig) -> str:
    if any(isinstance(layer, ImportLayer) for layer in config.model.layers):
        return "none loaded: all values are as the code that made the network left them, or random"
    return "none loaded: all values are random"


def on_choice(best: str | None, facts: DataFacts) -> str:
    """Say which weights a run tests and predicts with."""
    if best is not None:
        return f"the weights with the best {best}"
    if "validation" in facts.sizes:
        return "the last weights, as train.checkpoint.best is null"
    return (
        "the last weights: without validation samples nothing tells which are best; "
        "data.split: {validation: 0.1} sets some aside"
    )
