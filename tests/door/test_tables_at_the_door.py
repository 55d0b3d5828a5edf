"""A table is what its content says, in training and in prediction; odd cells are told by place."""

import codecs
import gzip
import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from finetune.config.data import DataConfig
from finetune.config.source_keys import CsvSource, TextFolderSource
from finetune.config.task_keys import ClassificationTask
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.prepare import open_data, prepare_data
from finetune.data.readers.chunks import Dialect, Reading
from finetune.data.readers.separated import separated_chunks
from finetune.data.sources.files import read_text
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError
from finetune.models.preprocessing import Preprocessing

ROWS = [
    {"text": f"film {n}\u2028 {'good' if n % 2 else 'bad'}", "label": "ba"[n % 2]} for n in range(6)
]
TEXTS = [row["text"] for row in ROWS]
KINDS = {"text": "text"}


def lines(separator):
    table = [["text", "label"], *[list(row.values()) for row in ROWS]]
    return "".join(separator.join(row) + "\n" for row in table)


def json_lines():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def packed_parquet():
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


FORMS = {
    "csv": ("x.csv", lines(",").encode()),
    "tsv": ("x.tsv", lines("\t").encode()),
    "upper case": ("X.CSV", lines(",").encode()),
    "gzip": ("x.csv.gz", gzip.compress(lines(",").encode())),
    "array": ("x.json", json.dumps(ROWS).encode()),
    "pretty array": ("x.json", json.dumps(ROWS, indent=2).encode()),
    "pretty objects": ("x.json", "\n".join(json.dumps(r, indent=1) for r in ROWS).encode()),
    "json lines": ("x.jsonl", json_lines().encode()),
    "ndjson with a mark": ("x.ndjson", codecs.BOM_UTF8 + json_lines().encode()),
    "csv with a mark": ("x.csv", codecs.BOM_UTF8 + lines(",").encode()),
    "utf-16": ("x.csv", lines(",").encode("utf-16")),
    "utf-16 without a mark": ("x.csv", lines(",").encode("utf-16-le")),
    "utf-32": ("x.csv", lines(",").encode("utf-32")),
    "parquet": ("x.parquet", packed_parquet()),
    "parquet called csv": ("x.csv", packed_parquet()),
    "json called csv": ("x.csv", json_lines().encode()),
    "csv called json": ("x.json", lines(",").encode()),
    "csv called txt": ("x.txt", lines(",").encode()),
    "json without an ending": ("x", json_lines().encode()),
}


def trained(path, **source):
    """Read a table as training does; return its texts."""
    config = DataConfig.model_validate({"source": {"type": "csv", "path": str(path), **source}})
    opened = open_data(config, ClassificationTask(type="classification"), seed=0, trust=())
    return list(opened.train.table.columns["text"].values), opened.facts.notes


@pytest.fixture
def prepared():
    """Open and prepare data from a plain dict of config."""

    def prepare(data):
        config = DataConfig.model_validate(data)
        raw = open_data(config, ClassificationTask(type="classification"), seed=0, trust=())
        return prepare_data(raw, config, Preprocessing(None, None), seed=0, trust=())

    return prepare


def predicted(source, stdin=b"", kinds=KINDS, **keys):
    """Read samples as prediction does after training on a csv file; return the only part."""
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "train.csv", **keys}})
    (part,) = read_incoming(str(source), config, kinds, io.TextIOWrapper(io.BytesIO(stdin)))
    return part


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike_in_training_in_a_file_and_in_a_stream(tmp_path, form):
    name, content = FORMS[form]
    (tmp_path / name).write_bytes(content)
    separator = "\t" if form == "tsv" else ","
    assert trained(tmp_path / name, separator=separator)[0] == TEXTS
    assert predicted(tmp_path / name, separator=separator).columns["text"] == TEXTS
    assert predicted("-", content, separator=separator).columns["text"] == TEXTS


