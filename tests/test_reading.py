"""JSON and safetensors of strangers are read within limits; paths stay in their folder."""

import io
import json
import os
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from finetune import reading
from finetune.errors import FinetuneError
from finetune.reading import (
    MAX_HEADER_BYTES,
    MAX_JSON_DEPTH,
    check_safetensors,
    first_outside,
    limited_lines,
    parse_json,
    read_json,
    read_json_object,
)


def test_json_is_read_as_it_is():
    value = {"a": [1, 2.5, None, True, 'a "[{" in a text', "\\"], "b": {"c": "ä"}}
    assert parse_json(json.dumps(value), "x") == value
    assert parse_json(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1"])
def test_json_nested_thousands_deep_is_one_line(text):
    with pytest.raises(FinetuneError) as caught:
        parse_json(text, "x.json:3")
    assert str(caught.value).startswith("x.json:3: ")
    assert "\n" not in str(caught.value)


def test_json_may_be_as_deep_as_the_limit_and_no_deeper():
    deep = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert parse_json(deep, "x")
    wide = f"[{', '.join(['[]'] * 1000)}]"
    assert parse_json(wide, "x")
    with pytest.raises(FinetuneError, match=f"deeper than {MAX_JSON_DEPTH} levels"):
        parse_json(f"[{deep}]", "x")


def test_each_kind_of_bracket_is_a_level_beside_any_other():
    mixed = '{"a": [1, {"]": ' * (MAX_JSON_DEPTH // 3) + "{}" + "}]}" * (MAX_JSON_DEPTH // 3)
    assert parse_json(mixed, "x")
    with pytest.raises(FinetuneError, match=f"deeper than {MAX_JSON_DEPTH} levels"):
        parse_json(f"[[], {mixed}]", "x")


def test_brackets_in_a_text_do_not_count_as_depth():
    assert parse_json(json.dumps(['["{\\' * 100]), "x")


@pytest.mark.parametrize("text", ["", "{", "nul", "[1,]", "'a'", b"\xff", "1" * 5000, "\ufeff1"])
def test_what_is_no_json_is_one_line(text):
    with pytest.raises(FinetuneError, match="not JSON") as caught:
        parse_json(text, "x.json")
    assert "\n" not in str(caught.value)


def test_json_larger_than_the_limit_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 1 << 20)
    (tmp_path / "x.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(FinetuneError, match="more than 1 MiB"):
        read_json(tmp_path / "x.json")
    lines = io.StringIO("{}\n" + "x" * (1 << 21))
    with pytest.raises(FinetuneError, match=r"in.jsonl:2: is longer than 1 MiB"):
        list(limited_lines(lines, "in.jsonl"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    for read in (read_json, check_safetensors):
        with pytest.raises(FinetuneError, match="is no regular file"):
            read(tmp_path / "x")


def test_a_missing_file_is_told(tmp_path):
    for read in (read_json, check_safetensors):
        with pytest.raises(FinetuneError, match="cannot be read: no such file"):
            read(tmp_path / "x")


def test_another_value_than_an_object_is_told(tmp_path):
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(FinetuneError, match="needs a JSON object, got list"):
        read_json_object(tmp_path / "x")


def test_a_whole_safetensors_file_passes(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    check_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("length", "body", "message"),
    [
        (100_000_000, b"", "has a header of 100000000 bytes"),
        (2**64 - 1, b"", "has a header of"),
        (MAX_HEADER_BYTES + 1, b"", "has a header of"),
        (10, b"{}", "ends inside its header, at byte 10"),
    ],
)
def test_a_header_that_is_too_long_is_refused_before_it_is_read(tmp_path, length, body, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + body)
    with pytest.raises(FinetuneError, match=message):
        check_safetensors(path)


def test_a_path_that_leaves_the_folder_is_found(tmp_path):
    home = tmp_path / "home"
    (home / "in").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (home / "in" / "file").write_text("x")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "linked").symlink_to(tmp_path)
    (home / "inner").symlink_to(home / "in" / "file")
    (home / "circle").symlink_to(home / "circle")
    good = ["in/file", "inner", "in/../in/file", "none", "no/ne", "in/..file"]
    assert first_outside([home / name for name in good], home) is None
    bad = [
        "../secret",
        "link",
        "linked/secret",
        "in/../../secret",
        "/etc/passwd",
        "a\0/b",
        "in/../..",
    ]
    for name in bad:
        assert first_outside([*(home / one for one in good), home / name], home) == len(good), name


def test_a_small_file_takes_no_more_memory_than_it_holds(tmp_path):
    path = tmp_path / "small.json"
    path.write_text("[1]", encoding="utf-8")
    tracemalloc.start()
    try:
        assert read_json(path) == [1]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
