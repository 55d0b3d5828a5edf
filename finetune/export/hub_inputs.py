"""What a folder for transformers holds besides its network: how raw samples become its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.errors import FinetuneError

OTHERWISE = "--format torch or onnx holds the whole network, --format safetensors its weights"

Rows = Mapping[str, Sequence[Any]]
"""Raw values of some samples by column."""
Reader = Callable[[Rows], list[dict[str, Any]]]
"""Prepares raw samples: the inputs of each call of the network, by the names of its arguments."""


@dataclass(frozen=True, slots=True)
class Example:
    """Code that calls a pipeline, for the model card."""

    argument: str
    """What the pipeline is called with."""
    imports: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    """Lines between the pipeline and its call."""


class HubInputs(Protocol):
    """The tokenizer, image processor or feature extractor that stands for a run's transforms."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in front of the network whose work it does."""
        ...

    @property
    def about(self) -> str:
        """How it prepares samples, as the end of a sentence."""
        ...

    @property
    def doubt(self) -> str | None:
        """Hint on samples that pipeline() may read otherwise than the run."""
        ...

    def write(self, module: Any, folder: Path, transformers: Any) -> None:
        """Write it beside the network `module`."""
        ...

    def reader(self, folder: Path, transformers: Any) -> Reader:
        """Load it from a folder, as `pipeline()` does."""
        ...

    def example(self, pipeline: str) -> Example:
        """Return code that calls a pipeline of this name."""
        ...


def cannot_hold(what: str, hint: str = OTHERWISE) -> FinetuneError:
    """Return the error for a run that no folder for transformers can hold."""
    return FinetuneError(what, where="--format hf", hint=hint)
