"""The whole config of a run."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from finetune.config.base import Node
from finetune.config.data import DataConfig
from finetune.config.freeze import FreezeConfig
from finetune.config.model import ModelConfig
from finetune.config.optim import ConstantSchedule, OptimizerConfig, Schedule
from finetune.config.task import Task
from finetune.config.train import TrainConfig


class InferenceConfig(Node):
    """How the trained network is run."""

    mode: Literal["inference_mode", "no_grad"] = "inference_mode"
    """Which of torch's two ways to leave gradients out. Outputs of `no_grad` may enter a later graph."""
    batch_size: PositiveInt | None = None
    """Samples of one forward pass; `train.micro_batch` or `train.batch_size` if left out."""


class RunConfig(Node):
    """One fine-tuning run."""

    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Name of the run and of its folder below `runs/`; the file's name if left out."""
    seed: NonNegativeInt = 0
    """Where all randomness begins: initial weights, order of samples, dropout, augmentation."""
    model: ModelConfig
    """The network."""
    data: DataConfig
    """The samples."""
    task: Task
    """What is learned."""
    freeze: FreezeConfig | None = None
    """What is frozen; nothing if left out."""
    optimizer: OptimizerConfig
    """How parameters move."""
    schedule: Schedule = ConstantSchedule()
    """How the rate changes over the run."""
    train: TrainConfig
    """How training proceeds."""
    inference: InferenceConfig = InferenceConfig()
    """How the trained network is run."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        is_list = isinstance(value, list | tuple)
        return {"phases": [{"name": "all", "freeze": value}]} if is_list else value
