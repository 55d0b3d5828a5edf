"""The parts of a run, built from its config and not yet trained."""

from dataclasses import dataclass

import torch
from torch import nn

from finetune.config.train import TrainConfig
from finetune.data.loading.mixing import Mixing
from finetune.data.prepare import PreparedData
from finetune.freezing.plan import Plan
from finetune.models.declared import Network
from finetune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Parts:
    """Data, network, plan and task of one run, before step 0."""

    data: PreparedData
    model: Network
    plan: Plan
    task: Task
    device: torch.device
    """Where the run trains."""
    training: TrainConfig
    """`train:` of the config, with `checkpoint: {best: auto}` replaced by the metric it means."""
    total_steps: int
    """Optimizer steps of the whole run."""
    mixing: Mixing
    """What is mixed in every step."""
    lines_on_building: tuple[str, ...] = ()
    """Lines for the user on how several processes built the network."""

    @property
    def place(self) -> torch.device:
        """Where the network is: where the run trains, or on the CPU until it is sharded."""
        return place_of(self.model, self.device)


def place_of(model: nn.Module, device: torch.device) -> torch.device:
    """Return where the parameters of a network are; `device` if it has none."""
    return next((one.device for one in model.parameters()), device)
