"""Draw the pictures of docs/concepts from real runs of a small network on scikit-learn's digits.

Run: `python scripts/make_docs_pictures.py`. It takes about a minute on a CPU.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import StoppedError, build_trainer, load_config
from finetune.pictures.drawing import Box, Label, Picture, Shape, as_svg, text_width
from finetune.pictures.freeze_map import FreezeMap, freeze_timeline

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
_PHASES = (
    "freeze={phases: [{name: head, train: [head], until: {epochs: 2}}, "
    "{name: top, train: [head, conv2, norm2], until: {epochs: 2}}, {name: all, freeze: []}]}"
)
_HEAD_ALONE = "freeze=[conv1, norm1, conv2, norm2]"
_EVERY_STEP = ("train.log_every=1", "train.epochs=4", "tracking=[]")
_ROW, _LEFT, _WIDTH = 24, 150, 360


def _run(folder: Path, *overrides: str) -> Path:
    """Train the digits with these changes; return the run folder."""
    config = load_config(ROOT / "configs" / "digits.yaml", overrides=list(overrides))
    build_trainer(config, run_dir=folder).fit(quiet=True)
    return folder


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _logged(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def phases_picture(run: Path) -> Picture:
    """Return which blocks trained when, from the plan and the steps of the run."""
    plan, lines = _json(run / "plan.json"), _logged(run)
    names = [phase["name"] for phase in plan["phases"]]
    ends = [max(line["step"] for line in lines if line.get("phase") == name) for name in names]
    rows: dict[str, list[str]] = {}
    for phase in plan["phases"]:
        states: dict[str, set[bool]] = {}
        for one in phase["states"]:
            states.setdefault(one["name"].split(".")[0], set()).add(one["state"] == "frozen")
        for block, frozen in states.items():
            state = "mixed" if len(frozen) > 1 else "frozen" if True in frozen else "trained"
            rows.setdefault(block, []).append(state)
    return freeze_timeline(FreezeMap(rows, names, [0, *ends[:-1]], ends[-1], ends[-1]))


def bars(title: str, values: Sequence[tuple[str, float, str]], colour: str = "trained") -> Picture:
    """Return a picture of horizontal bars, each with its name and what stands behind it."""
    most = max(value for _, value, _ in values) or 1.0
    shapes: list[Shape] = [Label(8, 6, title)]
    for row, (name, value, said) in enumerate(values, start=1):
        y, width = 8 + _ROW * row, max(1, round((_WIDTH - 130) * value / most))
        kind = colour if value else "frozen"
        shapes += [Label(8, y, name), Box(_LEFT, y, width, _ROW - 6, kind)]
        shapes.append(Label(_LEFT + width + 6, y, said))
    labels = [shape for shape in shapes if isinstance(shape, Label)]
    # a quarter more than measured: the fonts of some systems are that wide
    wide = max(_LEFT + _WIDTH, *(int(one.x + 1.25 * text_width(one.text)) + 8 for one in labels))
    return Picture(wide, 16 + _ROW * (len(values) + 1), shapes, title)


def frozen_picture(run: Path) -> Picture:
    """Return how many parameters of each layer train, in a run that trains the head alone."""
    counts: dict[str, tuple[int, int]] = {}
    for one in _json(run / "plan.json")["phases"][0]["states"]:
        block, size = one["name"].split(".")[0], one["parameters"]
        trained, frozen = counts.get(block, (0, 0))
        is_frozen = one["state"] == "frozen"
        counts[block] = (trained + size * (not is_frozen), frozen + size * is_frozen)
    rows = [
        (name, float(trained), f"{trained:,} trained, {frozen:,} frozen")
        for name, (trained, frozen) in counts.items()
    ]
    return bars("Parameters of each layer with freeze: [conv1, norm1, conv2, norm2]", rows)


def proof_picture(run: Path) -> Picture:
    """Return the fingerprints of some frozen tensors before and after, as the proof keeps them."""
    digests = _json(run / "freeze_proof.json")["phases"][0]["digests"]
    shapes: list[Shape] = [Label(8, 6, "tensor"), Label(200, 6, "before"), Label(330, 6, "after")]
    for row, (name, (before, after)) in enumerate(list(digests.items())[:7], start=1):
        y = 8 + _ROW * row
        shapes += [Label(8, y, name), Label(200, y, before[:10]), Label(330, y, after[:10])]
        shapes.append(Label(460, y, "same" if before == after else "moved"))
    return Picture(520, 16 + _ROW * 8, shapes, "Fingerprints of frozen tensors, before and after")


def cache_picture(run: Path) -> Picture:
    """Return how many samples of each epoch ran the frozen prefix."""
    seen = _json(run / "summary.json")["activation_cache"]
    rows = [
        ("ran the prefix", float(seen["recorded"]), f"{seen['recorded']:,} samples"),
        ("read from disk", float(seen["answered"]), f"{seen['answered']:,} samples"),
    ]
    return bars("What the frozen prefix was asked for in five epochs", rows)


def resume_picture(whole: Path, stopped: Path) -> Picture:
    """Return the training loss of a run, and of one that was stopped and went on."""
    ours = {line["step"]: line["train/loss"] for line in _logged(stopped) if "train/loss" in line}
    rows = []
    for line in _logged(whole):
        if "train/loss" in line and line["step"] % 20 == 0:
            same = ours.get(line["step"]) == line["train/loss"]
            said = f"{line['train/loss']:.6f}  {'same bits' if same else 'differs'}"
            rows.append((f"step {line['step']}", float(line["train/loss"]), said))
    return bars("Loss of a run, and whether a run that was stopped has the same", rows)


def _stopped_and_resumed(folder: Path, after_s: float) -> Path:
    """Train the digits, stop the run by SIGTERM after some seconds, go on; return its folder."""
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with contextlib.suppress(StoppedError):
        _run(folder, *_EVERY_STEP)
        timer.cancel()
    steps = [line["step"] for line in _logged(folder) if "train/loss" in line]
    if not 0 < max(steps, default=0) < 160:
        raise SystemExit(f"the run was to be stopped midway, not after {len(steps)} steps")
    return _run(folder, *_EVERY_STEP)


def main() -> None:
    """Run the network five times and write the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FINETUNE_CACHE"] = str(folder / "cache")
        head = _run(folder / "head", _HEAD_ALONE, "train.epochs=5", "tracking=[]")
        phases = _run(folder / "phases", _PHASES, "train.epochs=6", "tracking=[]")
        whole = _run(folder / "whole", *_EVERY_STEP)
        stopped = _stopped_and_resumed(folder / "stopped", after_s=4.0)
        pictures = {
            "frozen": frozen_picture(head),
            "phases": phases_picture(phases),
            "proof": proof_picture(head),
            "cache": cache_picture(head),
            "resume": resume_picture(whole, stopped),
        }
    for what, picture in pictures.items():
        path = FOLDER / f"concept_{what}.svg"
        path.write_text(as_svg(picture) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
