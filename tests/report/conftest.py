"""Run folders as a trainer writes them, with whatever a test needs in them, and pages."""

import json

import pytest
import yaml

CONFIG = {
    "name": "c",
    "seed": 0,
    "data": {"source": {"type": "csv", "path": "points.csv"}, "split": {"validation": 0.2}},
    "task": {"type": "classification"},
    "optimizer": {"type": "SGD", "lr": 0.1},
}
BETTER = {"loss": "lower", "accuracy": "higher", "mae": "lower", "r2": "higher"}


def parameter(name, depth, state):
    return {"name": name, "depth": depth, "state": state, "shape": [4], "rate": None}


def phase(name, frozen, until=None, blocks=3):
    names = [(f"net.layer.{depth}.weight", depth) for depth in range(blocks)]
    names.append(("head.weight", None))
    states = [parameter(n, d, "frozen" if n in frozen else "trained") for n, d in names]
    return {
        "name": name,
        "until": until,
        "states": states,
        "trained_parameters": 4 * sum(one["state"] == "trained" for one in states),
        "frozen_parameters": 4 * sum(one["state"] == "frozen" for one in states),
    }


LOWER = ["net.layer.0.weight", "net.layer.1.weight"]


@pytest.fixture
def plant(tmp_path):
    """Write a run folder; the curves are given as step → value by tag."""

    def plant(
        name="run",
        curves=None,
        *,
        phases=None,
        main="validation/accuracy",
        classes=("left", "right"),
        counts=(30, 10),
        status="done",
        reason=None,
        config=None,
        proof=True,
        begins=None,
        notes=(),
        began="2026-01-01 10:00:00+00:00",
        metrics=None,
        seconds=(("training", 2.0), ("evaluation", 0.5)),
    ):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        phases = phases or [phase("all", LOWER)]
        curves = curves or {
            "train/loss": {step: 1 / step for step in range(1, 21)},
            "validation/loss": {5: 0.5, 10: 0.4, 15: 0.3, 20: 0.25},
            "validation/accuracy": {5: 0.8, 10: 0.85, 15: 0.9, 20: 0.95},
        }
        steps = max(step for points in curves.values() for step in points)
        begins = begins or [0]
        lines = [
            {"step": at, "phase": each["name"], "freeze/phase": number}
            | {"freeze/trained_parameters": each["trained_parameters"]}
            for number, (at, each) in enumerate(zip(begins, phases, strict=False))
        ]
        for tag, points in curves.items():
            lines += [{"step": step, "epoch": 1.0, tag: value} for step, value in points.items()]
        lines.sort(key=lambda line: line["step"])
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.yaml").write_text(
            yaml.safe_dump(CONFIG | (config or {}), allow_unicode=True)
        )
        plan = {"parameters": 16, "ever_trained": ["head.weight"], "phases": phases}
        plan["figures"] = {"main": main, "better": BETTER}
        (run / "plan.json").write_text(json.dumps(plan))
        data = {"inputs": ["u"], "target": "label", "classes": list(classes or ()) or None}
        data |= {"counts": list(counts) if counts else None, "notes": list(notes), "specs": {}}
        data |= {"sizes": {"train": 40, "validation": 20}, "kinds": {"u": "number"}}
        (run / "data.json").write_text(json.dumps(data))
        lock = {"pid": 4_000_000, "host": "elsewhere", "since": began, "run": ""}
        (run / ".run.lock").write_text(json.dumps(lock))
        if proof:
            digests = {name: ["a", "a"] for name in LOWER}
            proven = {"phase": "all", "digests": digests, "changed": [], "parameters": 8}
            document = {"intact": True, "phases": [proven | {"tensors": 2, "loaded": 2}]}
            (run / "freeze_proof.json").write_text(json.dumps(document))
        if status is not None:
            values = curves.get(main, {})
            best = (min if main.endswith(("loss", "mae")) else max)(values.values(), default=None)
            last = {tag: list(points.values())[-1] for tag, points in curves.items()}
            summary = {"status": status, "steps": steps, "seconds": dict(seconds)}
            summary |= {"metrics": metrics or ({**last, main: best} if values else last)}
            at = next((step for step, value in values.items() if value == best), None)
            summary |= {"best": {"value": best, "step": at}, "peak_memory_gib": 0.5}
            summary |= {"versions": {"torch": "2.14.1"}, "device": "cpu"}
            summary |= {} if reason is None else {"reason": reason}
            (run / "summary.json").write_text(json.dumps(summary))
        return run

    plant.phase, plant.lower = phase, LOWER
    return plant


@pytest.fixture
def opened(browser, tmp_path):
    """Open HTML from the disk with the network off.

    The page that is returned has lists of what it must not do: `dialogs`, `requests`, `errors`.
    """
    contexts = []

    def opened(html, width=1440, **options):
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.dialogs, page.requests, page.errors = [], [], []
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda said: (
                page.errors.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.goto(file.as_uri())
        assert page.requests.pop(0) == file.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()
