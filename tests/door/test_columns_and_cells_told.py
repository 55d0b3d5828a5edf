"""Truth values, commas, names and separators that other programs write are told, never guessed."""

import json

import pytest

from finetune.data.readers.any_form import refuse_other_names
from finetune.data.readers.chunks import Reading
from finetune.data.readers.documents import document_chunks, json_object
from finetune.data.readers.row_places import Places
from finetune.data.readers.separated import separator_hint
from finetune.data.sources.tabular import dialect_of
from finetune.data.table import settle
from finetune.errors import DataError

PLACES = Places.of("d.jsonl")


@pytest.mark.parametrize("odd", [True, False])
def test_a_truth_value_among_numbers_is_no_number(odd):
    with pytest.raises(DataError, match=f"holds {str(odd).lower()} in row 3 of d.jsonl") as error:
        settle("x", [1.5, 2, odd, 4.0], PLACES)
    assert "write 1 and 0" in str(error.value)


def test_a_column_of_truth_values_alone_is_read():
    assert settle("x", [True, False, True], PLACES).values.tolist() == [1, 0, 1]


def reading(name="d.jsonl", *wanted):
    return Reading(name, dialect_of(None), wanted or None)


def test_commas_behind_lines_of_json_are_told_with_both_forms(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"x": n}) + ",\n" for n in range(3)))
    with path.open() as file, pytest.raises(DataError, match="a comma follows") as error:
        list(document_chunks(file, reading()))
    assert "one object a line and no comma" in str(error.value)
    with pytest.raises(DataError, match="no comma behind it"):
        json_object('{"x": 1},\n', "-:2")


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("X,Y\n1,2\n", "there are: 'X', 'Y'", "did you mean 'X'?"),
        ("a,b\n1,2\n", "there are: 'a', 'b'", None),
        ("1,2\n3,4\n", "there are: '1', '2'", "should name the columns"),
        # As pandas numbers columns: the 1 stands in its place by accident.
        ("0.5,1\n3,4\n", "there are: '0.5', '1'", "should name the columns"),
    ],
)
def test_a_stream_with_other_names_is_told_which_it_has(tmp_path, text, told, hint):
    path = tmp_path / "stream"
    path.write_text(text)
    with path.open("rb") as file, pytest.raises(DataError) as error:
        refuse_other_names(file, reading("standard input", "x", "y"))
    assert f"no column 'x'; {told}" in str(error.value)
    assert hint is None or hint in str(error.value)


@pytest.mark.parametrize("text", ["good film\nbad film\n", "Text\n", '{"x": 1, "z": 2}\n'])
def test_texts_and_json_are_no_names_of_columns(tmp_path, text):
    path = tmp_path / "stream"
    path.write_text(text)
    with path.open("rb") as file:
        refuse_other_names(file, reading("standard input", "text"))
        assert file.tell() == 0


def test_a_text_column_of_another_case_is_told(tmp_path):
    path = tmp_path / "stream"
    path.write_text("Text\nfilm\n")
    with path.open("rb") as file, pytest.raises(DataError, match="did you mean 'Text'"):
        refuse_other_names(file, reading("standard input", "text"))


def test_numbers_from_zero_name_columns_and_other_numbers_do_not():
    assert separator_hint(["0", "1", "2"]) is None
    assert "write a line of names" in str(separator_hint(["5.1", "3.5", "setosa"]))


TASK = {"type": "multilabel"}


@pytest.mark.parametrize("mark", [";", "+", "/", "&", "\u3001", "\uff0c", "|"])
def test_labels_between_other_marks_are_told_with_the_separator(small_config, tmp_path, mark):
    from finetune.data.prepare import open_data

    rows = "".join(f"{n},{'a' if n % 2 else f'a{mark}b'}\n" for n in range(8))
    (tmp_path / "d.csv").write_text("x,y\n" + rows)
    source = {"type": "csv", "path": str(tmp_path / "d.csv")}
    config = small_config(data={"source": source, "inputs": ["x"], "target": "y"}, task=TASK)
    with pytest.raises(DataError) as error:
        open_data(config.data, config.task, seed=0, trust=())
    assert f"holds 'a{mark}b' in row 1" in str(error.value)
    assert f"separator: {json.dumps(mark)}" in str(error.value)


@pytest.mark.parametrize("cell", ["vitamin b", "a;b", "b", "x.b"])
def test_a_label_that_ends_in_b_is_not_taken_for_bytes(cell):
    text = f"holds {cell!r} in row 1 of 'a-long-name-of-a-table-of-many-letters.csv' beside 'b'"
    assert str(DataError(text)) == text


def test_long_bytes_still_become_one_word():
    assert str(DataError(f"got {b'x' * 90!r} for 'a'")) == "got bytes for 'a'"
    assert str(DataError(f"column 'b' holds {b'y' * 90!r}")) == "column 'b' holds bytes"
