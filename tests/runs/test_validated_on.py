"""Figures that stand side by side are of the same validation samples, or a line says so."""

import base64
import json

import numpy as np
import pytest

from finetune.runs.comparison import compare_runs
from finetune.runs.validated_on import different_samples, validation_samples


def data(rows=(1, 2, 3), size=None, inputs=("x",), **identity):
    text = base64.b64encode(np.array(rows, np.uint64).tobytes()).decode()
    size = len(rows) if size is None else size
    part = {"validation": {"size": size, "rows": text}}
    return {
        "inputs": list(inputs),
        "target": "y",
        "identity": {"version": 1, "parts": part} | identity,
    }


def line(*documents):
    runs = [(f"run {n}", validation_samples(one)) for n, one in enumerate(documents)]
    return different_samples(runs)


def test_other_rows_and_other_sizes_are_told_with_the_runs_that_have_them():
    assert line(data(), data(), data((1, 2, 4))) == (
        "validated on different samples, so figures differ for that reason too: "
        "run 0 and 1 more on 3 samples; run 2 on 3 samples"
    )
    assert "run 1 on 2 samples" in line(data(), data((1, 2)))
    many = line(*(data(range(1, n)) for n in range(2, 9)))
    assert many.endswith("; 4 more sets")
    assert (
        len(different_samples([("x" * 200, validation_samples(data((n,)))) for n in (1, 2)])) < 500
    )


SILENT = {
    "the same": [data(), data()],
    "in another order": [data(), data((3, 1, 2))],
    "one run": [data()],
    "an older run": [data(), {"sizes": {"validation": 9}}],
    "no validation samples": [data(), data(())],
    "contents unknown": [data(), data((0, 2, 4))],
    "hashed in another way": [data(), data((4, 5, 6), images="names")],
    "other columns of them": [data(), data((4, 5, 6), inputs=("z",))],
    "one hash of millions": [data((1,), size=5), data((2,), size=5)],
    "damaged": [
        data(),
        {"identity": {"version": 1, "parts": {"validation": {"size": 1, "rows": 7}}}},
    ],
}


@pytest.mark.parametrize("documents", SILENT.values(), ids=SILENT)
def test_nothing_is_said_where_they_are_the_same_or_not_known(documents):
    assert line(*documents) is None


def test_real_runs_of_two_seeds_drew_other_samples(make_trainer, tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        make_trainer(name, freeze=["body"], seed=seed).fit()
    note = compare_runs(tmp_path / "one", tmp_path / "other").note
    assert note.startswith("validated on different samples")
    assert compare_runs(tmp_path / "one", tmp_path / "one").note is None
    size = json.loads((tmp_path / "one" / "data.json").read_text())["sizes"]["validation"]
    assert f"one on {size:,} samples" in note
