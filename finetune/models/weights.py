"""Pretrained tensors from a file into any module, with a report of what found no place."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
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
from finetune.reading import check_safetensors

_NESTED_UNDER = ("state_dict", "model")
_TORCH_FLOOR = (2, 10)
"""First release whose `weights_only=True` has no known hole."""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Which tensors of a file found their place in a module."""

    path: str
    """Where the tensors came from."""
    loaded: tuple[str, ...]
    """Names now holding the file's values."""
    missing: tuple[str, ...]
    """Names of the module that the file has nothing for."""
    unexpected: tuple[str, ...]
    """Names of the file, after renaming, that the module does not have."""
    mismatched: tuple[str, ...]
    """Names that both have, in different shapes."""

    @property
    def complete(self) -> bool:
        """Whether module and file fit without a remainder."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        counted = [f"{len(self.loaded)} tensors loaded from {Path(self.path).name}"]
        for word in ("missing", "unexpected", "mismatched"):
            names: tuple[str, ...] = getattr(self, word)
            if names:
                counted.append(f"{len(names)} {word}: {_first(names)}")
        return "; ".join(counted)


def load_weights(module: nn.Module, config: WeightsConfig, *, key: Key) -> WeightsReport:
    """Copy the tensors of a file into `module`, which keeps its own dtypes and devices.

    A tied tensor is missing only if the file has none of its names. torch itself makes up for the
    step counter of a batch norm, which old files lack. On an error the module may be partly filled.

    Args:
        module: Receives the tensors.
        config: The file and how its names become those of the module.
        key: The config value that asks for it.

    Raises:
        ModelError: the file cannot be read as plain tensors, nothing of it fits, or it does not fit
            without a remainder and `strict` is set.
    """
    path = package_path(config.path, key=(*key, "path"))
    tensors = _renamed(_read(path, (*key, "path")), config.rename, (*key, "rename"))
    own = module.state_dict(keep_vars=True)
    mismatched = {n for n, t in tensors.items() if n in own and own[n].shape != t.shape}
    fitting = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
    result = module.load_state_dict(fitting, strict=False)
    unexpected = set(result.unexpected_keys)
    report = WeightsReport(
        path=str(path),
        loaded=tuple(name for name in fitting if name not in unexpected),
        missing=_really_missing(result.missing_keys, own, mismatched),
        unexpected=tuple(sorted(unexpected)),
        mismatched=tuple(sorted(mismatched)),
    )
    if not report.loaded or (config.strict and not report.complete):
        raise _does_not_fit(report, own, tensors, key)
    return report


def _read(path: Path, key: Key) -> Mapping[str, Tensor]:
    """Return the tensors of a file, without ever running code that stands in it."""
    if not path.is_file():
        raise ModelError(f"no weights file {str(path)!r}", key=key)
    if path.suffix != ".safetensors":
        refuse_old_torch(torch.__version__, path, key=key)
    try:
        if path.suffix == ".safetensors":
            check_safetensors(path)
            return load_file(path)
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
    return _tensors(content, path, key)


def refuse_old_torch(version: str, path: Path, *, key: Key) -> None:
    """Refuse to unpickle a foreign file, however restricted, with a torch that can be overrun.

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


def _tensors(content: object, path: Path, key: Key) -> Mapping[str, Tensor]:
    """Check that the content of a foreign file maps names to tensors, if need be one level down."""
    for name in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
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


def _renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], key: Key
) -> dict[str, Tensor]:
    """Give every tensor its name in the module: the first beginning that fits is replaced."""
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        old = next((old for old in rename if name.startswith(old)), None)
        new = name if old is None else rename[old] + name.removeprefix(old)
        if old is not None:
            used.add(old)
        if new in renamed:
            raise ModelError(f"two tensors of the file become {new!r}", key=key)
        renamed[new] = tensor
    for old in rename:
        if old not in used:
            raise ModelError(
                f"no name of the file begins with {old!r}, or an entry before it takes them all",
                hint=f"the file has {_first(tuple(tensors))}",
                key=(*key, old),
            )
    return renamed


def _really_missing(
    missing: Sequence[str], own: Mapping[str, Tensor], mismatched: Collection[str]
) -> tuple[str, ...]:
    """Drop names that are told as mismatched, or that are filled through a tie."""
    absent = {*missing, *mismatched}
    filled = {id(tensor) for name, tensor in own.items() if name not in absent}
    return tuple(
        name for name in missing if name not in mismatched and id(own.get(name)) not in filled
    )


def _does_not_fit(
    report: WeightsReport, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], key: Key
) -> ModelError:
    faults = []
    for word in ("missing", "unexpected", "mismatched"):
        names: tuple[str, ...] = getattr(report, word)
        if names:
            faults.append(f"{len(names)} {word} ({_first(names)})")
    if report.mismatched:
        name = report.mismatched[0]
        faults.append(f"{name} is {tuple(tensors[name].shape)}, wants {tuple(own[name].shape)}")
    hint = _rename_hint(own, tensors) if not report.loaded else None
    fits = "does not fit" if report.loaded else "has nothing that fits"
    return ModelError(
        f"{Path(report.path).name!r} {fits}: {'; '.join(faults)}",
        hint=hint or ("strict: false loads what fits" if report.loaded else None),
        key=key,
    )


def _rename_hint(own: Collection[str], tensors: Collection[str]) -> str | None:
    """Suggest a rename where the names differ only by one beginning."""
    if not own or not tensors:
        return None
    theirs, ours = (next(iter(names)).partition(".")[0] + "." for names in (tensors, own))
    if any(name.removeprefix(theirs) in own for name in tensors):
        return f'try rename: {{"{theirs}": ""}}'
    if any(ours + name in own for name in tensors):
        return f'try rename: {{"": "{ours}"}}'
    if any(ours + name.removeprefix(theirs) in own for name in tensors):
        return f'try rename: {{"{theirs}": "{ours}"}}'
    return None


def _first(names: Sequence[str], count: int = 3) -> str:
    """Join the first few names."""
    more = ", ..." if len(names) > count else ""
    return ", ".join(names[:count]) + more
