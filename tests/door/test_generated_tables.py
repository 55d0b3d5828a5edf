"""Tables that hypothesis makes are read right, or refused in one clear line, and always alike."""

import csv
import gzip
import io
import json

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pyarrow import parquet

from finetune.config.data import DataConfig
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.sources.open_source import open_source
from finetune.errors import FinetuneError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
CELLS = {
    "text": TEXT,
    "number": st.one_of(st.integers(-999, 999).map(str), st.floats(-9, 9).map(str)),
    "odd": st.sampled_from(["", "?", "NA", "1,200", "3,5", "35%", " 3", "nan", "007", "\x1b[31m"]),
    "label": st.sampled_from(["pos", "neg", "0", "1"]),
}
FORMS = ["csv", "tsv", "json", "pretty", "jsonl", "parquet"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]


@st.composite
def tables(draw):
    """Draw names, rows of texts, and how they are written."""
    names = draw(st.lists(st.sampled_from(["a", "b", "", "c d", "ü"]), max_size=3))
    names = ["x", *names]
    kinds = [draw(st.sampled_from(sorted(CELLS))) for _ in names]
    row = st.tuples(*(CELLS[kind] for kind in kinds)).map(list)
    rows = draw(st.lists(row, max_size=6))
    form, encoding = draw(st.sampled_from(FORMS)), draw(st.sampled_from(ENCODINGS))
    separator = draw(st.sampled_from(",;|"))
    quote = draw(st.sampled_from(['"', "'"]))
    damage = draw(st.one_of(st.none(), st.none(), st.binary(max_size=3)))
    return names, rows, form, encoding, separator, quote, draw(st.booleans()), damage


def written(table):
    """Return the bytes of a table, and its ending."""
    names, rows, form, encoding, separator, quote, is_packed, damage = table
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    match form:
        case "parquet":
            columns = {name: [row[name] for row in objects] for name in dict.fromkeys(names)}
            file = io.BytesIO()
            parquet.write_table(pyarrow.table(columns), file)
            raw = file.getvalue()
        case "csv" | "tsv":
            text = io.StringIO()
            parted = "\t" if form == "tsv" else separator
            writer = csv.writer(text, delimiter=parted, quotechar=quote, lineterminator="\n")
            writer.writerows([names, *rows])
            raw = text.getvalue().encode(encoding, "replace")
        case "jsonl":
            raw = "".join(json.dumps(each) + "\n" for each in objects).encode(encoding)
        case _:
            indent = 2 if form == "pretty" else None
            raw = json.dumps(objects, indent=indent).encode(encoding)
    if damage is not None:
        raw = raw[: len(raw) // 2] + damage + raw[len(raw) // 2 + 1 :]
    return gzip.compress(raw) if is_packed else raw


def outcome(read):
    """Return the cells of column x, or the message why there are none."""
    try:
        return list(read())
    except FinetuneError as error:
        told = str(error)
        assert max(map(len, told.splitlines())) <= 500
        assert "\x1b" not in told
        return None


def check(folder, table):
    _, rows, form, encoding, separator, quote, _, damage = table
    path = folder / f"t.{'json' if form == 'pretty' else form}"
    path.write_bytes(written(table))
    node = {"type": "csv", "path": str(path), "separator": "\t" if form == "tsv" else separator}
    node |= {"quote": quote, "encoding": encoding}
    config = DataConfig.model_validate({"source": node})

    def trained():
        table = open_source(config.source, (), (), {"x"})
        return table.columns["x"].values if "x" in table.columns else []

    def predicted(source, stdin):
        (part,) = read_incoming(source, config, {"x": "text"}, stdin)
        return part.columns["x"]

    first = outcome(trained)
    second = outcome(lambda: predicted(str(path), None))
    third = outcome(lambda: predicted("-", io.TextIOWrapper(io.BytesIO(path.read_bytes()))))
    if damage is None:
        assert first == second
        if encoding != "latin-1":
            assert first == third
        is_exact = form not in ("csv", "tsv") or encoding != "latin-1"
        if first is not None and is_exact:
            cells = [row[0] for row in rows]
            assert first == cells


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_generated_table_is_read_right_or_told_and_alike_everywhere(tmp_path, count):
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(tables())
    def run(table):
        check(tmp_path, table)

    run()
