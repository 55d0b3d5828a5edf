"""A watch keeps the best value and counts what does not improve; older runs are read as before."""

import json
import math

import pytest

from finetune.errors import CheckpointError
from finetune.runs.progress import Progress
from finetune.runs.watch import Rule, Watch

OLD = {
    "step": 9,
    "phase": 1,
    "phase_began": 4,
    "transitions": [4],
    "plateau_best": 0.5,
    "plateau_stale": 2,
    "plateau_reached": True,
    "phase_best": 0.25,
    "phase_best_step": 6,
    "best": 0.125,
    "best_step": 3,
    "stale": 1,
    "watched": 0.75,
    "stopped_early": False,
}


@pytest.mark.parametrize(
    ("values", "falls", "patience", "expected"),
    [
        ([3, 2, 2.5], True, 2, Watch(2, 2, 1)),
        ([3, 2, 2.5, 2.5], True, 2, Watch(2, 2, 2, is_over=True)),
        ([3, 2, 2.5], False, 2, Watch(3, 1, 2, is_over=True)),
        ([1, 1, 1], True, None, Watch(1, 1, 2)),
        ([math.nan, 1, math.nan], True, 9, Watch(1, 2, 1)),
    ],
    ids=str,
)
def test_a_watch_keeps_the_best_and_is_over_when_its_patience_is_used_up(
    values, falls, patience, expected
):
    watch, rule = Watch(), Rule("until", "validation/loss", falls, patience=patience)
    for step, value in enumerate(values, start=1):
        watch.see(value, step, rule)
    assert watch == expected


def test_a_gain_must_be_larger_than_asked_for():
    watch, rule = Watch(), Rule("until", "validation/loss", falls=True, min_delta=0.1)
    assert [watch.see(value, 1, rule) for value in (1, 0.95, 0.85)] == [True, False, True]


def test_a_progress_of_an_earlier_release_has_its_watches():
    progress = Progress.from_json(OLD)
    assert progress.best == Watch(0.125, 3)
    assert progress.stopping == Watch(0.75, None, 1)
    assert progress.plateau == Watch(0.5, None, 2, is_over=True)
    assert progress.phase_best == Watch(0.25, 6)
    assert progress.ranking == [(3, 0.125)]


def test_a_progress_comes_back_from_its_file():
    progress = Progress.from_json(OLD | {"lines": 7})
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"best": {"value": "0.5"}}, "'best.value'"),
        ({"best": {"value": 0.5, "mean": 1}}, "'best.mean'"),
        ({"plateau": {"is_over": 1}}, "'plateau.is_over'"),
        ({"stopping": {}, "stopped_early": True}, "'stopped_early'"),
        ({"best": [0.5, 1]}, "'best.value'"),
        ({"stale": "1"}, "'stopping.stale'"),
    ],
    ids=str,
)
def test_a_watch_of_another_form_is_refused(change, said):
    with pytest.raises(CheckpointError, match=said):
        Progress.from_json({"step": 9} | change)
