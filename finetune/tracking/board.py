"""How TensorBoard is to show a run: names in the order of a person's questions, and charts.

TensorBoard sorts tags by name and opens the first three groups: `test`, `train`, `validation`. So
what is frozen and what it costs get names that come later.
"""

import re
from collections.abc import Iterable
from typing import Any

from torch.utils.tensorboard.summary import custom_scalars

_GROUPS = {
    "freeze": "what_is_frozen",
    "memory": "what_it_costs",
    "time": "what_it_costs",
}
"""Groups of tags in `metrics.jsonl`, and what TensorBoard gets in their place."""

_CHARTS = {
    "Training": {
        "rates": "train/lr/.+",
        "gradient norm": "train/grad_norm(/.+)?",
    },
    "Freezing": {
        "phase": "what_is_frozen/phase",
        "trained parameters": "what_is_frozen/trained_parameters",
        "update to weight, per block": "what_is_frozen/update_ratio/.+",
        "gradient norm, per block": "what_is_frozen/gradient/.+",
    },
    "Cost": {
        "seconds of a step": "what_it_costs/.+_seconds",
        "samples per second": "what_it_costs/samples_per_second",
        "peak memory (GiB)": "what_it_costs/peak_gib",
        "samples answered by the activation cache": "what_it_costs/cache_answered",
        "seconds saved by the activation cache": "what_it_costs/cache_saved_s",
    },
}
"""Charts of each group by title: the expression that takes their tags."""


def shown_tag(tag: str) -> str:
    """Return the name that a tag of `metrics.jsonl` has in TensorBoard."""
    group, _, name = tag.partition("/")
    return f"{_GROUPS[group]}/{name}" if group in _GROUPS and name else tag


def charts_of(tags: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the charts that these tags fill: per group and title, an expression for its tags.

    Training and validation share the chart of a figure; the loss comes first, then the metrics in
    the order of the tags.

    Args:
        tags: Names as TensorBoard has them.
    """
    tags = list(tags)
    figures = dict.fromkeys(
        name for group, _, name in (tag.partition("/") for tag in tags) if group == "validation"
    )
    # Escaped, as metrics may have any name, such as `f1 (macro)`, which is no expression.
    both = {
        name: f"(train|validation)/{re.escape(name)}" for name in dict.fromkeys(("loss", *figures))
    }
    charts = _CHARTS | {"Training": both | _CHARTS["Training"]}
    filled = {
        group: {title: of for title, of in titles.items() if _takes_any(of, tags)}
        for group, titles in charts.items()
    }
    return {group: titles for group, titles in filled.items() if titles}


def layout(charts: dict[str, dict[str, str]]) -> Any:
    """Return the summary that lays out the Custom Scalars page."""
    return custom_scalars(
        {
            # TensorBoard asks for a match at the beginning of a tag; the whole tag is meant.
            group: {title: ["Multiline", [f"^{of}$"]] for title, of in titles.items()}
            for group, titles in charts.items()
        }
    )


def _takes_any(expression: str, tags: Iterable[str]) -> bool:
    return any(re.fullmatch(expression, tag) for tag in tags)
