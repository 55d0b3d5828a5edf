"""The loop by hand in plain torch: over the whole network, or over what is stored at its border."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contest.cases import Boundary
from contest.inputs import Split, read_splits
from contest.job import Job, enter, evaluating, optimizer_for
from contest.networks import Digits, Image, Text, build

Forward = Callable[[str, Tensor, Boundary], Tensor]
"""From the name of a split, positions in it and the border of the phase to the outputs."""


@dataclass(slots=True)
class Outcome:
    """What a contestant reports."""

    accuracy: float | None = None
    """On the test samples; None where the training was cut short."""
    epoch_ends: list[tuple[float, float]] = field(default_factory=list)
    """Wall and CPU clock, in seconds, at the end of each epoch."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """What was trained, by name."""

    def epoch_is_over(self) -> None:
        """Note the time."""
        self.epoch_ends.append((time.perf_counter(), time.process_time()))


def plain(job: Job, epochs: int) -> Outcome:
    """Train with the frozen part set aside by `requires_grad_(False)` and `eval()` alone."""
    splits, model = read_splits(job), build(job)
    return _train(job, model, splits, lambda s, rows, _: model(**splits[s].batch(rows)), epochs)


def limit(job: Job, epochs: int) -> Outcome:
    """Run the frozen part once over every sample, then train what follows on what it gave."""
    splits, model = read_splits(job), build(job)
    if isinstance(model, Digits):
        return _train(job, model, splits, lambda s, r, _: model(**splits[s].batch(r)), epochs)
    boundaries = list(dict.fromkeys(phase.border for phase in job.phases))
    model.eval()
    stored = {name: _stored(job, model, split, boundaries) for name, split in splits.items()}
    suffixes = {border: model.suffix(border) for border in boundaries}

    def forward(name: str, rows: Tensor, border: Boundary) -> Tensor:
        split, values = splits[name], stored[name][border]
        if border == "pooled" or split.lengths is None:
            return suffixes[border](values[rows], {})
        width = split.width(rows)
        mask = {"attention_mask": split.columns["attention_mask"][rows, :width]}
        return suffixes[border](values[rows, :width], mask)

    return _train(job, model, splits, forward, epochs)


def _stored(
    job: Job, model: Text | Image, split: Split, boundaries: list[Boundary]
) -> dict[Boundary, Tensor]:
    """Return what the network holds at each border, for every sample of a split."""
    stored: dict[Boundary, Tensor] = {}
    with torch.inference_mode():
        for rows in torch.arange(len(split)).split(job.batch_size):
            found = model.at_borders(split.batch(rows), boundaries)
            for border, values in zip(boundaries, found, strict=True):
                if split.lengths is None or border == "pooled":
                    room = stored.setdefault(border, torch.zeros(len(split), *values.shape[1:]))
                    room[rows] = values
                    continue
                shape = len(split), int(split.lengths.max()), *values.shape[2:]
                room = stored.setdefault(border, torch.zeros(shape))
                room[rows, : values.shape[1]] = values
    return stored


def _train(
    job: Job, model: nn.Module, splits: dict[str, Split], forward: Forward, epochs: int
) -> Outcome:
    """Train, with an evaluation after every epoch and one of the test samples at the end."""
    outcome, optimizer, step = Outcome(), optimizer_for(job, model), 0
    for epoch in range(epochs):
        phase = job.phase_of(epoch)
        if job.begins(epoch):
            enter(model, phase)
        for rows in job.windows(epoch):
            torch.manual_seed(int(job.seeds[step]))
            for group, rate in zip(optimizer.param_groups, job.rates[step].tolist(), strict=True):
                group["lr"] = rate
            optimizer.zero_grad()
            outputs = forward("train", rows, phase.border)
            F.cross_entropy(outputs, splits["train"].target[rows]).backward()
            optimizer.step()
            step += 1
        with evaluating(model, phase):
            _evaluate(job, splits, forward, "validation", phase.border)
        outcome.epoch_is_over()
    with evaluating(model, phase):
        accuracy = _evaluate(job, splits, forward, "test", phase.border)
    outcome.accuracy = accuracy if epochs == job.epochs else None
    parameters = dict(model.named_parameters())
    outcome.weights = {name: parameters[name].detach() for name in job.start}
    return outcome


def _evaluate(
    job: Job, splits: dict[str, Split], forward: Forward, name: str, border: Boundary
) -> float:
    """Return the accuracy on a split; the mean loss is computed as well."""
    target, right, loss = splits[name].target, 0, 0.0
    for rows in torch.arange(len(target)).split(job.batch_size):
        outputs = forward(name, rows, border)
        loss += float(F.cross_entropy(outputs, target[rows], reduction="sum"))
        right += int((outputs.argmax(1) == target[rows]).sum())
    return right / len(target)
