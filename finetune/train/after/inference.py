"""How the trained network of a run is called: number format, compiled code, layout of images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.config.run import RunConfig
from finetune.errors import FinetuneError, Key
from finetune.models.network import TensorSpec
from finetune.train.before.compiling import refuse_uncompilable
from finetune.train.precision import Precision

PLAIN_CALLS = (
    "inference.precision=float32",
    "inference.compile=false",
    "inference.channels_last=false",
)
"""Overrides for a network that is called in float32 by its own code, as exports need it."""
_IMAGE_AXES = 3
"""Axes of one image, `(C, H, W)`."""


@dataclass(frozen=True, slots=True)
class Inference:
    """Calls the trained network of a run without gradients, as the config's `inference` says."""

    network: Callable[..., Any]
    """The network as it is called: itself, or compiled."""
    precision: Precision
    is_channels_last: bool
    is_strict: bool
    """Whether predictions use torch's inference mode, whose outputs never enter a graph."""
    is_compiled: bool
    """Whether compiled code is called, which hooks and replaced `forward` do not reach."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        model: nn.Module,
        specs: Mapping[str, TensorSpec],
        device: torch.device,
    ) -> "Inference":
        """Return how the network of a run is called.

        Args:
            config: The run config.
            model: The network, in evaluation mode. With `channels_last` the layout of its weights
                is changed in place, their values stay.
            specs: Shape and type of one sample in each batch column.
            device: Where the network is.

        Raises:
            FinetuneError: this machine, or this network, has not what the config asks for.
        """
        asked = config.inference
        key: Key = ("inference" if asked.precision else "train", "precision")
        precision = Precision(asked.precision or config.train.precision, device, key=key)
        refuse_layout(config, model, specs)
        if asked.channels_last:
            model.to(memory_format=torch.channels_last)
        network: Callable[..., Any] = model
        if asked.compile:
            refuse_uncompilable(device, key=("inference", "compile"))
            # The number of samples and their length change from batch to batch.
            network = torch.compile(model, dynamic=True)
        is_strict = asked.mode == "inference_mode"
        return cls(network, precision, asked.channels_last, is_strict, asked.compile)

    def __call__(self, **inputs: Tensor) -> Any:
        """Return the outputs for a batch, in whatever mode and number format the caller has set."""
        return self.network(**self.laid_out(inputs))

    def laid_out(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of a batch, images in the layout of the weights."""
        if not self.is_channels_last:
            return dict(inputs)
        return {
            name: each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each
            for name, each in inputs.items()
        }

    def outputs(self, inputs: Mapping[str, Tensor]) -> Any:
        """Return the outputs for a batch, computed without a graph in the number format asked."""
        # Outputs of inference mode can never enter a graph, which code of the user may need.
        quiet = torch.inference_mode if self.is_strict else torch.no_grad
        with quiet(), self.precision.autocast():
            return self(**inputs)


def refuse_layout(config: RunConfig, model: nn.Module, specs: Mapping[str, TensorSpec]) -> None:
    """Raise if `channels_last` is asked for and would change nothing.

    Raises:
        FinetuneError: no input is an image, or the network has no convolution over images.
    """
    if not config.inference.channels_last:
        return
    # Weights of 2-d convolutions, `(out, in, height, width)`.
    has_kernels = any(each.ndim == _IMAGE_AXES + 1 for each in model.parameters())
    has_images = any(len(spec.shape) == _IMAGE_AXES for spec in specs.values())
    if has_kernels and has_images:
        return
    what = "the network has no 2-d convolution" if has_images else "no input is an image"
    raise FinetuneError(
        f"channels_last would change nothing: {what}",
        hint="leave it out",
        key=("inference", "channels_last"),
    )


def notes_on_inference(config: RunConfig) -> tuple[str, ...]:
    """Return a line if the network is called otherwise than in training, so that bits differ."""
    asked, trained = config.inference, config.train.precision
    ways = []
    if asked.precision not in (None, trained):
        ways.append(f"in {asked.precision} (trained in {trained})")
    if asked.compile:
        ways.append("by compiled code")
    if asked.channels_last:
        ways.append("with channels last")
    if not ways:
        return ()
    return (
        f"`inference`: the network is called {', '.join(ways)}: figures and predictions may "
        "differ a little from those at the end of training",
    )
