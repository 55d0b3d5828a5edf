"""The charts of the page as plain data: which curves stand together, thinned and aligned."""

from collections.abc import Sequence
from typing import Any

from finetune.report.curves import MOST_POINTS, Points, aligned, thinned
from finetune.report.gathered import PageOfRun

_MOST_WHOLE = 8
"""Charts of figures of the evaluation: loss, main figure and six others."""
_MOST_PARTS = 12
"""Curves of single classes or columns in one chart; more cannot be told apart."""
_POINTS_OF_ALL = 4000
"""Points of all curves of one chart together: with many runs each gets fewer."""


def charts_of(page: PageOfRun) -> list[dict[str, Any]]:
    """Return the charts of one run. A curve of a single point is none."""
    points = page.curves.points
    names = _whole_figures(page)[:_MOST_WHOLE]
    charts = [(f"{name}", [f"{part}/{name}" for part in ("train", "validation")]) for name in names]
    for name, of_parts in _parts_by_whole(_figures(page)).items():
        count = len(of_parts)
        title = f"{name}/*" if count <= _MOST_PARTS else f"{name}/*, {_MOST_PARTS} of {count:,}"
        charts.append((title, [f"validation/{part}" for part in of_parts[:_MOST_PARTS]]))
    charts += [
        ("learning rate", [tag for tag in points if tag.startswith("train/lr/")]),
        ("gradient norm", [tag for tag in points if tag.startswith("train/grad_norm")]),
        ("seconds per step", ["time/step_seconds"]),
        ("peak memory, GiB", ["memory/peak_gib"]),
    ]
    marks = [{"step": span.begins, "name": span.name} for span in page.curves.phases[1:]]
    made = [_chart(title, [(tag, page.curves.of(tag)) for tag in tags]) for title, tags in charts]
    # A policy may make hundreds of phases, whose marks would hide the curves.
    return [chart | {"marks": marks[:50]} for chart in made if chart["series"]]


def without_chart(page: PageOfRun) -> list[str]:
    """Return the figures of the evaluation for which a page has no room."""
    return _whole_figures(page)[_MOST_WHOLE:]


def _figures(page: PageOfRun) -> list[str]:
    """Return the names of all figures of the validation samples."""
    tags = (tag for tag in page.curves.points if tag.startswith("validation/"))
    return [tag.partition("/")[2] for tag in tags]


def _whole_figures(page: PageOfRun) -> list[str]:
    """Return loss, main figure, and all others that are not of a single class or column."""
    main, figures = page.record.main.partition("/")[2], _figures(page)
    parts = {name for names in _parts_by_whole(figures).values() for name in names}
    whole = [name for name in ["loss", main, *figures] if name == main or name not in parts]
    return list(dict.fromkeys(whole))


def _parts_by_whole(figures: Sequence[str]) -> dict[str, list[str]]:
    """Return the figures of single classes or columns, such as `f1/dog`, by what they begin with.

    They are those whose beginning is a figure itself, or one with `mean_` before it: `iou/road`.
    """
    known, found = set(figures), dict[str, list[str]]()
    for name in figures:
        words = name.split("/")
        for count in range(1, len(words)):
            *before, last = words[:count]
            if {"/".join([*before, last]), "/".join([*before, f"mean_{last}"])} & known:
                found.setdefault("/".join([*before, last]), []).append(name)
                break
    return found


def charts_of_all(pages: Sequence[PageOfRun]) -> list[dict[str, Any]]:
    """Return the charts that show a figure of every run in one frame."""
    tags = list(dict.fromkeys([*(page.record.main for page in pages), "validation/loss"]))
    tags = [*tags[:4], "train/loss"]
    made = [
        _chart(tag, [(page.record.name, page.curves.of(tag)) for page in pages]) for tag in tags
    ]
    return [chart | {"marks": []} for chart in made if chart["series"]]


def _chart(title: str, curves: Sequence[tuple[str, Points]]) -> dict[str, Any]:
    """Return a chart of those curves that have more than one point."""
    shown = [(label, points) for label, points in curves if len(points) > 1]
    # All curves share one axis of steps: each adds its own steps to all the others.
    most = max(100, min(MOST_POINTS, _POINTS_OF_ALL // max(1, len(shown))))
    thin = [thinned(points, most) for _, points in shown]
    steps, values = aligned(thin)
    series = [
        {
            "label": label,
            "values": [None if value is None else float(f"{value:.6g}") for value in column],
            # Few points are evaluations: they are drawn as points, too.
            "dots": len(points) <= 100,
        }
        for (label, points), column in zip(shown, values, strict=True)
    ]
    return {"title": title, "steps": steps, "series": series, "says": _says(shown)}


def _says(curves: Sequence[tuple[str, Points]]) -> str:
    """Return the words for a person who cannot see the chart."""
    return "; ".join(
        f"{label} from {points[0][1]:.4g} at step {points[0][0]} to {points[-1][1]:.4g} at step "
        f"{points[-1][0]}, lowest {min(value for _, value in points):.4g}, "
        f"highest {max(value for _, value in points):.4g}"
        for label, points in curves
    )
