"""Which charts TensorBoard's page has pinned at its top: the loss and the main metric."""

import json
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from finetune.errors import FinetuneError
from finetune.tracking.json_lines import read_metrics

_LOSSES = ("train/loss", "validation/loss")


def first_page(runs: Path) -> str:
    """Return query and fragment of the address of a page with these charts pinned.

    The main metric is that of the run whose figures are newest. A page without any run pins the
    losses, which appear with the first run.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in _tags(runs)]
    return f"?pinnedCards={quote(json.dumps(cards, separators=(',', ':')))}#timeseries"


def _tags(runs: Path) -> list[str]:
    """Return the tags to pin, in their order."""
    for path in _newest_first(runs):
        # A run that cannot be read is no reason to show no other one.
        with suppress(FinetuneError):
            for entry in read_metrics(path):
                figures = [tag for tag in entry if tag.startswith("validation/")]
                if figures:
                    # The task writes its main metric first, behind the loss.
                    main = [tag for tag in figures if tag not in _LOSSES][:1]
                    of_training = [tag.replace("validation/", "train/", 1) for tag in main]
                    return [*_LOSSES, *main, *of_training]
    return list(_LOSSES)


def _newest_first(runs: Path) -> list[Path]:
    """Return the metrics files below a folder, the newest first; links are not followed."""
    found = [
        Path(place, name)
        for place, _, files in os.walk(runs)
        for name in files
        if name == "metrics.jsonl" and not Path(place, name).is_symlink()
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
