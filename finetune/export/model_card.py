"""The model card of an export: data, figures, what was frozen, the proof, how to load it."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.config.dumping import as_plain
from finetune.errors import CheckpointError
from finetune.export.agreement import TOLERANCE
from finetune.export.source import Checked, ExportSource, WrittenFormat
from finetune.runs.saved_proof import read_proof
from finetune.visible import one_line

_MOST_CLASSES = 50
_MARKED = str.maketrans({one: f"\\{one}" for one in "\\`*_{}[]<>()#+!|~&"})
"""Characters that Markdown would read, or HTML: names of classes and files are other people's."""


def model_card(
    source: ExportSource, form: str, written: WrittenFormat, checked: Checked | None
) -> str:
    """Return the text of `README.md` for an export.

    Args:
        source: The network.
        form: Name of the format.
        written: What the format has written.
        checked: How it was compared with the predictor; None if it was not.
    """
    head = {"library_name": written.library, **(written.front or {})}
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items()),
        "---",
        "",
        f"# {plain(source.run.config.run_name)}",
        "",
        f"A network that was fine-tuned with finetune {_version(source)}; format: {form}.",
        "",
        *_section("Load it", ["In this folder, without finetune:", "", *_fenced(written.code)]),
        *_section("What it holds", [*written.about, *_calibrated(source), *_thresholds(source)]),
        *_section("Network", list(_network(source))),
        *_section("Data", list(_data(source))),
        *_section("Figures", list(_figures(source))),
        *_section("What was frozen", list(_frozen(source))),
        *_section("Comparison", [_compared(checked)]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _calibrated(source: ExportSource) -> list[str]:
    """Return a sentence on the temperature, which no format holds, if the run has one."""
    temperature = source.run.task.temperature
    if temperature is None or temperature.value is None:
        return []
    return [
        f"Calibrated probabilities are those of the logits divided by {temperature.value!r}, a "
        "temperature that was fitted on validation samples; the files do not hold it."
    ]


def _thresholds(source: ExportSource) -> list[str]:
    """Return a sentence on the thresholds, which no format holds, unless all are the usual one."""
    threshold = source.threshold
    if threshold is None:
        return []
    values = list(zip(threshold.names, threshold.values, strict=True))
    shown = [f"{plain(name)} {value:.6g}" for name, value in values[:_MOST_CLASSES]]
    more = len(values) - len(shown)
    return [
        "Labels and figures of the run are by thresholds, the probability from which on a label is "
        f"predicted: {', '.join(shown)}{f' and {more} more' * (more > 0)}; the files do not hold "
        "them."
    ]


def plain(text: str) -> str:
    """Return a text of others in one line that Markdown and HTML show as it is."""
    return one_line(text).translate(_MARKED)


def _section(title: str, lines: list[str]) -> list[str]:
    """Return a section with its title; nothing if it is empty."""
    return [f"## {title}", "", *lines, ""] if lines else []


def _fenced(code: str) -> list[str]:
    return ["```python", *code.splitlines(), "```"]


def _version(source: ExportSource) -> str:
    found = _summary(source).get("versions", {})
    return plain(str(found.get("finetune", ""))) if isinstance(found, dict) else ""


def _network(source: ExportSource) -> Iterator[str]:
    """Yield a line for each layer of the config."""
    for place, layer in enumerate(as_plain(source.run.config)["model"]["layers"]):
        name = layer.get("name") or str(place)
        what = [str(layer[key]) for key in ("architecture", "path", "layer") if layer.get(key)]
        output = [f"output {layer['output']}"] if "output" in layer else []
        yield f"- {plain(name)}: {plain(', '.join([str(layer['type']), *what, *output]))}"


def _data(source: ExportSource) -> Iterator[str]:
    """Yield lines on the data: sizes, inputs, classes, hashes of its columns."""
    facts = source.run.facts
    yield "- samples: " + ", ".join(f"{size:,} {plain(part)}" for part, size in facts.sizes.items())
    yield "- inputs: " + ", ".join(map(plain, facts.inputs))
    if facts.target is not None:
        yield f"- target: {plain(facts.target)}"
    if facts.classes is not None:
        shown = ", ".join(map(plain, facts.classes[:_MOST_CLASSES]))
        more = len(facts.classes) - _MOST_CLASSES
        yield f"- classes, in the order of the outputs: {shown}{f' and {more} more' * (more > 0)}"
    columns = _document(source, "data.json").get("identity", {}).get("columns", {})
    if isinstance(columns, dict) and columns:
        hashes = (f"{plain(str(name))} `{plain(str(one))}`" for name, one in columns.items())
        yield f"- hashes of the columns: {', '.join(hashes)}"


def _figures(source: ExportSource) -> Iterator[str]:
    """Yield a line for each figure of the weights in use."""
    metrics = _summary(source).get("metrics", {})
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(value, int | float):
            yield f"- {plain(str(name))}: {value:.4g}"


def _frozen(source: ExportSource) -> Iterator[str]:
    """Yield lines on the phases of the run, and on the proof."""
    if source.unfinished is not None:
        yield f"- {source.unfinished}"
    phases = _document(source, "plan.json").get("phases", [])
    for phase in phases if isinstance(phases, list) else ():
        trained, frozen = phase["trained_parameters"], phase["frozen_parameters"]
        total = trained + frozen
        yield f"- phase {plain(str(phase['name']))}: {trained:,} of {total:,} parameters trained"
    proof = read_proof(source.run.folder.path)
    if proof is None:
        yield "- proof: the run has taken none"
        return
    tensors = len({name for phase in proof.phases for name in phase.changed})
    verdict = "all bit-identical" if proof.is_intact else f"{tensors} changed"
    yield (
        f"- proof: {proof.tensors} fingerprints of frozen tensors, taken before and after: "
        f"{verdict}"
    )


def _compared(checked: Checked | None) -> str:
    """Return a sentence on the comparison with the predictor."""
    if checked is None:
        return "These files were **not** compared with the predictor of the run."
    return (
        f"What these files hold was loaded anew and compared with the predictor of the run on "
        f"{checked.samples} samples of its data: the largest difference of an output is "
        f"{checked.difference:.2g}, relative to outputs over 1; accepted is {TOLERANCE:g}."
    )


def _summary(source: ExportSource) -> Mapping[str, Any]:
    return _document(source, "summary.json")


def _document(source: ExportSource, name: str) -> Mapping[str, Any]:
    """Return a JSON object of the run; empty if there is none."""
    try:
        found = source.run.folder.read_json(name)
    # A card that says less is better than no export of a run whose file is damaged.
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) else {}
