"""The parts of a run, built from its config and not yet trained."""

from dataclasses import dataclass

import torch

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
    training: TrainConfig
    """`train:` of the config, with `checkpoint: {best: auto}` replaced by the metric it means."""
    total_steps: int
    """Optimizer steps of the whole run."""
    mixing: Mixing
    """What is mixed in every step."""
