"""What a table holds twice, or not at all, is refused or told: nothing is lost unseen."""

import io
import json

import pytest

from finetune.config.data import DataConfig
from finetune.data.incoming.incoming_places import read_incoming
from finetune.data.readers.chunks import Dialect, Reading
from finetune.data.readers.separated import separated_chunks
from finetune.data.sources.tabular import FORM_OF, dialect_of, read_tables
from finetune.errors import DataError
from finetune.reading import parse_json

TWICE = '{"text": "a", "label": "x", "label": "y"}'
SOURCE = DataConfig.model_validate({"source": {"type": "csv", "path": "t.csv"}}).source


def read(path):
    return read_tables([path], dialect_of(SOURCE), FORM_OF["csv"], None)


@pytest.mark.parametrize(("name", "content", "line"), [
    ("t.jsonl", '{"text": "b", "label": "z"}\n' + TWICE, 2),
    ("t.json", f"[\n{TWICE}\n]", 2),
    ("pretty.json", TWICE.replace(",", ",\n"), 1),
    ("deep.jsonl", '{"text": {"a": 1, "a": 2}}', 1),
], ids=["lines", "an array", "several lines", "below"])  # fmt: skip
def test_an_object_with_a_key_twice_is_refused_with_its_line(tmp_path, name, content, line):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=r"has the key '(label|a)' twice") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_so_it_is_on_standard_input():
    config = DataConfig.model_validate({"source": {"type": "csv", "path": "t.csv"}})
    with pytest.raises(DataError, match="has the key 'label' twice"):
        read_incoming("-", config, {"text": "text"}, io.StringIO(TWICE + "\n"))


def test_documents_of_others_are_read_as_ever():
    assert parse_json('{"a": 1, "a": 2}', "config.json") == json.loads('{"a": 1, "a": 2}')


def notes_of(text):
    reading = Reading("t.csv", Dialect(separator=","))
    rows = sum(chunk.count for chunk in separated_chunks(io.StringIO(text, newline=""), reading))
    return rows, reading.notes


@pytest.mark.parametrize(("text", "rows", "told"), [
    ("a,b\n1,2\n\n3,4\n", 2, "t.csv:3: 1 blank line is passed over"),
    ("\n\na,b\n1,2\n\n\n\n3,4\n\n", 2, "t.csv:1: 5 blank lines are passed over"),
    ("a\nx\n\ny\n", 2, "t.csv:3: 1 blank line is passed over"),
    ("a,b\r\n1,2\r\n\r\n3,4\r\n", 2, "t.csv:3: 1 blank line is passed over"),
], ids=["between rows", "at the beginning too", "one column", "of Windows"])  # fmt: skip
def test_blank_lines_before_a_row_are_counted(text, rows, told):
    found, [note] = notes_of(text)
    assert found == rows
    assert note.startswith(told)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n1,2\n\n\n", 'a,b\n"x\n\ny",2\n'])
def test_blank_lines_at_the_end_and_in_cells_are_none(text):
    assert notes_of(text) == (1, [])
