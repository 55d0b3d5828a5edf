"""Render the page about runs, and write it beside a run.

All that comes from a run is text of other people: Jinja escapes it, hidden characters become
visible, and a content security policy lets the browser run this page's own script and style alone
and load nothing.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune import disk
from finetune.errors import CheckpointError
from finetune.report.charts import charts_of, charts_of_all, without_chart
from finetune.report.gathered import PageOfRun, gather
from finetune.report.verdict import duration, figure
from finetune.runs.own_files import REPORT, REPORT_MARK, is_own_report
from finetune.runs.run_record import differing_keys, note_on_samples
from finetune.visible import json_text, visible

_MOST_KEYS = 8
"""Keys of the config that are columns of the table of runs; `finetune diff` names all."""
_MOST_WITH_PICTURES = 3
"""Runs of a page that still show their pictures; with more, the page would be megabytes."""
_TEMPLATES = Path(__file__).parent / "templates"


def render_page(runs: Sequence[Path], names: Sequence[str] | None = None) -> str:
    """Return the page about one run or several as HTML.

    Args:
        runs: Folders of runs.
        names: What to call them; the names of their folders if left out.
    """
    named = names or [path.resolve().name for path in runs]
    return _rendered([gather(path, name) for path, name in zip(runs, named, strict=True)])


def _rendered(pages: list[PageOfRun]) -> str:
    """Return the page; `pages` are sorted in place."""
    pages.sort(key=lambda page: (page.record.main, page.record.rank))
    keys = differing_keys([page.record for page in pages]) if len(pages) > 1 else []
    seeds = {str(page.record.seed) for page in pages}
    charts = {f"run{number}": charts_of(page) for number, page in enumerate(pages)}
    if len(pages) > 1:
        charts["all"] = charts_of_all(pages)
    style, script = _source("uplot.css") + _source("page.css"), _script()
    html: str = _template().render(
        pages=pages,
        keys=[*(["seed"] if len(seeds) > 1 else []), *keys[:_MOST_KEYS]],
        num_more=max(0, len(keys) - _MOST_KEYS),
        note=note_on_samples([page.record for page in pages]),
        charts=charts,
        without_chart=without_chart,
        shows_pictures=len(pages) <= _MOST_WITH_PICTURES,
        data=_json_for_html(charts),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        figure=figure,
        duration=duration,
    )
    return REPORT_MARK.decode() + html


def write_page(run: Path) -> Path:
    """Write `report.html` into the folder of a run that this process ends; return its path.

    Raises:
        CheckpointError: the name is taken by something that no run has written, or the folder
            cannot be written.
    """
    path = run / REPORT
    # A person may keep a file of this name in the folder, and it is not ours to replace.
    if disk.kind_of(path) is not None and not is_own_report(path):
        raise CheckpointError("is no page of a run, and is left as it is", where=str(path))
    try:
        # `replace`: a name may hold bytes that are no UTF-8, which `encode` would refuse.
        disk.replace_file(path, _rendered([gather(run, has_ended=True)]).encode("utf-8", "replace"))
    except OSError as error:
        raise CheckpointError(f"cannot write: {disk.reason_of(error)}", where=str(path)) from error
    return path


@cache
def _template() -> Any:
    """Return the compiled template."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        # A name that the template misspells is an error, not an empty place.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("page.html")


def _visible(value: Any) -> Any:
    """Return a text with hidden characters escaped; our own markup stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _source(name: str) -> str:
    """Return a file of the page's own style or script."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _script() -> str:
    return _source("uplot.js") + "\n" + _source("page.js")


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this style and script by their hashes, nothing else."""
    parts = [
        "default-src 'none'",
        f"style-src 'sha256-{_digest(style)}'",
        f"script-src 'sha256-{_digest(script)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(parts)


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()


def _json_for_html(value: Any) -> Markup:
    """Return JSON that cannot end the script element that holds it."""
    # Without infinity and NaN, which JSON lacks: curves hold finite values alone.
    text = json_text(json.loads(json.dumps(value, allow_nan=False)))
    # As escapes, which JSON allows anywhere in a text: a name may hold `</script>`.
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
