"""What was measured: figures of every run, medians over rounds, ratios in pairs, a table."""

import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant's run of one case."""

    case: str
    contestant: str
    round: int
    seconds: float
    """Wall time of the whole process: imports, data, network, training, evaluation."""
    cpu_seconds: float
    """CPU time of the same, all threads together."""
    work_seconds: float
    """Wall time without the imports of the libraries."""
    work_cpu_seconds: float
    peak_mib: float
    """Most resident memory."""
    accuracy: float | None
    """On the test samples; None where the training was cut short."""
    epochs: int
    """Epochs that were really trained."""
    projected: bool
    """Whether times and CPU times of the epochs left out were added as the last one took them."""
    weights: str
    """Hash of all that was trained."""


def figures_of(
    measured: dict[str, Any], *, case: str, contestant: str, round: int, epochs: int, wanted: int
) -> Figures:
    """Turn what a child wrote, and what its end told, into figures.

    Where fewer epochs were trained than wanted, each one left out is taken to last as long as the
    last one trained, its evaluation included.
    """
    ends, left = measured["epoch_ends"], wanted - epochs
    wall = cpu = 0.0
    if left:
        wall, cpu = (left * (end - begin) for begin, end in zip(*ends[-2:], strict=True))
    return Figures(
        case=case,
        contestant=contestant,
        round=round,
        seconds=measured["seconds"] + wall,
        cpu_seconds=measured["cpu_seconds"] + cpu,
        work_seconds=measured["work_seconds"] + wall,
        work_cpu_seconds=measured["work_cpu_seconds"] + cpu,
        peak_mib=measured["peak_mib"],
        accuracy=measured["accuracy"],
        epochs=epochs,
        projected=bool(left),
        weights=measured["weights"],
    )


_SHORT = {
    "seconds": "total s",
    "cpu_seconds": "CPU s",
    "work_seconds": "work s",
    "work_cpu_seconds": "work CPU s",
}
"""Headings of the measured times."""

PAIRS = (
    ("ours", "limit", "cold store, as a multiple of the limit"),
    ("plain", "ours", "by hand, as a multiple of ours"),
    ("lightning", "ours", "Lightning, as a multiple of ours"),
    ("trainer", "ours", "Trainer, as a multiple of ours"),
    ("lightning", "ours_warm", "Lightning, as a multiple of ours with a warm store"),
    ("trainer", "ours_warm", "Trainer, as a multiple of ours with a warm store"),
)


def ratios(found: Sequence[Figures]) -> Iterator[dict[str, Any]]:
    """Yield the ratios of pairs: taken within a round, then the median over rounds."""
    for case in dict.fromkeys(f.case for f in found):
        for above, below, words in PAIRS:
            pairs = [
                (one, other)
                for one in found
                for other in found
                if one.case == other.case == case and one.round == other.round
                if one.contestant == above and other.contestant == below
            ]
            if pairs:
                times = {
                    name: _median(getattr(a, name) / getattr(b, name) for a, b in pairs)
                    for name in _SHORT
                }
                same = all(a.weights == b.weights for a, b in pairs)
                about = {"case": case, "ratio": f"{above} / {below}", "means": words}
                yield about | times | {"bit_equal": same}


def document(found: Sequence[Figures], *, threads: int, load: tuple[float, ...]) -> dict[str, Any]:
    """Return everything as plain data, with what is needed to judge it."""
    packages = ("finetune", "torch", "transformers", "lightning", "accelerate", "torchvision")
    return {
        "machine": {
            "processor": _processor(),
            "system": platform.system(),
            "python": platform.python_version(),
            "threads": threads,
            "load_before_and_after": load,
        },
        "versions": {name: _version(name) for name in packages},
        "ratios": list(ratios(found)),
        "runs": [asdict(figures) for figures in found],
    }


def print_tables(found: Sequence[Figures]) -> None:
    """Print a table of medians over rounds, and one of ratios."""
    console = Console(width=110)
    console.print(_figures_table(found))
    if any(figures.projected for figures in found):
        console.print("~ some epochs left out, each counted as the last one trained took\n")
    console.print(_ratios_table(found))


def _figures_table(found: Sequence[Figures]) -> Table:
    table = _table(("case", "contestant"), (*_SHORT.values(), "peak MiB", "accuracy"))
    for case in dict.fromkeys(f.case for f in found):
        names = dict.fromkeys(f.contestant for f in found if f.case == case)
        for name in names:
            table.add_row(*_row([f for f in found if (f.case, f.contestant) == (case, name)]))
        table.add_section()
    return table


def _ratios_table(found: Sequence[Figures]) -> Table:
    table = _table(("case", "ratio"), (*_SHORT.values(), "same bits"))
    for row in ratios(found):
        cells = [f"{row[name]:.3f}" for name in _SHORT]
        table.add_row(row["case"], row["ratio"], *cells, "yes" if row["bit_equal"] else "")
    return table


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _row(runs: Sequence[Figures]) -> list[str]:
    mark = "~" if runs[0].projected else ""
    reached = [run.accuracy for run in runs if run.accuracy is not None]
    return [
        runs[0].case,
        runs[0].contestant,
        *(f"{mark}{_median(getattr(run, name) for run in runs):.1f}" for name in _SHORT),
        f"{_median(run.peak_mib for run in runs):.0f}",
        f"{_median(reached):.4f}" if reached else "",
    ]


def _median(values: Any) -> float:
    return float(statistics.median(values))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} processors" if names else platform.processor()
