"""Lines about a run before its first step: device, data, network, checkpoint, notes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from finetune.config.model import ImportLayer, Layer
from finetune.config.run import RunConfig
from finetune.config.train import TrainConfig
from finetune.config.transform_keys import Transform
from finetune.data.opening import DataFacts
from finetune.data.steps.written_steps import in_words
from finetune.freezing.lints import Lint
from finetune.freezing.origins import lines_on_weights
from finetune.freezing.plan import Plan
from finetune.train.built import Parts

_MOST_LAYERS = 6
"""Number of layers to name; the rest are counted."""
_MOST_CLASSES = 10
"""Number of classes to name; the rest are not shown."""


def facts_of(config: RunConfig, parts: Parts, checkpoint: Path | None) -> list[str]:
    """Return lines on the device, data, network and weights of a run.

    Args:
        config: The run config.
        parts: The parts built from it.
        checkpoint: The checkpoint that was loaded; None at step 0.
    """
    data, training = parts.data, parts.training
    facts = [
        f"device: {on_device(parts.device, training.precision)}",
        f"data: {on_samples(data.facts)}",
        f"network: {on_network(config, parts.plan)}",
        f"used: {on_choice(training, data.facts)}",
    ]
    if data.automatic:
        facts.append(f"transforms: {on_transforms(data.automatic)}")
    if not parts.model.weights_reports:
        loaded = (
            None if checkpoint is None else "those of the checkpoint; none loaded before step 0"
        )
        facts.append(f"weights: {loaded or on_no_weights(config)}")
    return facts


def notes_of(config: RunConfig, parts: Parts, lints: Mapping[str, Sequence[Lint]]) -> list[str]:
    """Return lines on what was guessed, ignored or left out before the first step.

    Args:
        config: The run config.
        parts: The parts built from it.
        lints: Notes on the run, by subject.
    """
    notes = list(config.notes)
    notes += [f"data: {note}" for note in parts.data.notes_on_all]
    notes += [f"weights: {line}" for line in lines_on_weights(parts.model.weights_reports)]
    return notes + [
        f"{about}: {lint.message}; {lint.hint}" for about, some in lints.items() for lint in some
    ]


def on_place(run: Path, step: int, total: int, checkpoint: Path | None) -> str:
    """Return the line on the folder of a run and the step at which it starts.

    Args:
        run: Folder of the run.
        step: Optimizer steps done.
        total: Optimizer steps of the whole run.
        checkpoint: The checkpoint that was loaded; None at step 0.
    """
    if checkpoint is None:
        return f"{run} begins at step 0 of {total:,}"
    return f"{run} goes on after step {step:,} of {total:,}, from {checkpoint}"


def on_device(device: torch.device, precision: str) -> str:
    """Return the words for device, number format and threads."""
    name = str(device)
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{name}, {precision}, threads: {torch.get_num_threads()}"


def on_samples(facts: DataFacts) -> str:
    """Return the words for the numbers of samples and classes."""
    samples = f"{on_sizes(facts)} samples"
    return "; ".join([samples, *(f"classes {told}" for told in on_all_classes(facts))])


def on_sizes(facts: DataFacts) -> str:
    """Return the words for the number of samples in each split."""
    return ", ".join(f"{count:,} {part}" for part, count in facts.sizes.items())


def on_all_classes(facts: DataFacts) -> list[str]:
    """Return the words for the classes: of the target, or of each target of a list of tasks."""
    if facts.classes is not None:
        return [on_classes(facts.classes)]
    return [f"of {name}: {on_classes(one.names)}" for name, one in facts.by_target.items()]


def on_classes(classes: tuple[str, ...]) -> str:
    """Return the number of classes and the first names."""
    more = ", ..." if len(classes) > _MOST_CLASSES else ""
    return f"{len(classes)}: {', '.join(classes[:_MOST_CLASSES])}{more}"


def on_transforms(automatic: Sequence[Transform]) -> str:
    """Return the words for transforms that the network needs and the config leaves out."""
    return f"the config names none, the network calls for {in_words(automatic)}"


def on_network(config: RunConfig, plan: Plan) -> str:
    """Return the words for the layers of a network and the number of its trained parameters."""
    layers = config.model.layers
    shown = ", ".join(map(_layer, layers[:_MOST_LAYERS]))
    more = f" and {len(layers) - _MOST_LAYERS} more" if len(layers) > _MOST_LAYERS else ""
    total = sum(param.numel for param in plan.inventory)
    ever_trained = set(plan.ever_trained)
    trained = sum(param.numel for param in plan.inventory if param.name in ever_trained)
    return f"{shown}{more}: {total:,} parameters, of which {trained:,} are trained"


def _layer(layer: Layer) -> str:
    """Return a layer's type, with its architecture or path, and its name."""
    what = getattr(layer, "architecture", None) or getattr(layer, "path", None)
    kind = layer.type if what is None else f"{layer.type} {what}"
    return kind if layer.name is None else f"{layer.name} ({kind})"


def on_no_weights(config: RunConfig) -> str:
    """Return the line for a network into which no weights were loaded."""
    # The user's own code may have loaded weights by itself, which nobody can see.
    if any(isinstance(layer, ImportLayer) for layer in config.model.layers):
        return "none loaded: all values are as the code that made the network left them, or random"
    return "none loaded: all values are random"


def on_choice(training: TrainConfig, facts: DataFacts) -> str:
    """Return the words for the weights that a run tests and predicts with."""
    best = training.checkpoint.best
    weights = "weights" if training.average is None else "averaged weights"
    if best is not None:
        return f"the {weights} with the best {best}"
    if "validation" in facts.sizes:
        return f"the last {weights}, as train.checkpoint.best is null"
    return (
        f"the last {weights}: without validation samples nothing tells which are best; "
        "data.split: {validation: 0.1} sets some aside"
    )
