"""A page and a table of several runs say if these were validated on different samples."""

import base64
import json

import numpy as np
import pytest

from finetune.report.page import render_page

SAID = "validated on different samples, so figures differ for that reason too: "


@pytest.fixture
def two(plant):
    """Two planted runs; the rows of the second one's validation samples are given."""

    def two(*rows):
        runs = [plant("one"), plant("two")]
        for run, numbers in zip(runs, ((1, 2), rows), strict=True):
            data = json.loads((run / "data.json").read_text())
            text = base64.b64encode(np.array(numbers, np.uint64).tobytes()).decode()
            parts = {"validation": {"size": len(numbers), "rows": text}}
            data["identity"] = {"version": 1, "columns": {}, "parts": parts}
            (run / "data.json").write_text(json.dumps(data))
        return runs

    return two


@pytest.mark.parametrize(("rows", "is_told"), [((1, 2), False), ((1, 3), True)])
def test_page_table_and_comparison_say_it_in_one_line(two, command_line, rows, is_told):
    runs = two(*rows)
    assert (SAID in render_page(runs)) == is_told
    assert SAID not in render_page(runs[:1])
    for words in (["runs", runs[0].parent], ["diff", *runs]):
        ended = command_line(*words)
        assert ended.code == 0
        assert (SAID[:20] in ended.out) == is_told
    note = json.loads(command_line("runs", runs[0].parent, "--json").out)["note"]
    assert (note is not None) == is_told
