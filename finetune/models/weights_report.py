"""Report which pretrained tensors were loaded into a module, and which did not fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Key, ModelError
from finetune.models.renaming import first_names
from finetune.visible import one_line

_FAULTS = {
    "missing": "missing",
    "unexpected": "unexpected",
    "mismatched": "mismatched",
    "not_finite": "with NaN or infinity",
}
"""Fields of a report that list faults, and what messages call them."""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Which tensors of a file were loaded into a module, and which did not fit."""

    path: str
    """File, folder or name that the tensors came from."""
    loaded: tuple[str, ...]
    """Names that now have the file's values."""
    missing: tuple[str, ...]
    """Names of the module that the file lacks."""
    unexpected: tuple[str, ...]
    """Names of the file, after renaming, that the module lacks."""
    mismatched: tuple[str, ...]
    """Names that both have, with different shapes."""
    not_finite: tuple[str, ...] = ()
    """Names of loaded parameters that have a NaN or an infinity."""
    unread: tuple[str, ...] = ()
    """Names of the file that the chosen output does not need, such as a pooler's."""
    remark: str = ""
    """Text on which of several networks in the file was taken, and how many of its tensors were
    converted; else empty."""
    module: str = ""
    """Name of the module inside the network; empty for the network itself."""
    key: Key = ()
    """Position of the config value that asked for it."""

    @property
    def complete(self) -> bool:
        """Whether all tensors of module and file fit, and are numbers."""
        return not any(getattr(self, field) for field in _FAULTS)

    @property
    def not_loaded(self) -> tuple[str, ...]:
        """Names of the module that should have been loaded and keep their initial values."""
        return (*self.missing, *self.mismatched)

    @property
    def way_out(self) -> str | None:
        """Text on how to load the tensors in spite of faults; None if nothing was loaded."""
        does_fit = not self.not_loaded and not self.unexpected
        what = "them as they are" if does_fit else "what fits"
        return f"strict: false loads {what}" if self.loaded else None

    def full_names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names of the module's tensors as full names of the network."""
        return tuple(f"{self.module}.{name}" if self.module else name for name in names)

    def __str__(self) -> str:
        from_where = one_line(Path(self.path).name) + self.remark
        counted = [f"{len(self.loaded)} tensors loaded from {from_where}"]
        for field, word in (_FAULTS | {"unread": "unread"}).items():
            names: tuple[str, ...] = getattr(self, field)
            if names:
                counted.append(f"{len(names)} {word}: {first_names(names)}")
        return "; ".join(counted)


def misfit(
    report: WeightsReport,
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    hint: str | None,
    *,
    key: Key,
) -> ModelError:
    """Return the error that tells what does not fit between a file and a module.

    Args:
        report: The report on loading.
        shapes: Shape in the file and in the module of each mismatched tensor.
        hint: The remedy.
        key: Position of the config value that asked for the file.
    """
    faults = []
    for field, word in _FAULTS.items():
        names: tuple[str, ...] = getattr(report, field)
        if names:
            faults.append(f"{len(names)} {word} ({first_names(names, 1)})")
    if report.mismatched:
        name = report.mismatched[0]
        faults.append(f"{name} is {shapes[name][0]}, wants {shapes[name][1]}")
    fits = "does not fit" if report.loaded else "has nothing that fits"
    where = Path(report.path).name
    return ModelError(f"{where!r} {fits}: {'; '.join(faults)}", hint=hint, key=key)
