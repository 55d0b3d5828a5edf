"""JSON that is not one object a line is read value by value: its size has no limit, a value has."""

import io
import json
import tracemalloc

import pytest

from finetune.data.readers import documents, json_text
from finetune.data.readers.chunks import Dialect, Reading
from finetune.data.readers.documents import document_chunks
from finetune.errors import DataError

ROWS = [{"n": n, "text": "é" * (n % 90), "more": {"deep": [n, [n]]}} for n in range(3000)]
FORMS = {
    "one line": json.dumps(ROWS),
    "pretty array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "pretty objects": "\n\n".join(json.dumps(row, indent=1) for row in ROWS),
    "objects side by side": "".join(json.dumps(row) for row in ROWS),
    "blanks before": "\n \n\t" + json.dumps(ROWS, indent=1) + "\n\n",
}


class Part(io.StringIO):
    """Hands out a few characters at a time, and counts how many."""

    given = 0

    def read(self, size=-1):
        part = super().read(min(size, 999) if size >= 0 else size)
        self.given += len(part)
        return part

    def readline(self, size=-1):
        line = super().readline(min(size, 999) if size >= 0 else size)
        self.given += len(line)
        return line


def rows_of(file):
    chunks = list(document_chunks(file, Reading("x.json", Dialect())))
    names = dict.fromkeys(name for chunk in chunks for name in chunk.columns)
    columns = {name: [v for chunk in chunks for v in chunk.columns[name]] for name in names}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_values_that_end_anywhere_in_what_is_read_are_whole(text):
    assert rows_of(Part(text)) == ROWS


@pytest.mark.parametrize("before", [0, 1, 998, 999, 1000, 5000])
@pytest.mark.parametrize("begins", ["[", "{\n}"])
def test_a_fault_is_told_by_the_line_of_its_value_wherever_reading_has_stopped(begins, before):
    many = '\n{"a":\n1}' * before
    text = begins + (many.replace("}", "},") if begins == "[" else many) + "\n\n" + '{"a"; 1}'
    with pytest.raises(DataError, match="not JSON") as caught:
        rows_of(Part(text))
    assert caught.value.where == f"x.json:{text.count(chr(10)) + 1}"


def test_no_more_is_kept_of_a_text_than_its_rows_take():
    text = "[\n" + ",".join(["{}" + " " * 5000] * 4000) + "]"  # 20 MB for rows that hold nothing
    file = io.StringIO(text)
    tracemalloc.start()
    rows_of(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


def test_a_fault_ends_the_reading_before_the_limit_and_not_at_the_end_of_the_file(monkeypatch):
    for module in (documents, json_text):
        monkeypatch.setattr(module, "MAX_JSON_BYTES", 20_000)
    file = Part('[{"a": ' + "[1], " * 100_000)
    with pytest.raises(DataError, match=r"x.json:1: holds no JSON value within"):
        rows_of(file)
    assert file.given < 100_000


def test_an_array_on_one_line_may_be_longer_than_a_line_of_json_lines(monkeypatch):
    for module in (documents, json_text):
        monkeypatch.setattr(module, "MAX_JSON_BYTES", 20_000)
    assert rows_of(io.StringIO(FORMS["one line"])) == ROWS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"a": 1},]', "x.json:1: not JSON"),
        ('[{"a": 1},', "its array does not end"),
        ('[{"a": 1}\n', "expecting ',' or ']'"),
        ('[{"a": 1}]\n\n7', "x.json:3: not JSON: something stands after its array"),
        ('[{"a": 1}, 7]', "needs a JSON object, got int"),
        ('[{"a": 1} {"a": 2}]', "expecting ',' or ']'"),
        ('{"a":\n1}\n{"a"', "x.json:3: not JSON"),
    ],
)
def test_what_is_no_array_of_objects_is_one_line_that_says_why(text, told):
    with pytest.raises(DataError) as caught:
        rows_of(Part(text))
    assert told in str(caught.value)
