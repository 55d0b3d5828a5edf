"""Curves are thinned without losing their peaks; the timeline covers every step once."""

import pytest

from finetune.report.charts import charts_of, without_chart
from finetune.report.curves import PhaseSpan, aligned, curves_of, thinned
from finetune.report.freeze_timeline import timeline_rows
from finetune.report.gathered import gather
from finetune.report.page import render_page


def test_a_peak_of_a_single_step_survives_the_thinning():
    points = [(step, 1.0) for step in range(100_000)]
    points[70_001] = (70_001, 9.0)
    points[3] = (3, -4.0)
    thin = thinned(points, 1000)
    assert len(thin) <= 1002
    assert {(3, -4.0), (70_001, 9.0), points[0], points[-1]} <= set(thin)
    assert thin == sorted(thin)
    assert thinned(points[:1000], 1000) == points[:1000]


def test_curves_of_different_steps_share_one_axis():
    steps, values = aligned([[(1, 0.5), (3, 0.25)], [(2, 1.0), (3, 2.0)]])
    assert steps == [1, 2, 3]
    assert values == [[0.5, None, 0.25], [None, 1.0, 2.0]]


def test_values_that_are_not_finite_are_named_by_their_steps():
    lines = [
        {"step": 0, "phase": "all", "freeze/phase": 0},
        {"step": 1, "epoch": 0.1, "phase": "all", "train/loss": 1.5},
        {"step": 2, "epoch": 0.2, "phase": "all", "train/loss": None, "non_finite": ["train/loss"]},
    ]
    curves = curves_of(lines)
    assert curves.points["train/loss"] == [(1, 1.5)]
    assert curves.non_finite == {"train/loss": [2]}
    assert curves.phases == (PhaseSpan(0, "all", 0, 2),)
    assert "epoch" not in curves.points


def test_training_and_validation_share_a_chart_and_a_single_point_has_none(plant):
    charts = {chart["title"]: chart for chart in charts_of(gather(plant()))}
    assert [one["label"] for one in charts["loss"]["series"]] == ["train/loss", "validation/loss"]
    single = plant("short", {"train/loss": {1: 2.0, 2: 1.0}, "validation/accuracy": {2: 0.5}})
    assert [chart["title"] for chart in charts_of(gather(single))] == ["loss"]


def test_a_chart_and_a_page_say_how_much_has_no_room(plant):
    def rising(start):
        return {1: start, 2: start + 1}

    figures = {f"validation/f1/{number}": rising(number) for number in range(13)}
    figures |= {f"validation/extra{number}": rising(number) for number in range(7)}
    run = plant("many", {"train/loss": rising(0.0), "validation/f1": rising(0.5), **figures})
    page = gather(run)
    (of_classes,) = [chart for chart in charts_of(page) if chart["title"].startswith("f1/*")]
    assert (of_classes["title"], len(of_classes["series"])) == ("f1/*, 12 of 13", 12)
    cut = without_chart(page)
    assert not {chart["title"] for chart in charts_of(page)} & set(cut)
    assert f"{len(cut)} more figures have no chart here, such as {cut[0]}" in render_page([run])


def test_a_timeline_joins_phases_in_which_a_block_keeps_its_state(plant):
    plan = {
        "phases": [
            plant.phase("head", ["net.layer.0.weight", "net.layer.1.weight", "net.layer.2.weight"]),
            plant.phase("top", ["net.layer.0.weight", "net.layer.1.weight"]),
            plant.phase("more", ["net.layer.0.weight"]),
        ]
    }
    spans = [PhaseSpan(0, "head", 0, 4), PhaseSpan(1, "top", 4, 6), PhaseSpan(2, "more", 6, 9)]
    rows = {row.name: row.bars for row in timeline_rows(plan, spans, [])}
    assert rows == {
        "net.layer.0": (("frozen", 0, 9),),
        "net.layer.1": (("frozen", 0, 6), ("trained", 6, 9)),
        "net.layer.2": (("frozen", 0, 4), ("trained", 4, 9)),
        "head": (("trained", 0, 9),),
    }


def test_a_policy_s_draws_are_shown(plant):
    blocks = {str(depth): [f"net.layer.{depth}.weight"] for depth in range(3)}
    plan = {"phases": [plant.phase("widest", [])], "policy": {"blocks": blocks}}
    spans = [PhaseSpan(0, "draw 0", 0, 5), PhaseSpan(1, "draw 1", 5, 10)]
    rows = {row.name: row.bars for row in timeline_rows(plan, spans, [[1], [0, 2]])}
    assert rows["net.layer.0"] == (("frozen", 0, 5), ("trained", 5, 10))
    assert rows["net.layer.1"] == (("trained", 0, 5), ("frozen", 5, 10))
    assert rows["head"] == (("trained", 0, 10),)


@pytest.mark.parametrize("blocks", [3, 60])
def test_many_blocks_with_the_same_states_share_a_row(plant, blocks):
    plan = {"phases": [plant.phase("all", ["net.layer.0.weight"], blocks=blocks)]}
    rows = timeline_rows(plan, [PhaseSpan(0, "all", 0, 4)], [])
    names = [row.name for row in rows]
    assert names == (
        ["net.layer.0", "net.layer.1", "net.layer.2", "head"]
        if blocks == 3
        else ["net.layer.0", "net.layer.1 to head"]
    )
