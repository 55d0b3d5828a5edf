"""A secret is found however a message spells it; a short one makes no nonsense of a message."""

import html
import io
import json
import os
import unicodedata
from pathlib import Path, PurePath
from urllib.parse import quote, quote_plus

import pytest

from finetune.config.messages import shown
from finetune.errors import ConfigError, FinetuneError, Origin, Problem
from finetune.redaction import _RedactedStream, causes_withheld, redacted, remember

WORDS = "${env:TOK}"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("S3cr3tV4lue", "no such file 'data/S3cr3tV4lue/x'"),
        ("S3cr3tV4lue", "the hub has no s3cr3tv4lue, nor S3CR3TV4LUE"),
        ("./private/keys/", str(PurePath("./private/keys/"))),
        ("private//keys/./a", "cannot read 'private/keys/a'"),
        ("private/other/../keys", os.path.normpath("private/other/../keys")),
        ("../private/keys", str(Path.cwd().parent / "private/keys")),
        ("~/private/keys", str(Path("~/private/keys").expanduser())),
        ("org/private-set", "models--org--private-set"),
        ("pass word&co=1", "https://host/?key=" + quote_plus("pass word&co=1")),
        ("pass/word co", "https://host/" + quote("pass/word co", safe="")),
        ("it's a \"secret\"", repr("it's a \"secret\"")),
        ("it's a \"secret\"", json.dumps("it's a \"secret\"")),
        ("<secret> & more", html.escape("<secret> & more")),
        ("tab\tand\\slash", repr({"a": repr("tab\tand\\slash")})),
        ("geheim\u00f6\u00df", json.dumps("geheim\u00f6\u00df")),
        ("geheim\u00f6\u00df", "GEHEIM\u00d6\u00df"),
        ("geheim\u00f6\u00df", unicodedata.normalize("NFD", "geheim\u00f6\u00df")),
        ("first line\nsecond line", "an error of one line: first line"),
        ("  S3cr3tV4lue\n", "token 'S3cr3tV4lue' is refused"),
    ],
)  # fmt: skip
def test_a_value_is_found_however_it_is_spelt(value, told):
    remember(value, WORDS)
    out = redacted(told)
    assert WORDS in out
    for form in (value, value.strip(), repr(value)[1:-1], *value.splitlines()):
        assert form.strip().casefold() not in out.casefold()


def test_a_link_is_found_by_what_it_points_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    remember("link/", WORDS)
    assert redacted(f"cannot read {str(elsewhere)!r}") == f"cannot read {WORDS!r}"


@pytest.mark.parametrize("value", ["1", "a", "lr", "train"])
def test_a_short_value_is_replaced_only_where_it_stands_alone_in_quotes(value):
    remember(value, WORDS)
    told = f"train/loss 1.0 at a step: needs lr, got {value!r}"
    assert redacted(told) == f"train/loss 1.0 at a step: needs lr, got {WORDS!r}"


def test_the_folder_that_a_process_is_in_is_not_replaced_for_a_dot():
    remember(".", WORDS)
    remember("./", WORDS)
    told = f"no such file {Path.cwd()}/x.csv: done."
    assert redacted(told) == told


def test_a_value_that_is_its_variable_s_name_is_replaced_once():
    remember("dataset", "${env:DATASET}")
    once = redacted("no such file 'dataset/x'")
    assert once == redacted(once) == "no such file '${env:DATASET}/x'"


def test_the_longest_of_two_secrets_is_replaced():
    remember("hunter2", "${env:A}")
    remember("hunter2-of-the-hub", "${env:B}")
    assert redacted("got hunter2-of-the-hub and hunter2") == "got ${env:B} and ${env:A}"


def test_a_value_is_replaced_before_a_message_is_cut():
    remember("S3cr3tV4lue", WORDS)
    assert "S3cr" not in shown("x" * 66 + "S3cr3tV4lue" + "y" * 20)
    assert "S3cr" not in shown(["x" * 60, "S3cr3tV4lue" + "y" * 20])


def test_an_error_holds_no_secret_in_any_of_its_texts():
    remember("S3cr3tV4lue", WORDS)
    error = FinetuneError("no S3cr3tV4lue", hint="is it S3cr3tV4lue?", where="S3cr3tV4lue.csv:3")
    texts = [str(error), repr(error), error.message, error.hint, error.where, *error.args]
    origin = Origin(PurePath("S3cr3tV4lue.yaml"), 3, "data")
    several = ConfigError([Problem(origin, "got 'S3cr3tV4lue'", "not S3cr3tV4lue")])
    problem = several.problems[0]
    texts += [str(several), repr(several), str(origin), str(problem), problem.message, problem.hint]
    assert not any("S3cr3tV4lue" in text for text in texts)


def read(name):
    try:
        Path(name).read_bytes()
    except OSError as error:
        raise FinetuneError("cannot be read") from error


def test_a_cause_that_tells_a_secret_is_not_chained():
    remember("S3cr3tV4lue", WORDS)
    with pytest.raises(FinetuneError) as caught, causes_withheld():
        read("S3cr3tV4lue.csv")
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_cause_that_tells_none_is_kept():
    remember("S3cr3tV4lue", WORDS)
    with pytest.raises(FinetuneError) as caught, causes_withheld():
        read("missing.csv")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_stream_is_redacted_and_otherwise_as_it_was():
    remember("S3cr3tV4lue", WORDS)
    beneath = io.StringIO()
    stream = _RedactedStream(beneath)
    print("loading S3cr3tV4lue", 3, file=stream)
    stream.writelines(["S3cr3tV4lue\n", "end\n"])
    assert beneath.getvalue() == f"loading {WORDS} 3\n{WORDS}\nend\n"
    assert not stream.isatty()
