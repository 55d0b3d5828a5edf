"""YAML is read by the rules of 1.2, within limits, and builds nothing but plain data."""

import math
import time

import pytest
import yaml

from finetune.config import reader
from finetune.config.reader import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_file, read_text
from finetune.errors import ConfigError, FinetuneError


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def parser(request, monkeypatch):
    """Run every test with both of PyYAML's parsers: a wheel without the C one is possible."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML without its C parser")
    monkeypatch.setattr(reader, "_LOADER", getattr(yaml, request.param))


def value_of(text):
    document = read_text(text, None)
    assert not document.problems
    return document.root.plain()


def fault(text):
    """The one problem of a text, whether or not reading went on after it."""
    try:
        (problem,) = read_text(text, None).problems
    except ConfigError as error:
        (problem,) = error.problems
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("017", 17),
        ("0o17", 15),
        ("0xFF", 255),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2001-12-14", "2001-12-14"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("=", "="),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("|\n 12", "12"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("9" * 2000, "9" * 2000),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text, value):
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number():
    assert math.isnan(value_of(".nan"))


def test_keys_are_text_as_written():
    text = "{1: a, no: b, null: c, true: d, 1.50: e}"
    assert value_of(text) == {"1": "a", "no": "b", "null": "c", "true": "d", "1.50": "e"}


def test_an_alias_stands_for_its_value_and_keeps_its_own_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x\n  deep: 1\nb:\n  c: *x\n", encoding="utf-8")
    root = read_file(path).root
    assert root.plain() == {"a": {"deep": 1}, "b": {"c": {"deep": 1}}}
    aliased = root.value["b"].value["c"]
    assert (aliased.line, aliased.value["deep"].line) == (4, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "a second key 'a'"),
        ("'1': 1\n1: 3", "a second key '1'"),
        ("!!python/object/apply:os.system [ls]", "got '!!python/object/apply:os.system'"),
        ("a: !!python/name:os.system", "tags are not allowed"),
        ("a: !env HOME", "got '!env'"),
        ("a: !!str 12", "got '!!str'"),
        ("a: !!binary aGVsbG8=", "got '!!binary'"),
        ("a: {<<: {b: 1}}", "merge keys are not allowed"),
        ("a: *x", "no anchor 'x'"),
        ("a: &x [*x]", "stands inside its own value"),
        ("{&x a: 1}", "tags and anchors on keys"),
        ("? [a]\n: 1", "a key must be plain text"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: [1, 2", "not YAML"),
        ("a: 'x", "not YAML"),
        ("a: b: c", "not YAML"),
        ("\ta: 1", "not YAML"),
        ("%YAML 9.9\n%YAML 9.9\n---\na: 1", "not YAML"),
        ("a: \x07", "does not allow: '\\x07'"),
        ("a: \ud800", "does not allow"),
        ('a: "\\0"', "a character that no text may contain"),
    ],
)
def test_what_is_not_read_is_a_problem_told_in_one_line(text, words):
    problem = fault(text)
    assert words in problem.message
    assert "\n" not in problem.message


def test_a_lone_surrogate_spelt_as_an_escape_is_refused():
    assert fault('a: "\\ud800"').message


def test_a_quoted_merge_key_is_a_key():
    assert value_of("{'<<': 1}") == {"<<": 1}


def test_nothing_is_ever_constructed(tmp_path):
    target = tmp_path / "made"
    document = read_text(f"!!python/object/apply:pathlib.Path.touch ['{target}']", None)
    assert document.problems
    assert not target.exists()


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_nesting_deeper_than_the_limit_is_refused_without_recursion(opening):
    problem = fault(opening * 5000)
    assert str(MAX_DEPTH) in problem.message or "not YAML" in problem.message
    assert len(str(problem)) < 300


def test_the_deepest_nesting_allowed_is_read():
    assert value_of("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert "nested deeper" in fault("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)).message


def test_aliases_cannot_add_up_to_more_depth_than_the_limit():
    lines = ["a0: &a0 [[[[[[[[[[1]]]]]]]]]]"]
    lines += [f"a{n}: &a{n} [[[[[[[[[[*a{n - 1}]]]]]]]]]]" for n in range(1, 50)]
    assert "nested deeper" in fault("\n".join(lines)).message


def test_an_alias_bomb_is_refused_within_a_second():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    start = time.process_time()
    problem = fault("\n".join(lines))
    assert time.process_time() - start < 1
    assert str(MAX_VALUES) in problem.message


def test_a_file_larger_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        read_file(path)


def test_an_endless_file_is_refused():
    with pytest.raises(FinetuneError, match="larger than"):
        read_file(reader.Path("/dev/zero"))


def test_bytes_that_are_not_utf_8_are_told_with_their_line(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8: byte 0xe9"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(path).root.plain() == {"a": 1}


def test_a_missing_file_and_a_folder_are_told_as_such(tmp_path):
    with pytest.raises(FinetuneError, match="no such file"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(FinetuneError, match="is a folder"):
        read_file(tmp_path)


def test_a_syntax_error_names_its_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1,\nc: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}:")
    assert caught.value.problems[0].origin.line in (3, 4)


@pytest.mark.parametrize(
    "text",
    ["a: *{}", "a: &{0} [*{0}]", "a: !{} 1", "? {0}\n: 1\n? {0}\n: 2", 'a: "{}\\0"'],
    ids=["alias", "anchor", "tag", "key", "text"],
)
def test_a_complaint_is_short_however_long_what_it_is_about(text):
    assert len(str(fault(text.format("x" * 10_000)))) < 400


def test_a_key_that_spans_lines_is_told_in_one():
    assert str(fault('{"a\\nb": !x 1}').origin) == r"-o a\nb"
