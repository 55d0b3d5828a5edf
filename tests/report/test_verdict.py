"""The verdict says in plain words what the curves show, and nothing that they do not."""

import base64
import json
import shutil

import numpy as np
import pytest

from finetune.report.gathered import gather


def lines(run):
    return {line.label: line for line in gather(run).verdict}


def every(steps, value):
    return {step: value(step) for step in steps}


EVALUATED = range(10, 101, 10)
SHAPES = {
    "still falling": (
        every(EVALUATED, lambda s: 1 - s / 200),
        every(range(1, 101), lambda s: 1 - s / 200),
        "Still falling",
    ),
    "overfitting": (
        every(EVALUATED, lambda s: 0.4 + abs(s - 30) / 100),
        every(range(1, 101), lambda s: 1 / s),
        "Overfitting: validation/loss was 0.4 at step 30 and rose to 1.1",
    ),
    "far above training": (
        every(EVALUATED, lambda s: 0.5 + 0.001 * (s % 20)),
        every(range(1, 101), lambda s: 1 / s),
        "Validation is far above training",
    ),
    "converged": (
        every(EVALUATED, lambda s: 0.3 + 0.001 * (s % 20)),
        every(range(1, 101), lambda s: 0.28),
        None,
    ),
    "too few to tell": ({50: 1.0, 100: 0.5}, every(range(1, 101), lambda s: 0.1), None),
}


@pytest.mark.parametrize(("validation", "train", "expected"), SHAPES.values(), ids=SHAPES)
def test_advice_follows_the_shape_of_the_losses(plant, validation, train, expected):
    curves = {"train/loss": train, "validation/loss": validation}
    run = plant(curves=curves, main="validation/loss", counts=None)
    found = gather(run).advice
    if expected is None:
        assert found == ()
    else:
        (text,) = found
        assert expected in text


def test_a_run_stopped_by_nan_says_what_happened_and_what_to_do(plant):
    run = plant(
        curves={"train/loss": {1: 2.0, 2: 30.5}},
        status="failed",
        reason="loss is NaN at step 3",
        config={"optimizer": {"type": "SGD", "lr": 50.0}},
    )
    status = lines(run)["status"]
    assert (status.tone, status.text) == ("bad", "failed at step 2: loss is NaN at step 3")
    (text,) = gather(run).advice
    assert "30.5, at step 2" in text
    assert "optimizer.lr is 50.0" in text


@pytest.mark.parametrize("busy", [1, 100])
def test_what_thawing_gained_and_cost_is_told(plant, busy):
    """By steps: how long they took depends on what else the machine did."""
    curves = {
        "validation/accuracy": {10: 0.96, 20: 0.965, 30: 0.969},
        "time/step_seconds": {
            **every(range(1, 11), lambda _: 0.1),
            **every(range(11, 31), lambda _: 0.1 * busy),
        },
    }
    phases = [plant.phase("head", plant.lower, {"steps": 10}), plant.phase("top", [])]
    page = gather(plant(curves=curves, phases=phases, begins=[0, 10]))
    (text,) = page.advice
    assert text == (
        "Phase 'head' alone reached 0.96 in 10 steps; the later phases gained 0.009 in 20 more."
    )
    assert [(row.name, row.steps) for row in page.phases] == [
        ("head", "0 to 10"),
        ("top", "10 to 30"),
    ]


@pytest.mark.parametrize(
    ("main", "task", "counts", "value", "expected", "tone"),
    [
        ("validation/accuracy", "classification", (30, 10), 0.95, "0.2 better", "good"),
        ("validation/accuracy", "classification", (30, 10), 0.5, "0.25 worse", "bad"),
        ("validation/r2", "regression", None, 0.5, "0.5 better", "good"),
        ("validation/r2", "regression", None, -1.0, "1 worse", "bad"),
        ("validation/loss", "classification", (30, 10), 0.5, None, None),
        ("validation/accuracy", "token_classification", (30, 10), 0.5, None, None),
    ],
)
def test_a_constant_predictor_is_compared_where_it_is_known(
    plant, main, task, counts, value, expected, tone
):
    run = plant(
        curves={main: {1: value}}, main=main, counts=counts, config={"task": {"type": task}}
    )
    found = lines(run).get("baseline")
    if expected is None:
        assert found is None
    else:
        assert found.text.startswith(expected)
        assert found.tone == tone
        assert bool(gather(run).advice) == (tone == "bad")