def test_a_form_that_its_name_does_not_say_is_told(tmp_path):
    (tmp_path / "x.csv").write_text(json_lines())
    assert "x.csv is read as JSON, which it holds" in trained(tmp_path / "x.csv")[1][0]
    assert "read as JSON" in predicted(tmp_path / "x.csv").notes[0]


def test_another_separator_than_that_of_training_is_found_in_prediction_and_told(tmp_path):
    (tmp_path / "x.csv").write_text(lines(";"))
    part = predicted(tmp_path / "x.csv")
    assert part.columns["text"] == TEXTS
    assert "';' as its separator" in part.notes[0]


def test_a_folder_of_tables_is_one_table_in_training(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(lines(","))
    assert trained(tmp_path)[0] == TEXTS * 2
    (tmp_path / "1.csv").write_text("text,label\nx,\n")
    with pytest.raises(DataError, match=r"no label in row 1 of .*1\.csv"):
        trained(tmp_path)
    (tmp_path / "1.csv").write_text("words,label\nx,a\n")
    with pytest.raises(DataError, match=r"has no column 'text', which .*0\.csv has"):
        trained(tmp_path)


def test_columns_that_nobody_uses_may_be_unnamed_twice_or_of_any_content(tmp_path):
    (tmp_path / "x.csv").write_text('text,label,,,n,n\na,b,,,"1,5",?\nc,d,,,x,\n')
    assert trained(tmp_path / "x.csv")[0] == ["a", "c"]
    (tmp_path / "x.csv").write_text("text,label,label\na,b,c\n")
    with pytest.raises(DataError, match="two columns are named 'label'"):
        trained(tmp_path / "x.csv")


def test_cells_of_parquet_that_nobody_uses_are_not_converted(tmp_path):
    bad = pyarrow.array([b"\xff\xfe"] * 6).cast(pyarrow.string(), safe=False)
    odd = {"text": TEXTS, "label": list("ababab"), "odd": bad}
    parquet.write_table(pyarrow.table(odd), tmp_path / "x.parquet")
    assert trained(tmp_path / "x.parquet")[0] == TEXTS
    with pytest.raises(DataError, match="column 'odd' cannot be read"):
        predicted(tmp_path / "x.parquet", kinds={"odd": "text"})


STRAY = "label\ttext\n" + 'pos\tgood\npos\t" a must see\nneg\tbad\nneg\twas it "\n' * 8


def test_a_stray_quotation_mark_that_takes_in_rows_is_refused_with_the_key(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text(STRAY)
    source = {"type": "csv", "path": str(path), "separator": "\t"}
    with pytest.raises(DataError, match="8 rows are made of 24 lines") as caught:
        open_source(CsvSource(**source), (), ())
    assert caught.value.where == f"{path}:3"
    assert "quote: none" in caught.value.hint
    assert len(open_source(CsvSource(**source, quote="none"), (), ())) == 32
    path.write_text('label\ttext\npos\t" he said\nneg\t"well" no\n')
    with pytest.raises(DataError, match="expected after") as caught:
        open_source(CsvSource(**source), (), ())
    assert "quote: none" in caught.value.hint


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a mark"])
def test_a_line_of_names_among_the_rows_is_refused_and_passed_over_in_prediction(tmp_path, mark):
    path = tmp_path / "x.csv"
    path.write_text(f"text,label\ngood,a\n{mark}text,label\nbad,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="repeats the names of the columns") as caught:
        trained(path)
    assert caught.value.where == f"{path}:3"
    reading = Reading(str(path), Dialect(), KINDS, passes=True)
    with path.open(encoding="utf-8") as file:
        [chunk] = separated_chunks(file, reading)
    assert list(chunk.bad) == [1]
    # Where columns are numbered, a row of numbers may be like them.
    path.write_text("0,1\n0.5,1\n0,1\n")
    assert predicted(path, kinds={"0": "number", "1": "number"}).columns["0"] == ["0.5", "0"]
    # One cell alone may be a text like any other.
    path.write_text("text\ngood\ntext\n")
    assert predicted(path).columns["text"] == ["good", "text"]


def test_texts_in_utf_8_that_are_read_in_another_encoding_are_told(tmp_path):
    path, table = tmp_path / "x.csv", "text,label\ncafé,a\nbad,b\n"
    path.write_text(table, encoding="utf-8")
    texts, [note] = trained(path, encoding="latin-1")
    assert texts[0] == "cafÃ©"
    told = "1 of 2 texts of 'text' are valid UTF-8 and read as latin-1, such as row 1 of "
    assert note.startswith(f"{told}{path}; encoding: utf-8")
    assert note.endswith("as they are")
    more = "".join(f"é{n},a\n" for n in range(10))
    path.write_bytes((table + more).encode() + "naïf,a\n".encode("latin-1"))
    assert trained(path, encoding="latin-1")[1][0].endswith("; texts that are no UTF-8: 1")
    path.write_text(table, encoding="latin-1")
    assert trained(path, encoding="latin-1") == (["café", "bad"], ())


def test_signs_that_are_utf_8_by_chance_are_told_nothing_about(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n男,a\n女,b\n女,b\n", encoding="gbk")
    # Two bytes that are one other sign in UTF-8, in most of the cells.
    assert "女".encode("gbk").decode() != "女"
    assert trained(path, encoding="gbk") == (["男", "女", "女"], ())


def test_line_breaks_in_honest_cells_stay_and_one_doubtful_row_is_told(tmp_path):
    (tmp_path / "x.csv").write_text('text,label\n"a\nb, c, d",x\n"e\n\nf",y\n')
    assert trained(tmp_path / "x.csv") == (["a\nb, c, d", "e\n\nf"], trained(tmp_path / "x.csv")[1])
    assert not any("whole rows" in note for note in trained(tmp_path / "x.csv")[1])
    (tmp_path / "x.csv").write_text('text,label\n"a,\nb",x\nc,y\n')
    assert any("x.csv:2: 1 row is made of 2 lines" in n for n in trained(tmp_path / "x.csv")[1])


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ("?", 'missing: ["?"]'),
        ("NA", 'missing: ["NA"]'),
        ("1,200", "1200 or 1.2"),
        ("3,5", "3.5, not 3,5"),
        ("7 %", "percent sign"),
        (" 3", "blanks"),
        ("\x1b[31m", "missing"),
    ],
)
def test_a_cell_that_is_no_number_is_told_by_file_row_column_and_remedy(
    tmp_path, prepared, cell, remedy
):
    path = tmp_path / "x.csv"
    rows = [f'{n},"{cell if n == 3 else n}",{"ab"[n % 2]}' for n in range(9)]
    path.write_text("\n".join(["u,v,label", *rows]) + "\n")
    data = {"source": {"type": "csv", "path": str(path)}, "inputs": ["u", "v"]}
    for transforms in ([{"type": "stack"}], None):
        with pytest.raises(DataError) as caught:
            prepared(data | {"transforms": transforms})
        told = str(caught.value)
        assert f"column 'v' holds {cell!r} in row 4 of {path} where a number is needed" in told
        assert remedy in told
        assert "\x1b" not in told


def test_listed_cells_are_gaps_like_empty_ones(tmp_path, prepared):
    path = tmp_path / "x.csv"
    for cell, missing in (("", []), ("?", ["?"]), ("-9", [-9])):
        path.write_text(f"u,label\n1,a\n{cell},b\n")
        source = {"type": "csv", "path": str(path), "missing": missing}
        with pytest.raises(DataError, match=r"'u' has no number in row 2 of .*: its cell is empty"):
            prepared({"source": source, "inputs": ["u"]})


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_number_that_means_no_value_is_known_in_any_notation(tmp_path, prepared, form):
    numbers, path = [1.5, -999.0, 2.5], tmp_path / f"x.{form}"
    rows = [{"u": number, "label": label} for number, label in zip(numbers, "aba", strict=True)]
    if form == "csv":
        path.write_text("u,label\n1.5,a\n-999.0,b\n2.5,a\n")
    elif form == "json":
        path.write_text(json.dumps(rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    source = {"type": form, "path": str(path), "missing": ["-999"]}
    fill = {"type": "fill", "columns": ["u"], "with": 0}
    data = prepared({"source": source, "inputs": ["u"], "target": "label", "transforms": [fill]})
    assert data.train.fetch([0, 1, 2]).inputs["u"].tolist() == [1.5, 0, 2.5]


def test_the_line_is_named_where_the_row_does_not_tell_it(tmp_path, prepared):
    path = tmp_path / "x.csv"
    path.write_text('u,t,label\n1,"a\nb, c, d",x\n\n?,"e",y\n3,f,x\n')
    with pytest.raises(DataError, match=r"holds '\?' in row 2 of .*x\.csv \(line 5\)"):
        prepared({"source": {"type": "csv", "path": str(path)}, "inputs": ["u"]})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.wav", b"RIFF\0\0\0\0WAVEfmt ", r"sound \(WAV\)"),
        ("a.npz", b"PK\3\4\x14\0\0\0", r"zip archive \(\.npz"),
        ("a.csv", b"PK\3\4\x14\0\0\0", r"zip archive"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0", "a PNG image"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "an Office document"),
        ("a.csv.gz", b"\x1f\x8bnothing", "packed by gzip and damaged"),
        ("a.csv", b"text\nok\n\xe9\n", r"a\.csv:3: is not valid utf-8: byte 0xe9"),
        ("a.json", b'[{"text": "a"}, {"text": ]', r"a\.json:1: not JSON"),
        ("a.json", b'[{"text": "a"},\n 5]', r"a\.json:2: needs a JSON object, got int"),
        ("a.json", b'[{"text": "a"}', "expecting ',' or ']'"),
    ],
)
def test_a_file_that_is_no_table_and_no_text_is_told_by_what_it_is(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        predicted(tmp_path / name)


def test_files_of_a_folder_that_are_no_samples_are_counted_by_ending(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (tmp_path / "c.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    part = predicted(tmp_path)
    assert part.columns["text"] == ["one text"]
    assert "passed over: 2 .wav" in part.notes[0]


def test_plain_lines_are_samples_in_a_stream_and_one_text_in_a_file_which_is_told(tmp_path):
    content = codecs.BOM_UTF8 + b"film good\nfilm bad\n"
    (tmp_path / "a.txt").write_bytes(content)
    assert predicted("-", content).columns["text"] == ["film good", "film bad"]
    part = predicted(tmp_path / "a.txt")
    assert part.columns["text"] == ["film good\nfilm bad\n"]
    assert "one text of 2 lines" in part.notes[0]
    source = TextFolderSource(type="textfolder", path="")
    assert read_text(tmp_path / "a.txt", source, ()) == "film good\nfilm bad\n"


def test_a_message_never_lists_all_of_very_many_columns(tmp_path):
    (tmp_path / "x.csv").write_text(",".join(f"column_{n}" for n in range(9999)) + "\n")
    for read in (trained, predicted):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "x.csv")
        assert max(map(len, str(caught.value).splitlines())) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("text", ["Zoë läuft\n", "text\nZoë läuft\n"], ids=["lines", "table"])
def test_standard_input_is_utf_8_or_else_as_the_training_data_was(encoding, text):
    source = {"type": "csv", "path": "x.csv", "encoding": "latin-1"}
    config = DataConfig.model_validate({"source": source})
    stdin = io.TextIOWrapper(io.BytesIO(text.encode(encoding)), encoding="utf-8")
    (part,) = read_incoming("-", config, KINDS, stdin)
    assert list(part.columns["text"]) == ["Zoë läuft"]
