"""Choose a network that suits the inputs and is at hand, and what of it is trained."""

from collections.abc import Mapping, Sequence

import torch

from finetune.errors import FinetuneError, did_you_mean
from finetune.starting.chosen_columns import Columns
from finetune.starting.chosen_sizes import TrainingPace
from finetune.starting.found_data import FoundData
from finetune.starting.image_networks import is_of_pixels, network_of_images
from finetune.starting.network_parts import TRAINED, ChosenNetwork, Keys, head_of, rates_of
from finetune.starting.networks_at_hand import (
    has_package,
    text_network,
)
from finetune.starting.wishes import Choice, Wishes


def choose_network(found: FoundData, columns: Columns, wishes: Wishes) -> ChosenNetwork:
    """Return the network for the inputs.

    Raises:
        FinetuneError: no network that suits them is at hand, or one that was named is not known.
    """
    if wishes.train is not None and wishes.train not in TRAINED:
        raise FinetuneError(
            f"--train takes {', '.join(TRAINED)}, got {wishes.train!r}",
            hint=did_you_mean(wishes.train, TRAINED),
        )
    roles = {columns.by_name[name].role for name in columns.inputs}
    if roles & {"text"} or (roles == {"list"} and columns.task == "token_classification"):
        return _of_texts(found, columns, wishes)
    if "image" in roles or is_of_pixels(found, columns):
        return network_of_images(found, columns, wishes)
    _refuse_other_model(wishes, "mlp")
    if "recording" in roles:
        return _of_recordings(columns)
    return _of_numbers(found, columns)


def _refuse_other_model(wishes: Wishes, own: str) -> None:
    """Raise `FinetuneError` if the user named a network for inputs that have only one."""
    if wishes.model not in (None, own):
        raise FinetuneError(
            f"--model {wishes.model} does not take these inputs; there is one network for them",
            hint=f"leave --model out, or --model {own}",
        )


def _of_texts(found: FoundData, columns: Columns, wishes: Wishes) -> ChosenNetwork:
    """Return a pretrained text encoder with a new head."""
    path, choice = text_network(wishes.model)
    output = "hidden" if columns.task == "token_classification" else "mean"
    encoder: Keys = {"name": "encoder", "type": "transformers", "path": path, "output": output}
    layers = [encoder, *head_of(columns, found)]
    if columns.task == "similarity":
        layers = _siamese(encoder, columns)
    tokenize: Keys = {"type": "tokenize", "max_length": _length(columns)}
    freeze, lr, frozen = rates_of(columns, wishes)
    pace = TrainingPace(steps=600, most_epochs=20 if wishes.train in (None, "head") else 4)
    return ChosenNetwork(layers, pace, lr, (choice, frozen), [tokenize], freeze)


def _siamese(encoder: Keys, columns: Columns) -> list[Keys]:
    """Return layers that embed two texts alike."""
    first, second = columns.inputs[:2]
    return [
        {**encoder, "inputs": [first]},
        {"name": "head", "type": "Linear", "out_features": 384},
        {"name": "encoder_again", "type": "shared", "layer": "encoder", "inputs": [second]},
        {"name": "head_again", "type": "shared", "layer": "head"},
        {"name": "both", "type": "stack", "inputs": ["head", "head_again"]},
    ]


def _length(columns: Columns) -> int:
    """Return how many tokens of a text are kept: what most texts have, in steps of 32."""
    # About 1.4 tokens a word; half more, since the mean says little about the longest.
    words = sum(one.words for one in columns.inputs_of("text")) or 60
    tokens = 32 * -(-int(words * 1.4 * 1.5 + 2) // 32)
    return min(max(tokens, 32), 256 if torch.cuda.is_available() else 128)


def _of_recordings(columns: Columns) -> ChosenNetwork:
    """Return a small network on waveforms."""
    if not has_package("soundfile"):
        raise FinetuneError(
            "recordings need the package 'soundfile'", hint="pip install 'finetune[audio]'"
        )
    layers: list[Keys] = [
        {"name": "channel", "type": "Unflatten", "dim": 1, "unflattened_size": [1, -1]},
        {"name": "filters", "type": "Conv1d", "out_channels": 16, "kernel_size": 64, "stride": 4},
        {"name": "norm1", "type": "BatchNorm1d"},
        {"name": "act1", "type": "ReLU"},
        {"name": "shapes", "type": "Conv1d", "out_channels": 32, "kernel_size": 8, "stride": 4},
        {"name": "norm2", "type": "BatchNorm1d"},
        {"name": "act2", "type": "ReLU"},
        {"name": "pool", "type": "AdaptiveAvgPool1d", "output_size": 1},
        {"name": "flat", "type": "Flatten"},
        {"name": "head", "type": "Linear", "out_features": "classes"},
    ]
    said = Choice("network", "a small convolutional network on the waveform, from scratch")
    source: Keys = {"sample_rate": 16000, "seconds": 1.0}
    cut = Choice("recordings", "the first second of each, at 16,000 Hz", "seconds: says how much")
    return ChosenNetwork(
        layers, TrainingPace(steps=600, most_epochs=40), 1e-2, (said, cut), None, None, source
    )


def _of_numbers(found: FoundData, columns: Columns) -> ChosenNetwork:
    """Return a small network on numbers and categories."""
    layers: list[Keys] = [
        {"name": "hidden", "type": "Linear", "out_features": 64},
        {"name": "act", "type": "ReLU"},
        *head_of(columns, found),
    ]
    said = Choice("network", "one hidden layer of 64 on numbers and categories")
    few = found.num_rows < 20_000
    pace = TrainingPace(steps=1500, most_epochs=60, most_batch=32 if few else 256)
    transforms = _steps_on_columns(columns)
    return ChosenNetwork(layers, pace, 1e-2 if few else 3e-3, (said,), transforms)


def _steps_on_columns(columns: Columns) -> list[Keys]:
    """Return the steps that make one vector of numbers and categories."""
    numbers = [one.name for one in columns.inputs_of("number")]
    arrays = [one.name for one in columns.inputs_of("array")]
    words = [one.name for one in columns.inputs_of("category", "words", "constant", "id")]
    gappy = {one.name for one in columns.by_name.values() if one.gaps}
    steps: list[Keys] = []
    for names, value in ((words, "most_frequent"), (numbers, "median")):
        if filled := [name for name in names if name in gappy]:
            # That a cell was empty often says something itself.
            steps.append({"type": "fill", "columns": filled, "with": value, "flag": True})
        if whole := [name for name in names if name not in gappy]:
            # New data may have gaps, which are refused without this step.
            steps.append({"type": "fill", "columns": whole, "with": value})
    if numbers + arrays:
        steps.append({"type": "standardize", "columns": numbers + arrays})
    if words:
        steps.append({"type": "categories", "columns": words})
    if len(columns.inputs) > 1 or not arrays:
        steps.append({"type": "stack"})
    return steps


def metrics_of(columns: Columns) -> list[str]:
    """Return the metrics of the task; the first one chooses the best weights."""
    usual: Mapping[str, Sequence[str]] = {
        "classification": ("accuracy", "f1"),
        "multilabel": ("f1",),
        "regression": ("mae", "r2"),
        "token_classification": ("f1", "accuracy"),
        "segmentation": ("mean_iou",),
        "similarity": ("spearman",),
    }
    target = columns.by_name[columns.target[0]]
    most = max(target.counts, default=0)
    # Where one class is frequent, accuracy is high for a constant answer.
    if columns.task == "classification" and most > 0.8 * sum(target.counts):
        return ["f1", "accuracy"]
    return [*usual[columns.task]]
