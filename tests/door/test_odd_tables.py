"""Tables as other programs leave them: signs for nothing, first lines, pointers, decimals."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finetune.config.data import DataConfig
from finetune.data.cells import no_number
from finetune.data.parts.odd_numbers import notes_on_fractions, notes_on_numbers
from finetune.data.readers.separated import separator_hint
from finetune.data.table import Listed, Numbers

CONFIG = """
model: {layers: [{type: Linear, out_features: 2}]}
data:
  source: {type: FORM, path: PATH}
  inputs: [u, v]
  target: label
  transforms: [{type: stack}]
task: {type: classification}
optimizer: {type: AdamW, lr: 0.01}
train: {steps: 2, batch_size: 4}
"""
SOURCE = {"source": {"type": "random"}}
PLAIN = DataConfig.model_validate(SOURCE)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def planned(tmp_path, monkeypatch, command_line):
    """Call `plan` on a config of a file."""
    monkeypatch.chdir(tmp_path)

    def plan(path, form="csv", **changes):
        text = CONFIG.replace("FORM", form).replace("PATH", path)
        for old, new in changes.items():
            text = text.replace(old, new)
        (tmp_path / "c.yaml").write_text(text)
        return command_line("plan", "c.yaml")

    return plan


@pytest.mark.parametrize("sign", [-999, 9999])
def test_a_number_that_reads_like_no_value_is_told(sign):
    values = torch.tensor([0.5, sign, 0.7, 0.1, sign, 0.9])
    (note,) = notes_on_numbers({"u": Numbers(values)}, ["u"], PLAIN)
    assert f"column 'u' holds {sign} in 2 of 6 rows, all others are 0.1 to 0.9" in note
    assert f'missing: ["{sign}"]' in note


def test_a_whole_number_beyond_doubles_is_no_number_with_fractions():
    # Told with its row, where the column is settled.
    assert notes_on_fractions("u", Listed([10**400, 1], "cells")) == []


@pytest.mark.parametrize(
    "values",
    [[-999, 0.5, 0.7], [-999.0, -500, 0, 800, -999], [0.5, 0.7], [1, 2, 3], [True, False], []],
)
def test_numbers_among_others_of_their_size_are_told_nothing_about(values):
    assert notes_on_numbers({"u": Numbers(torch.tensor(values))}, ["u"], PLAIN) == []


def test_whole_numbers_that_float32_cannot_tell_apart_are_told():
    ids = torch.arange(10**12, 10**12 + 40)
    (note,) = notes_on_numbers({"u": Numbers(ids)}, ["u"], PLAIN)
    assert "column 'u': 40 different numbers become 1 in float32" in note
    steps = [{"type": "standardize", "columns": ["u"]}]
    scaled = DataConfig.model_validate({"transforms": steps, **SOURCE})
    # In doubles, before they are rounded.
    assert notes_on_numbers({"u": Numbers(ids)}, ["u"], scaled) == []


def test_numbers_with_fractions_that_float32_cannot_tell_apart_are_told(planned, tmp_path):
    rows = [{"u": 1.7e9 + n / 4, "v": n, "label": "ab"[n % 2]} for n in range(40)]
    lines = [rows[0], *(row.values() for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for form in ("csv", "json"):
        found = planned(f"t.{form}", form)
        assert "column 'u': 40 different numbers become 1 in float32" in found.out + found.err
    # Digits beyond those of float32 do no harm as long as they tell no numbers apart.
    assert notes_on_fractions("u", Listed([str(n / 7) for n in range(40)], "cells")) == []


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("$0.5", "write it as 0.5, not $0.5"),
        ("\u22120.5", "write it as -0.5"),
        ("\u0663.\u0665", "write it as 3.5"),
        ("1_000", "write it as 1000"),
        ("5 kg", "write all in one unit, and without it: 5"),
        ("2020-01-31", "a date is no number"),
        (datetime.date(2020, 1, 31), "a date is no number"),
        ("abc", "words for categories"),
    ],
)
def test_a_cell_that_is_nearly_a_number_names_the_one_that_is_meant(cell, hint):
    error = no_number("u", Listed([cell, cell], "things"), lambda row: f"row {row + 1}")
    assert hint in error.hint


def test_numbers_as_text_are_told_to_be_text():
    error = no_number("u", Listed(["1", "2"], "text"), lambda row: f"row {row + 1}")
    assert "the column is text in the data" in error.message
    assert "categories" in error.hint


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["# made by x"], "the first line is no header"),
        (["sep=", ""], "the first line is no header"),
        (["u", "'v'"], "in single quotes"),
        (["u   v   label"], "separated by blanks"),
        (["u;v"], "separated by ';'"),
        (["u", "v"], None),
        (["#", "u", "v"], None),
        (["a name of words"], None),
    ],
)
def test_a_first_line_that_names_no_columns_has_a_hint(names, hint):
    found = separator_hint(names)
    assert found is None if hint is None else hint in found


def test_decimals_of_parquet_are_numbers(planned, tmp_path):
    amounts = [Decimal(n) / 4 for n in range(12)]
    table = {"u": amounts, "v": [n / 3 for n in range(12)], "label": [n % 2 for n in range(12)]}
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    assert not planned("d.parquet", "parquet").code


def test_a_pointer_of_git_lfs_is_told_wherever_a_file_is_read(planned, tmp_path):
    (tmp_path / "d.csv").write_text(POINTER)
    (tmp_path / "w.pt").write_text(POINTER)
    for kind in ("texts", "images"):
        (tmp_path / kind / "a").mkdir(parents=True)
        (tmp_path / kind / "b").mkdir()
        ending = "txt" if kind == "texts" else "png"
        for n in range(4):
            (tmp_path / kind / "ab"[n % 2] / f"{n}.{ending}").write_text(POINTER)
    inputs = {"inputs: [u, v]": "", "target: label": "", "transforms: [{type: stack}]": ""}
    shown = [planned("d.csv"), planned("texts", "textfolder", **inputs)]
    shown.append(planned("images", "imagefolder", **inputs))
    (tmp_path / "d.csv").write_text("u,v,label\n" + "".join(f"{n},1,{n % 2}\n" for n in range(8)))
    weights = {"out_features: 2}]": "out_features: 2}], weights: {path: w.pt}"}
    shown.append(planned("d.csv", **weights))
    for one in shown:
        assert one.code == 2
        assert "a pointer of Git LFS" in one.err


def test_an_input_that_is_named_twice_is_refused(planned, tmp_path):
    (tmp_path / "d.csv").write_text("u,v,label\n1,2,a\n3,4,b\n")
    shown = planned("d.csv", **{"[u, v]": "[u, u]"})
    assert shown.code == 2
    assert "data.inputs: 'u' is named twice" in shown.err
