"""What differs between two runs: config, data, weights, figures, environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError, FinetuneError
from finetune.reading import read_own_json
from finetune.runs.kept import Checkpoints
from finetune.runs.run_record import note_on_samples, read_run
from finetune.runs.saved_runs import saved_folder
from finetune.runs.weight_distances import WeightDistances, weight_distances

Pair = tuple[Any, Any]
"""The value of the first run and that of the second; None where a run has none."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two runs; what is equal is left out."""

    config: Mapping[str, Pair]
    """Values of the config by dotted key."""
    data: Mapping[str, Pair]
    """Sizes of the parts, classes and fingerprints of columns and rows, by what they are."""
    metrics: Mapping[str, Pair]
    """Figures of the weights in use, by tag."""
    environment: Mapping[str, Pair]
    """Versions and device."""
    weights: WeightDistances | None
    """None where the checkpoints cannot be compared."""
    no_weights: str | None
    """Why they cannot."""
    note: str | None
    """That the runs were validated on different samples; None if not, or not known."""


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two runs.

    Raises:
        CheckpointError: one of the folders holds no run.
    """
    folders = saved_folder(first), saved_folder(second)
    one, other = read_run(first), read_run(second)
    weights, why = None, None
    try:
        chosen = [Checkpoints(folder.checkpoints, 1).chosen() for folder in folders]
        weights = weight_distances(chosen[0], chosen[1], first / "plan.json")
    except FinetuneError as error:
        why = f"{error.where}: {error.message}"
    except OSError as error:
        why = str(error)
    seeds = {"seed": one.seed}, {"seed": other.seed}
    return Comparison(
        _different({**seeds[0], **one.settings}, {**seeds[1], **other.settings}),
        _different(_facts(first), _facts(second)),
        _different(one.metrics, other.metrics),
        _different(_environment(one.summary), _environment(other.summary)),
        weights,
        why,
        note_on_samples([one, other]),
    )


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Pair]:
    """Return the entries of two mappings that differ, in their order."""
    keys = dict.fromkeys((*first, *second))
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _facts(run: Path) -> dict[str, Any]:
    """Return what `data.json` says of the data, each fact by what it is."""
    try:
        found = read_own_json(run / "data.json")
        identity = found["identity"]
        facts = {f"{part} samples": size for part, size in found["sizes"].items()}
        facts |= {"inputs": found["inputs"], "target": found["target"], "classes": found["classes"]}
        facts |= {f"contents of {name}": digest for name, digest in identity["columns"].items()}
        facts |= {f"rows of {part}": one["rows"] for part, one in identity["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "missing, damaged, or of a release that kept less", where=str(run / "data.json")
        ) from error
    return facts


def _environment(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return versions and device, as the summary of a run has them."""
    versions = summary.get("versions")
    named = {f"{name} version": one for name, one in versions.items()} if versions else {}
    return named | {"device": summary.get("device")}
