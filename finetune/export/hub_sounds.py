"""The feature extractor in a folder for transformers: waveforms, scaled if the run scales them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetune.data.media.waveforms import SoundRules, read_waveform
from finetune.export.hub_inputs import Example, Reader, Rows, cannot_hold
from finetune.export.source import ExportSource

_EPS = 1e-7
"""What `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm` adds to the variance."""


@dataclass(frozen=True, slots=True)
class HubSounds:
    """Recordings as waveforms."""

    column: str
    length: int
    """Numbers of a waveform that the network takes."""
    rules: SoundRules
    scaling: str | None
    """Layer in front of the network that gives each waveform zero mean and unit variance."""

    @classmethod
    def of(cls, source: ExportSource, network: str) -> "HubSounds":
        """Return the feature extractor that stands for what a run does to recordings.

        Args:
            source: The run.
            network: Name of the layer with the network.

        Raises:
            FinetuneError: no feature extractor does what it does.
        """
        (column, *others), data = source.run.facts.inputs, source.run.config.data
        if others:
            raise cannot_hold("the network takes several recordings, and pipeline() hands it one")
        if source.predictor.preparing.steps.other:
            name = type(source.predictor.preparing.steps.other[0].step).__name__
            raise cannot_hold(
                f"the run prepares its recordings by the step {name}, which a feature extractor "
                "cannot"
            )
        (length,) = source.run.specs[column].shape
        rules = SoundRules.of(data.source or data.train)
        return cls(column, length, rules, _scaling(source, network, length))

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in front of the network whose work it does."""
        return () if self.scaling is None else (self.scaling,)

    @property
    def about(self) -> str:
        """How it prepares samples, as the end of a sentence."""
        cut = ": cut longer ones, and put zeros behind shorter ones" if self.rules.length else ""
        return (
            f"its feature extractor takes waveforms of {self.length:,} numbers, "
            f"{self.rules.rate:,} a second, the mean of all channels{cut}"
        )

    @property
    def doubt(self) -> str | None:
        """Hint on samples that pipeline() may read otherwise than the run: there are none."""
        return None

    def write(self, module: Any, folder: Path, transformers: Any) -> None:
        """Write the feature extractor."""
        transformers.Wav2Vec2FeatureExtractor(
            sampling_rate=self.rules.rate,
            do_normalize=self.scaling is not None,
            # The run has none either: its network hears the zeros behind a short recording.
            return_attention_mask=False,
        ).save_pretrained(folder)

    def reader(self, folder: Path, transformers: Any) -> Reader:
        """Load the feature extractor from a folder."""
        where = {"local_files_only": True, "trust_remote_code": False}
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, **where)

        def read(rows: Rows) -> list[dict[str, Any]]:
            waves = [read_waveform(item, self.rules).numpy() for item in rows[self.column]]
            return [dict(extractor(waves, sampling_rate=self.rules.rate, return_tensors="pt"))]

        return read

    def example(self, pipeline: str) -> Example:
        """Return code that calls a pipeline of this name."""
        lines = [
            f"wave = np.zeros({self.length}, np.float32)  # {self.rules.rate} numbers a second"
        ]
        if self.rules.length is not None:
            lines.append(
                f"wave = np.pad(wave[:{self.length}], (0, max(0, {self.length} - len(wave))))"
            )
        return Example("wave", ("import numpy as np",), tuple(lines))


def _scaling(source: ExportSource, network: str, length: int) -> str | None:
    """Return the layer before the network that scales waveforms as a feature extractor does."""
    layers = source.run.config.model.layers
    names = [node.name or str(place) for place, node in enumerate(layers)]
    place = names.index(network)
    # A feature extractor comes first: in any other place the layer does something else.
    if place != 1 or layers[0].inputs is not None or layers[1].inputs is not None:
        return None
    module = source.network.get_submodule(names[0])
    is_scaling = (
        isinstance(module, nn.LayerNorm)
        and module.weight is None
        and module.normalized_shape == (length,)
        and module.eps == _EPS
    )
    return names[0] if is_scaling else None
