"""Notes on weights whose outputs stood for other classes, or inputs for other categories."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from finetune.data.meaning import META, Meaning
from finetune.data.opening import DataFacts
from finetune.errors import FinetuneError
from finetune.freezing.lints import Lint
from finetune.models.declared import Network
from finetune.reading import parse_json, read_own_json
from finetune.visible import one_line

_MOST = 60
"""Letters of a name that a note shows."""


def other_meaning(model: Network, facts: DataFacts) -> Iterator[Lint]:
    """Yield a note where weights were trained for other classes, or other categories.

    Files that `finetune export` or a run wrote say what their numbers stood for. Where there are as
    many classes as here, all shapes fit, and the network would answer with those of the file.
    """
    here = Meaning.of(facts)
    own = [name for name, _ in model.named_parameters()]
    for report in model.weights_reports:
        there = _meaning_of(Path(report.path))
        if there is None:
            continue
        name = one_line(Path(report.path).name)
        loaded = set(report.full_names(report.loaded))
        first, last = (next(iter(names), None) for names in (own, reversed(own)))
        if there.classes and here.classes and last in loaded:
            told = _exchanged(there.classes, here.classes)
            if told is not None:
                yield Lint(
                    report.key,
                    f"{name} was trained for other classes: output {told}",
                    "a last layer of another name, and strict: false, begin it anew",
                )
        shared = here.categories.keys() & there.categories.keys() if first in loaded else ()
        for column in sorted(shared):
            told = _exchanged(there.categories[column], here.categories[column])
            if told is not None:
                yield Lint(
                    report.key,
                    f"{name} was trained with other categories of {column!r}: place {told}",
                    "a first layer of another name, and strict: false, begin it anew",
                )


def _exchanged(there: Sequence[str], here: Sequence[str]) -> str | None:
    """Return the first place that stood for another name, as words; None if all are the same."""
    for place, (old, new) in enumerate(zip(there, here, strict=False), 1):
        if old != new:
            return f"{place} stood for {old[:_MOST]!r} and stands for {new[:_MOST]!r} here"
    return None


def _meaning_of(path: Path) -> Meaning | None:
    """Return what a file of weights says about its numbers; None if it says nothing."""
    if path.suffix != ".safetensors":
        return None
    run = path.parent.parent.parent
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(META)
        if told is not None:
            return Meaning.read(parse_json(told, str(path)))
        if path.parent.name.startswith("step-"):
            return Meaning.read(read_own_json(run / "data.json"))
    except (OSError, ValueError, SafetensorError, FinetuneError):
        # Metadata of another library may have an entry of this name.
        return None
    return None
