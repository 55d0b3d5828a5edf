"""The work of a case as plain numbers: split, order, rates and first weights, the same for all.

It is written once, before anything is measured, so that no contestant pays for drawing it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contest.cases import Boundary


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of epochs with one frozen set."""

    first_epoch: int
    trained: tuple[str, ...]
    """Names of the parameters that train."""
    held: tuple[str, ...]
    """Names of the modules that stay in evaluation mode."""
    border: Boundary


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a rate."""

    names: tuple[str, ...]
    options: dict[str, float]
    """Arguments of the optimizer other than the rate."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a hand-written loop holds as constants."""

    network: str
    config: str
    trust: tuple[str, ...]
    overrides: tuple[str, ...]
    classes: int
    epochs: int
    batch_size: int
    options: dict[str, Any]
    """Where data and pretrained weights lie, and how the data is prepared."""
    phases: tuple[Phase, ...]
    groups: tuple[Group, ...]
    rows: dict[str, Tensor]
    """Rows of the source in each of `train`, `validation` and `test`."""
    orders: Tensor
    """Positions in `train`, epochs by samples."""
    rates: Tensor
    """Steps by groups."""
    seeds: Tensor
    """One for each step, for Dropout."""
    start: dict[str, Tensor]
    """First values of all parameters that ever train."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.orders.shape[1] // self.batch_size)

    def windows(self, epoch: int) -> list[Tensor]:
        """Return the positions in `train` of each step of an epoch."""
        return list(self.orders[epoch].split(self.batch_size))

    def phase_of(self, epoch: int) -> Phase:
        """Return the phase that an epoch belongs to."""
        return [phase for phase in self.phases if phase.first_epoch <= epoch][-1]

    def begins(self, epoch: int) -> bool:
        """Tell whether a phase begins with an epoch."""
        return any(phase.first_epoch == epoch for phase in self.phases)

    def save(self, folder: Path) -> None:
        """Write the job into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = asdict(self)
        arrays = {name: plain.pop(name) for name in ("orders", "rates", "seeds")}
        arrays |= {f"rows_{name}": rows for name, rows in plain.pop("rows").items()}
        save_file(plain.pop("start"), folder / "start.safetensors")
        np.savez(folder / "job.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
        (folder / "job.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a job from its folder."""
        plain = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        with np.load(folder / "job.npz", allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        plain["phases"] = tuple(Phase(**phase) for phase in plain["phases"])
        plain["groups"] = tuple(Group(**group) for group in plain["groups"])
        plain["rows"] = {
            name.removeprefix("rows_"): tensors.pop(name)
            for name in list(tensors)
            if name.startswith("rows_")
        }
        plain["start"] = load_file(folder / "start.safetensors")
        return cls(**plain | tensors)


def enter(model: nn.Module, phase: Phase) -> None:
    """Freeze and hold what a phase has frozen and held, as is usual by hand."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.trained)
    train(model, phase)


def train(model: nn.Module, phase: Phase) -> None:
    """Put the network into training mode, but for what is held."""
    model.train()
    for name in phase.held:
        if name:
            model.get_submodule(name).eval()


@contextmanager
def evaluating(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Put the network into evaluation mode, without gradients, for a while."""
    model.eval()
    with torch.no_grad():
        yield
    train(model, phase)


def optimizer_for(job: Job, model: nn.Module) -> torch.optim.AdamW:
    """Return the optimizer of a job over `model`."""
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in group.names], **group.options}
        for group in job.groups
    ]
    return torch.optim.AdamW(groups, lr=1.0)
