"""Does a shipped config learn from its inputs? The same run, with targets exchanged among samples.

Trains each config twice: as it is, and on data whose targets were exchanged among all its samples
before it was split, so that nothing in the inputs says them. Prints the figures of the test samples
of both, and the share of the most frequent target, which a constant predictor reaches as accuracy.
Makes what the examples need in `configs/data` where it is missing.
Run: `python benchmarks/exchanged_targets.py [CONFIG...]`, names in `configs/` without ending.
"""

import argparse
import collections
import json
import runpy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import finetune
from finetune.config.loader import load_config
from finetune.data.sources.open_source import open_source
from finetune.data.table import Table

ROOT = Path(__file__).parents[1]
DATA = ROOT / "configs" / "data"
MAKERS = {
    "clutter_masks": ("make_clutter", "make_clutter", "clutter.npz"),
    "likeness": ("make_likeness", "make_likeness", "likeness.csv"),
    "mentions": ("make_examples", "make_notes", "notes.jsonl"),
    "throws": ("make_examples", "make_throws", "throws.csv"),
    "tones": ("make_examples", "make_tones", "tones"),
}
"""By config: the script and function that make its data, and where it lies below `DATA`."""
OTHERS = ("tumours", "penguins", "digits")
"""More configs, whose data packages bring."""


def exchanged(table: Table, targets: Sequence[str]) -> Table:
    """Return a table whose targets belong to other samples, drawn by a fixed seed."""
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    columns = {name: table.columns[name].take(order) for name in targets}
    return replace(table, columns={**table.columns, **columns}, kept=None)


def most_frequent(table: Table, targets: Sequence[str]) -> float | None:
    """Return the share of the most frequent target; None where each occurs once or twice."""
    digests = [table.columns[name].digests() for name in targets]
    seen = collections.Counter(zip(*digests, strict=True))
    return max(seen.values()) / len(table) if len(seen) < len(table) / 2 else None


def figures(name: str, *, exchanges: bool) -> dict[str, Any]:
    """Train a config in a folder of its own; return the figures of its test samples."""
    config = load_config(
        ROOT / "configs" / f"{name}.yaml", overrides=["tracking={to: [], report: false}"]
    )
    share = list[float | None]()

    def opens(*args: Any, **keys: Any) -> Table:
        table = open_source(*args, **keys)
        named = config.data.target or "label"
        targets = (named,) if isinstance(named, str) else named
        share.append(most_frequent(table, targets))
        return exchanged(table, targets) if exchanges else table

    with (
        patch("finetune.data.parts.raw_data.open_source", opens),
        tempfile.TemporaryDirectory() as folder,
    ):
        finetune.build_trainer(config, Path(folder) / "run").fit(quiet=True)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    ended = {key: round(value, 4) for key, value in summary["metrics"].items()}
    test = {key: value for key, value in ended.items() if key.startswith("test/")}
    return test if exchanges or share[0] is None else {**test, "most frequent": round(share[0], 4)}


def main() -> None:
    """Print the figures of each config that is named; of all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="*", default=[*MAKERS, *OTHERS])
    for name in parser.parse_args().config:
        if name in MAKERS and not (DATA / MAKERS[name][2]).exists():
            script, function, place = MAKERS[name]
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))[function](DATA / place)
        print(f"{name}: {figures(name, exchanges=False)}")
        print(f"{name}, targets exchanged: {figures(name, exchanges=True)}", flush=True)


if __name__ == "__main__":
    main()
