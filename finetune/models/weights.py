"""Load pretrained tensors from a file into a module."""

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.config.model import WeightsConfig
from finetune.errors import FinetuneError, Key, ModelError
from finetune.importing import package_path
from finetune.models.loaded_values import (
    conversion,
    not_finite,
    nothing_but_zeros,
    refuse_other_numbers,
)
from finetune.models.renaming import fits_all, in_yaml, mending, renamed
from finetune.models.weights_report import WeightsReport, misfit
from finetune.reading import A_POINTER, check_safetensors, is_pointer

_NESTED_UNDER = ("state_dict", "model")
"""Names of containers in a file that are opened without being asked for."""
_MOST_NESTED = 2
"""Most containers around a container."""
# State of an optimizer lies beside the weights in many files and has tensors of the same shapes.
_OF_OPTIMIZERS = frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer"})
_TORCH_FLOOR = (2, 10)
"""First release of torch whose `weights_only=True` has no known hole."""


def load_weights(module: nn.Module, config: WeightsConfig, *, key: Key) -> WeightsReport:
    """Copy the tensors of a file into `module`, which keeps its dtypes and devices.

    A tied tensor counts as missing only if the file has none of its names. torch itself supplies
    the step counter of a batch norm, which old files lack. On an error the module may be partly
    loaded.

    Args:
        module: Receives the tensors; mutated.
        config: Names the file, and the rename of its tensors.
        key: Position of the config value that asks for it.

    Raises:
        ModelError: the file is not plain tensors, nothing of it fits, it has whole numbers for
            floats, or something does not fit or is NaN or infinite and `strict` is set.
    """
    path = weights_file(config, key=key)
    found = read_tensors(path, config.rename, (*key, "path"))
    own = module.state_dict(keep_vars=True)
    if found.must_be_chosen:
        raise _not_chosen(path, found, own, key)
    tensors = renamed(found.tensors, config.rename, (*key, "rename"))
    refuse_other_numbers(tensors, own, path.name, key=key)
    mismatched = {n for n, t in tensors.items() if n in own and own[n].shape != t.shape}
    # torch raises on a shape that differs, `strict=False` or not; all faults are to be told at
    # once.
    fitting = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
    result = module.load_state_dict(fitting, strict=False)
    unexpected = set(result.unexpected_keys)
    loaded = tuple(name for name in fitting if name not in unexpected)
    report = WeightsReport(
        path=str(path),
        loaded=loaded,
        missing=_really_missing(result.missing_keys, own, mismatched),
        unexpected=tuple(sorted(unexpected)),
        mismatched=tuple(sorted(mismatched)),
        not_finite=not_finite(module, loaded),
        remark=found.remark
        + conversion((tensors[name], own[name]) for name in loaded)
        + nothing_but_zeros({name: tensors[name] for name in loaded}),
        key=key,
    )
    if not report.loaded or (config.strict and not report.complete):
        shapes = {n: (tuple(tensors[n].shape), tuple(own[n].shape)) for n in mismatched}
        raise misfit(report, shapes, _hint(report, own, found.tensors, config), key=key)
    return report


def weights_file(config: WeightsConfig, *, key: Key) -> Path:
    """Return the path of the file that a config names.

    Raises:
        ModelError: it does not exist.
    """
    path = package_path(config.path, key=(*key, "path"))
    _refuse_missing_file(path, (*key, "path"))
    return path


@dataclass(frozen=True, slots=True)
class FoundTensors:
    """The tensors of a weight file."""

    tensors: Mapping[str, Tensor]
    """Tensors by name; names begin with that of their container if `rename` has to choose one."""
    remark: str = ""
    """Text on which container was taken."""
    must_be_chosen: bool = False
    """Whether all tensors are in containers that must be chosen by `rename`."""