def test_the_best_earlier_run_on_the_same_data_is_named(plant):
    def accuracy(value):
        return {"validation/accuracy": {5: value}}

    plant("old", accuracy(0.7), began="2026-01-01 08:00:00+00:00")
    plant("best", accuracy(0.9), began="2026-01-01 07:00:00+00:00")
    plant("later", accuracy(0.99), began="2026-01-01 12:00:00+00:00")
    other = {"data": {"source": {"type": "csv", "path": "other.csv"}}}
    plant("other", accuracy(0.98), began="2026-01-01 07:00:00+00:00", config=other)
    run = plant("run", accuracy(0.75), config={"optimizer": {"type": "SGD", "lr": 0.5}})
    found = lines(run)["earlier runs"]
    assert found.text == "0.15 worse than best (0.9), the best of 2 earlier runs on the same data"
    name, differing = gather(run).before
    assert name == "old"
    assert differing == (("optimizer.lr", "0.1", "0.5"),)


def validated_on(run, *rows):
    """Let a run say by which rows it was validated."""
    path = run / "data.json"
    kept = base64.b64encode(np.array(rows, np.uint64).tobytes()).decode()
    identity = {"version": 1, "parts": {"validation": {"size": len(rows), "rows": kept}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": identity}))


def test_runs_of_the_same_validation_samples_are_compared_before_those_of_others(plant):
    def planted(name, value, began, *rows):
        curves = {"validation/accuracy": {5: value}}
        validated_on(plant(name, curves, began=f"2026-01-01 0{began}:00:00+00:00"), *rows)

    planted("elsewhere", 0.99, 5, 1, 2, 4)
    run = plant("run", {"validation/accuracy": {5: 0.75}})
    validated_on(run, 1, 2, 3)
    assert lines(run)["earlier runs"].text == (
        "0.24 worse than elsewhere (0.99), the only earlier run on the same data, "
        "but it was validated on other samples"
    )
    planted("same", 0.7, 6, 3, 2, 1)
    planted("better", 0.8, 7, 1, 2, 3)
    assert lines(run)["earlier runs"].text == (
        "0.05 worse than better (0.8), the best of 2 earlier runs on the same data and validation "
        "samples; 1 run had other ones"
    )


def test_the_proof_is_compared_anew(plant):
    run = plant()
    assert lines(run)["frozen"].text.startswith(
        "'net.layer.0', 'net.layer.1' throughout; proven: 2 fingerprints equal"
    )
    path = run / "freeze_proof.json"
    document = json.loads(path.read_text())
    document["phases"][0]["digests"][plant.lower[0]][1] = "b"
    path.write_text(json.dumps(document))
    found = lines(run)["frozen"]
    assert (found.tone, found.text) == (
        "bad",
        f"PROOF FAILED: frozen tensors changed ({plant.lower[0]})",
    )
    path.write_text("{")
    assert lines(run)["frozen"].text == "freeze_proof.json is damaged"
    path.unlink()
    assert lines(run)["frozen"].text.startswith(
        "'net.layer.0', 'net.layer.1' throughout; not proven yet"
    )


def test_cost_is_told_by_activity(plant):
    assert lines(plant())["cost"].text == (
        "2.5 s (training 2.0 s, evaluation 0.5 s); at most 0.50 GiB of memory"
    )


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "plan.json", "data.json", "metrics.jsonl", "summary.json", "freeze_proof.json"],
)
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"phases": [3], "sizes": 4, "figures": 1}'])
def test_a_damaged_document_leaves_a_page(plant, name, content):
    from finetune.report.page import render_page

    run = plant()
    (run / name).write_text(content)
    assert "<h1" in render_page([run])
    (run / name).unlink()
    assert "<h1" in render_page([run])
    shutil.copytree(run, run / name)
    assert "<h1" in render_page([run])
