"""Regular expressions of a config mean what Python's `re` makes of them, and end in time."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings, strategies as st

import finetune
from finetune.config.selectors import ByName
from finetune.errors import ConfigError, SelectorError
from finetune.freezing.select import select
from finetune.models.inventory import ParamInfo
from finetune.patterns import LIMIT_S, TimeLimit, faults_of_expression

ENDLESS = ["(a|aa)+b", "(?:a|b)*" * 100, "(?:a{1,1000}){1,1000}b", "(a)?" * 90 + "(?(90)b|c)"]


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:20])
def test_an_expression_that_tries_without_end_is_stopped(text):
    began = time.thread_time()
    with pytest.raises(SelectorError, match=r"too slow: 1 s are over at 'aaa.*") as error:
        TimeLimit().full_matches(text, ["a" * 300 + "!"], key=("freeze", 0))
    assert error.value.key == ("freeze", 0)
    assert time.thread_time() - began < 2 * LIMIT_S


def test_the_expressions_of_a_list_share_one_limit():
    limit, began = TimeLimit(), time.thread_time()
    for _ in range(20):
        with pytest.raises(SelectorError, match="too slow"):
            limit.full_matches("(a|aa)+b", ["a" * 300 + "!"])
    assert time.thread_time() - began < 2 * LIMIT_S


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("(?:a?){1000000000}b", "repeats more than 10000 times"),
        ("(?:(?:(?:a{99}){99}){99}){99}", "repeats more than 10000 times"),
        ("[{]a{1000000}", "repeats more than 10000 times"),
        ("(?#[)a{1000000}(?#])", "has a comment"),
        ("(?x)a #[\n{1000000} #]", "has a comment"),
        ("(?i-x:a)", "has a comment"),
        ("a{e<=1}", "has a brace"),
        ("a{3", "has a brace"),
        ("a{}", "has a brace"),
        ("[[:alpha:]]", "inside a set"),
        ("[a||b]", "inside a set"),
        ("[a&&[^b]]", "inside a set"),
        ("a" * 1001, "longer than 1000 characters"),
        ("a{99999999999999}", "repeats more than"),
        ("a{2,99999999999999}", "not a regular expression: the repetition number is too large"),
        ("[[", "has a set without an end"),
        ("a[^]", "has a set without an end"),
        ("(?P<a>", "not a regular expression"),
        (r"\p{L}", "has a brace"),
        (r"\X", "not a regular expression: bad escape"),
        ("(?e)a", "not a regular expression: unknown extension"),
        ("(?<=a+)b", "not a regular expression: look-behind"),
    ],
)
def test_an_expression_that_costs_too_much_or_means_two_things_is_refused(text, fault):
    began = time.thread_time()
    assert fault in " ".join(faults_of_expression(text))
    assert time.thread_time() - began < 0.5


_PIECES = [
    *(
        "a",
        "b",
        ".",
        r"\d",
        r"\w",
        r"\.",
        r"\b",
        "[ab]",
        "[^a]",
        "[]a]",
        "[^]b]",
        r"[\]a-c]",
        "[a-]",
    ),
    *("(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "^", "$", r"\Z", r"\1", "{1,2}", "{,3}", "{2}", r"\{"),
    *(
        "*",
        "+",
        "?",
        "*?",
        "+?",
        "++",
        "*+",
        "|",
        "(",
        ")",
        "(?:",
        "(?>",
        "(?P<n>",
        "(?P=n)",
        "(?i)",
    ),
    *("(?i:", "(?s)", "(?(1)a|b)", "1", "\n", "{0}"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), max_size=8).map("".join),
    st.text("abAB.1_-{\n", max_size=6),
)
def test_what_is_accepted_means_the_same_to_re(text, name):
    assume(not list(faults_of_expression(text)))
    assert (name in TimeLimit().full_matches(text, [name])) == bool(re.fullmatch(text, name))


@given(st.text("()[]{}?*+|\\^$.ab10,-:#xi<=!&~P\n", max_size=30))
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("error")
def test_any_text_as_expression_is_refused_in_words_or_runs(text):
    if not list(faults_of_expression(text)):
        TimeLimit().full_matches(text, ["a.b", "ab10" * 9])


@pytest.fixture
def config(tmp_path):
    def write(freeze: str, layer: str = "a" * 40) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(
            "model:\n  layers:\n"
            f"    - {{name: {layer}, type: Linear, out_features: 10}}\n"
            "data: {source: {type: random, samples: 8}}\n"
            "task: {type: regression}\n"
            "optimizer: {type: SGD, lr: 0.1}\n"
            "train: {steps: 2}\n"
            f"freeze:\n  - {freeze}\n"
        )
        return path

    return write


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("{{regex: '{}'}}", "(a|aa)+b"),
        ("{{regex: '{}'}}", "((a|aa)+|x)+[!?]"),
        ("{{not: {{regex: '{}'}}}}", "(.|aa)*[!?]"),
        ("{{not: {{not: {{regex: '{}'}}}}}}", "(a|aa)+b"),
    ],
)
def test_a_slow_selector_is_told_with_its_line_by_plan(config, tmp_path, text, form):
    path = config(form.format(text), "a" * 120)
    with pytest.raises(SelectorError, match="too slow") as error:
        finetune.build_trainer(finetune.load_config(path), run_dir=tmp_path / "run")
    assert str(error.value).startswith(f"{path}:9: freeze.0: regular expression {text!r}")


def test_validate_refuses_an_expression_with_its_line(config):
    path = config("{regex: '(a?){1000000000}'}")
    with pytest.raises(ConfigError, match=r":9: freeze.0.regex: repeats more than 10000 times"):
        finetune.load_config(path)


@pytest.mark.parametrize("glob", ["*" * 200 + "c", "*a" * 200, "*?" * 300 + "!", "[" * 999])
def test_a_glob_of_many_stars_takes_no_time_over_ten_thousand_names(glob):
    info = ParamInfo("a", (1,), "float32", 4, frozenset(), (), None, "", (), True)
    inventory = [replace(info, name="a" * 100 + f".{number}") for number in range(10_000)]
    began = time.thread_time()
    with pytest.raises(SelectorError, match="takes no parameter"):
        select([ByName(name=glob)], inventory)
    assert time.thread_time() - began < 5
