"""On which samples a run was validated, and whether those of several runs are the same."""

import base64
import binascii
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finetune.data.hashes.any_order import digest_in_any_order

_MOST_NAMED, _LONGEST = 3, 40
"""Sets of samples that the line names, and letters of the name of a run."""


class ValidationSamples(NamedTuple):
    """The validation samples of a run, as far as its `data.json` tells them from others."""

    size: int
    form: str
    """Columns of a sample, and the version of its hash: hashes of two forms cannot be compared."""
    digest: str
    """Hash of the samples in any order; empty of millions, where nothing tells sets apart."""

    def differ_from(self, other: "ValidationSamples") -> bool:
        """Tell whether these are surely other samples."""
        if self.size != other.size:
            return True
        return self.form == other.form and self.digest != other.digest


def validation_samples(data: Mapping[str, Any]) -> ValidationSamples | None:
    """Return what `data.json` says of the validation samples; None where it does not say it."""
    try:
        identity = data["identity"]
        part = identity["parts"]["validation"]
        form = [identity["version"], identity.get("images"), data["inputs"], data["target"]]
        rows = array("Q", base64.b64decode(part["rows"], validate=True))
        size = part["size"]
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        return None
    # The hash of a sample whose contents cannot be compared is 0.
    if type(size) is not int or size <= 0 or not rows or 0 in rows:
        return None
    return ValidationSamples(size, repr(form), digest_in_any_order(rows.tobytes(), size) or "")


def different_samples(runs: Sequence[tuple[str, ValidationSamples | None]]) -> str | None:
    """Return a line if runs were validated on different samples; None if not, or not known.

    Args:
        runs: Name and validation samples of each run whose figures stand side by side.
    """
    sets: dict[ValidationSamples, list[str]] = {}
    for name, samples in runs:
        if samples is None:
            continue
        alike = next((one for one in sets if not one.differ_from(samples)), samples)
        sets.setdefault(alike, []).append(name)
    if len(sets) < 2:
        return None
    named = [_named(names, one.size) for one, names in list(sets.items())[:_MOST_NAMED]]
    more = len(sets) - len(named)
    said = "; ".join([*named, f"{more} more sets"] if more else named)
    return f"validated on different samples, so figures differ for that reason too: {said}"


def _named(names: Sequence[str], size: int) -> str:
    """Return one set of samples as words."""
    name = names[0] if len(names[0]) <= _LONGEST else f"{names[0][: _LONGEST - 3]}..."
    others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{name}{others} on {size:,} samples"
