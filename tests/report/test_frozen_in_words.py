"""What was frozen and when, in the words of the table of runs."""

import json

import pytest

from finetune.report.freeze_timeline import Bar, TimelineRow, frozen_in_words
from finetune.report.gathered import gather
from finetune.report.page import render_page
from finetune.runs.doctor import examine

LINES = [
    ([("trained", 0, 9)], "nothing"),
    ([("frozen", 0, 9)], "'a' throughout"),
    ([("frozen", 0, 4), ("trained", 4, 9)], "'a' until step 4"),
    ([("trained", 0, 4), ("frozen", 4, 9)], "'a' from step 4"),
    ([("mixed", 0, 9)], "'a' in part throughout"),
    ([("frozen", 0, 2), ("trained", 2, 4), ("frozen", 4, 9)], "'a' in 2 stretches"),
    ([("trained", 0, 80), ("frozen", 80, 160), ("trained", 160, 240)], "'a' from step 80 to 160"),
    ([("frozen", 0, 2), ("mixed", 2, 9)], "'a' in part throughout"),
    ([("mixed", 0, 2), ("frozen", 2, 9)], "'a' in part throughout"),
    ([("mixed", 0, 2), ("frozen", 2, 5), ("trained", 5, 9)], "'a' in part until step 5"),
]


@pytest.mark.parametrize(("bars", "words"), LINES, ids=str)
def test_a_block_is_told_with_the_steps_in_which_it_is_frozen(bars, words):
    assert frozen_in_words([TimelineRow("a", tuple(Bar(*bar) for bar in bars))]) == words


def test_blocks_that_are_frozen_alike_are_told_together():
    rows = [TimelineRow(name, (Bar("frozen", 0, 4), Bar("trained", 4, 9))) for name in "ab"]
    rows.append(TimelineRow("c", (Bar("frozen", 0, 9),)))
    assert frozen_in_words(rows) == "'a', 'b' until step 4; 'c' throughout"


def test_the_table_of_runs_tells_what_each_has_frozen(plant):
    first = plant("first")
    second = plant(
        "second",
        phases=[plant.phase("head", plant.lower), plant.phase("all", [])],
        begins=[0, 12],
        proof=False,
    )
    html = render_page([first, second])
    assert "throughout <small>proven, 2 fingerprints" in html
    assert "until step 12 <small>not proven" in html


def test_nothing_is_said_to_be_frozen_only_where_that_is_known(plant):
    damaged = plant("damaged")
    (damaged / "plan.json").write_text("{")
    assert gather(damaged).proof is not None
    assert gather(damaged).frozen == ""
    at_once = plant("at-once", curves={"train/loss": {0: 1.0}}, main="train/loss", proof=False)
    assert gather(at_once).frozen == ""
    assert gather(plant("all", phases=[plant.phase("all", [])], proof=False)).frozen == "nothing"
    empty = plant("empty", phases=[plant.phase("all", [])], proof=False)
    (empty / "plan.json").unlink()
    proven = {"phase": "all", "digests": {}, "changed": [], "parameters": 0}
    document = {"intact": True, "phases": [proven | {"tensors": 0, "loaded": 0}]}
    (empty / "freeze_proof.json").write_text(json.dumps(document))
    assert gather(empty).proof is not None
    assert gather(empty).frozen == "nothing"


def test_neighbours_are_told_by_the_first_and_the_last_of_them():
    frozen, trained = (Bar("frozen", 0, 9),), (Bar("trained", 0, 9),)
    rows = [TimelineRow(f"block{n}", frozen) for n in range(4)]
    rows += [TimelineRow("norm", trained), TimelineRow("last", frozen)]
    assert frozen_in_words(rows) == "'block0' to 'block3', 'last' throughout"
    every_second = [TimelineRow(f"b{n}", (frozen, trained)[n % 2]) for n in range(9)]
    assert frozen_in_words(every_second) == "'b0', 'b2', 'b4' and 2 more throughout"


def test_a_proof_that_is_off_is_not_told_as_one_of_nothing(small_run, tmp_path, capsys):
    phases = [{"name": "all", "freeze": ["body"]}]
    small_run(freeze={"phases": phases, "verify": "off"}).fit()
    assert "proof   off, by freeze.verify" in capsys.readouterr().err
    found = {line.label: line.text for line in gather(tmp_path / "run").verdict}
    assert found["frozen"].startswith("'body' throughout; not proven, since freeze.verify is off")
    told = {one.label: one.text for one in examine(tmp_path / "run").findings}
    assert told["proof"] == "off, by freeze.verify"
