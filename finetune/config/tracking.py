"""`tracking:` who gets curves and pictures of a run, how often pictures are drawn, and the page."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from finetune.config.base import Node, refuse
from finetune.config.train import Every

Program = Literal["tensorboard", "mlflow", "wandb"]
"""Names of the programs that a run can report to."""


class TrackingConfig(Node):
    """What is written about a run beside `metrics.jsonl`, for people to look at."""

    to: tuple[Program, ...] = ("tensorboard",)
    """Programs that get curves, pictures, texts and settings. With an empty list nothing but `metrics.jsonl` is written. `mlflow` and `wandb` keep all on this machine unless variables of their own, `MLFLOW_TRACKING_URI` and `WANDB_MODE`, say otherwise; each needs the extra of its name."""
    pictures_every: Every | Literal["end", "never"] = "end"
    """How often pictures of what the network gets wrong are drawn from an evaluation of the validation samples: every so many epochs or steps, which is looked at when an evaluation is due; once, at the end of the run, by the weights in use; or never."""
    report: bool = True
    """Whether `report.html`, a page about the run that needs no network, is written into the run folder when the run ends."""
    projector: bool = False
    """Whether what enters the head, the last layer with weights, is written once at the end for TensorBoard's *Projector*: of up to 1,000 validation samples, with their targets, the beginning of their texts, or small images. It takes one more evaluation."""
    histograms: bool = False
    """Whether pictures come with histograms of the weights that train. Frozen weights have none: they do not change."""

    @model_validator(mode="after")
    def _projector_is_tensorboards(self) -> Self:
        if self.projector and "tensorboard" not in self.to:
            message = "is a page of TensorBoard, which is not among the programs"
            refuse("TrackingConfig", (("projector",), message, "add tensorboard to tracking.to"))
        return self


def _list_is_to(value: Any) -> Any:
    """Turn the short form, a list of programs, into a mapping."""
    return {"to": value} if isinstance(value, list | tuple) else value


Tracking = Annotated[TrackingConfig, BeforeValidator(_list_is_to)]
"""The settings as a mapping, or a list of programs."""