def read_tensors(
    path: Path, rename: Mapping[str, str], key: Key, *, unasked: Sequence[str] = _NESTED_UNDER
) -> FoundTensors:
    """Return the tensors of a file, without ever running code that is in it.

    Args:
        path: A `.safetensors` file, or one of others that torch can read.
        rename: Beginnings of names in the config, which also choose among containers.
        key: Position of the config value that names the file.
        unasked: Containers that are opened even if `rename` does not name them.

    Raises:
        ModelError: the file does not exist, or holds more than tensors.
    """
    _refuse_missing_file(path, key)
    if is_pointer(path):
        raise ModelError(f"{str(path)!r} is {A_POINTER}", key=key)
    if path.suffix != ".safetensors":
        refuse_old_torch(torch.__version__, path, key=key)
    try:
        if path.suffix == ".safetensors":
            check_safetensors(path)
            return FoundTensors(load_file(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FinetuneError as error:
        raise ModelError(
            f"{str(path)!r} is not a readable weights file: it {error.message}", key=key
        ) from error
    except UnpicklingError as error:
        raise ModelError(
            f"{str(path)!r} holds more than tensors, or none at all, and is not loaded",
            hint="save the module's state_dict() alone, best as .safetensors",
            key=key,
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{str(path)!r} is not a readable weights file: {error}", key=key
        ) from error
    if not isinstance(content, Mapping) or any(isinstance(t, Tensor) for t in content.values()):
        return FoundTensors(_only_tensors(content, path, key))
    return _opened(content, path, rename, key, unasked)


def _refuse_missing_file(path: Path, key: Key) -> None:
    """Raise `ModelError` unless a weight file exists."""
    if not path.is_file():
        raise ModelError(f"no weights file {str(path)!r}", key=key)


def refuse_old_torch(version: str, path: Path, *, key: Key) -> None:
    """Raise if the installed torch has a known hole in unpickling, even of restricted files.

    Up to 2.5 `weights_only=True` could be made to run code (CVE-2025-32434), and up to 2.9 its
    unpickler could be made to write beyond its memory (CVE-2026-24747).

    Raises:
        ModelError: torch is older than 2.10.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _TORCH_FLOOR:
        raise ModelError(
            f"{str(path)!r} is not opened with torch {version}, which is not safe for it",
            hint="install torch 2.10 or newer, or convert the file to .safetensors",
            key=key,
        )


def _opened(
    content: Mapping[str, object],
    path: Path,
    rename: Mapping[str, str],
    key: Key,
    unasked: Sequence[str],
) -> FoundTensors:
    """Return the tensors of those containers in a file that `rename` or `unasked` names."""
    # A training checkpoint may hold several networks (`model`, `ema`): which one is meant must be
    # certain.
    containers = dict(_containers(content))
    usual = next((name for name in unasked if name in containers), None)
    others = {name: one for name, one in containers.items() if name != usual}
    asked = {n: one for n, one in others.items() if any(old.startswith(f"{n}.") for old in rename)}
    if asked:
        return FoundTensors(_flat(asked))
    if usual is not None:
        left = f", not from its {', '.join(map(repr, others))}"
        remark = f", from its {usual!r}{left}" if others else ""
        return FoundTensors(containers[usual], remark)
    if containers:
        return FoundTensors(_flat(containers), must_be_chosen=True)
    nested = next((content[name] for name in _NESTED_UNDER if name in content), content)
    return FoundTensors(_only_tensors(nested, path, key))


def _containers(content: object, name: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the mappings in a file, at any depth, that hold only tensors by name."""
    if not isinstance(content, Mapping) or name.count(".") > _MOST_NESTED:
        return
    for inner, value in content.items():
        full = f"{name}.{inner}" if name else str(inner)
        if _is_container(value):
            yield full, value
        else:
            yield from _containers(value, full)


def _is_container(value: object) -> bool:
    """Tell whether a value is a module's state; that of an optimizer has numbers as names."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(tensor, Tensor) and tensor.ndim > 0 for tensor in value.values())
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())
        and not _OF_OPTIMIZERS & value.keys()
    )


def _flat(containers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all containers, with the container's name before theirs."""
    return {
        f"{container}.{name}": tensor
        for container, tensors in containers.items()
        for name, tensor in tensors.items()
    }


def _only_tensors(content: object, path: Path, key: Key) -> Mapping[str, Tensor]:
    """Return a file's content; raise `ModelError` unless it maps names to tensors."""
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{str(path)!r} holds a {type(content).__name__}, not tensors by name", key=key
        )
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        kind = type(content[strange[0]]).__name__
        raise ModelError(
            f"{str(path)!r} holds more than tensors and is not loaded: {strange[0]!r} is a {kind}",
            hint="save the module's state_dict() alone, best as .safetensors",
            key=key,
        )
    return content


def _really_missing(
    missing: Sequence[str], own: Mapping[str, Tensor], mismatched: Collection[str]
) -> tuple[str, ...]:
    """Return the missing names without those that are mismatched, or loaded through a tie."""
    absent = {*missing, *mismatched}
    filled = {id(tensor) for name, tensor in own.items() if name not in absent}
    return tuple(
        name for name in missing if name not in mismatched and id(own.get(name)) not in filled
    )


def _not_chosen(path: Path, found: FoundTensors, own: Collection[str], key: Key) -> ModelError:
    """Return the error for a file whose containers the user must choose from."""
    containers = dict.fromkeys(name.partition(".")[0] for name in found.tensors)
    listed = ", ".join(map(repr, containers))
    entries = mending(own, found.tensors)
    return ModelError(
        f"{path.name!r} holds its tensors under {listed}, which is not opened unasked",
        hint=f"try {in_yaml(entries)}" if entries else None,
        key=key,
    )


def _stored_otherwise(unexpected: Collection[str]) -> str | None:
    """Return a hint on names of a file that tell that its values are no plain weights, or None."""
    parts = {part for name in unexpected for part in name.split(".")}
    if parts & {"parametrizations", "weight_g", "weight_v", "weight_orig"}:
        return (
            "its weights are stored in factors: torch's remove_parametrizations, "
            "remove_weight_norm or prune.remove make them plain before they are saved"
        )
    if parts & {"qweight", "qzeros", "weight_scale", "_packed_params", "absmax", "quant_map"}:
        return "its weights are quantised: save them in floats"
    return None


def _hint(
    report: WeightsReport,
    own: Collection[str],
    theirs: Collection[str],
    config: WeightsConfig,
) -> str | None:
    """Return a hint: the rename that makes more of a file fit, else how to load what fits."""
    entries = {} if config.rename else mending(own, theirs)
    if not entries:
        return _stored_otherwise(report.unexpected) or report.way_out
    rest = "" if fits_all(own, theirs, entries) else " and strict: false"
    return f"try {in_yaml(entries)}{rest if config.strict else ''}"
