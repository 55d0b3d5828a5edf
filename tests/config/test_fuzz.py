"""Whatever is in a config: it loads, or what is wrong is told with its place. Nothing else flies.

Configs are drawn from the schema that editors get, and made from the shipped ones by changing their
text, their bytes and their values. A few hundred are tried in every run of the tests, 3,500 in the
slow ones, 22,000 with `FINETUNE_ALL_EXAMPLES=1`.
"""

import math
import os
import shutil
import string
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from finetune.config.dumping import dump_config
from finetune.config.loader import load_config
from finetune.config.schema import schema
from finetune.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TEXTS = [path.read_text(encoding="utf-8") for path in SHIPPED]

COMMON = settings(
    derandomize=True,
    deadline=10_000,  # milliseconds: a config that takes longer is a hang
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FEW = settings(COMMON, max_examples=150)
# The same examples are drawn at every run, so that all of them are tried on demand only.
ALL = "FINETUNE_ALL_EXAMPLES" in os.environ
MANY = settings(COMMON, max_examples=10_000 if ALL else 1_500)
SOME = settings(COMMON, max_examples=2_000 if ALL else 500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the shipped configs, so that what extends them finds them."""
    folder = tmp_path_factory.mktemp("fuzz")
    for path in SHIPPED:
        shutil.copy(path, folder)
    return folder


def loads_or_tells(path, overrides=()):
    """Load a config, or see that everything wrong with it has a place; return the config."""
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        problems = error.problems
        assert_told(problems, with_overrides=bool(overrides))
        return None
    saved = dump_config(config)
    again = path.with_name("again.yaml")
    again.write_text(saved, encoding="utf-8")
    assert dump_config(load_config(again)) == saved
    return config


def assert_told(problems, *, with_overrides):
    """Every problem is one line that begins with its place, and at most one hint."""
    assert problems
    for problem in problems:
        line, *hint = str(problem).split("\n")
        assert len(hint) <= 1
        assert len(line) <= 500
        origin = problem.origin
        if origin.file is None:
            assert with_overrides
            assert line.startswith("-o ")
        else:
            assert origin.line >= 1
            assert line.startswith(f"{origin.file}:{origin.line}: ")


# from the schema

WORDS = st.sampled_from(
    [
        "", "x", "a.b", "classes", "Linear", "import", "my_pkg:make", "validation/loss", "no",
        "1e-4", "~", "../x", "package:x/y", "!head", "*", "head[0:2]", "-2:", "${env:HOME}",
        "${env:}", "***", "\u2028", "é", "a" * 300,
    ]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 10, 0.5, 1e-4, -0.0, 1e308, 10**30, -(10**30), math.inf, -math.inf, math.nan]
)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
JUNK = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(WORDS, LEAVES, max_size=3)
ROOT = schema()


@cache
def of_ref(ref):
    """Return the strategy of one node of the schema. Nodes may hold themselves."""
    rule = ROOT
    for step in ref.removeprefix("#/").split("/"):
        rule = rule[step]
    return st.deferred(lambda: of_rule(rule))


def of_rule(rule):
    """Return a strategy for values that fit a rule of the schema, or nearly do."""
    if "$ref" in rule:
        return of_ref(rule["$ref"])
    if "const" in rule:
        return st.just(rule["const"])
    if "enum" in rule:
        return st.sampled_from(rule["enum"])
    for word in ("anyOf", "oneOf"):
        if word in rule and "properties" not in rule:
            return st.one_of([of_rule(one) for one in rule[word]])
    kinds = rule.get("type", ["null", "boolean", "number", "string"])
    return st.one_of(
        [of_kind(kind, rule) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    )


def of_kind(kind, rule):
    match kind:
        case "object":
            return an_object(rule)
        case "array":
            least = rule.get("minItems", 0)
            return st.lists(of_rule(rule.get("items", {})), min_size=least, max_size=least + 2)
        case "string" if "pattern" in rule:
            return st.from_regex(rule["pattern"])
        case "string":
            return WORDS
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    least, most = (rule.get(word) for word in ("minimum", "maximum"))
    least = rule.get("exclusiveMinimum", least)
    if kind == "integer":
        return st.integers(least, most) | st.integers(1, 5)
    return st.floats(least, most, allow_nan=False) | st.sampled_from([0.1, 0.5, 1.0])


@st.composite
def an_object(draw, rule):
    """Draw a mapping with all that is required, some of the rest, and now and then a mistake."""
    known, required = rule.get("properties", {}), rule.get("required", [])
    others = sorted(known.keys() - set(required))
    wanted = [*required]
    if others:
        wanted += draw(st.lists(st.sampled_from(others), max_size=3, unique=True))
    value = {key: draw(of_rule(known[key])) for key in wanted}
    free = rule.get("additionalProperties", True)
    if free is not False and not known:
        values = of_rule(free) if isinstance(free, dict) else JUNK
        value |= draw(st.dictionaries(WORDS, values, max_size=2))
    if value and draw(st.integers(0, 39)) == 23:
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 2)):
            case 0:
                value[key] = draw(JUNK)
            case 1:
                del value[key]
            case 2:
                value[f"{key}s"] = value.pop(key)
    return value


@cache
def documents():
    """Return a strategy for whole configs, most of them free of contradictions."""
    drawn = an_object({**ROOT, "required": ROOT["anyOf"][0]["required"]})
    return drawn | drawn.map(mended) | drawn.map(mended)


def mended(document):
    """Settle what the schema cannot say: one of two keys, where neither or both were drawn."""
    document.pop("extends", None)
    for length in (document.get("train"), *every(document.get("train"))):
        if isinstance(length, dict) and {"epochs", "steps"} & length.keys():
            length.pop("steps", None)
            length["epochs"] = 2
    data, train, optimizer = (document.get(key) for key in ("data", "train", "optimizer"))
    if isinstance(train, dict):
        train["epochs"] = 1
    if isinstance(data, dict):
        for part in ("train", "validation", "test", "split"):
            data.pop(part, None)
        data.setdefault("source", {"type": "random"})
    if isinstance(optimizer, dict):
        optimizer |= {"lr": 0.1}
        optimizer.pop("freeze_below", None)
    return document


def every(value):
    """Yield all that stands in a mapping, at any depth."""
    for item in value.values() if isinstance(value, dict) else ():
        yield item
        yield from every(item)


def try_document(folder, document):
    path = folder / "drawn.yaml"
    text = yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return loads_or_tells(path)


@pytest.mark.slow
@FEW
@given(document=documents())
def test_a_config_drawn_from_the_schema_loads_or_is_told_to_be_wrong(folder, document):
    try_document(folder, document)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(document=documents())
def test_many_configs_drawn_from_the_schema(folder, document):
    try_document(folder, document)


# by mutation of the shipped ones

PIECES = [
    "&a ", "*a", "&a [*a]", "!!python/object/apply:os.system [ls]", "!!str ", "!x ", "<<: *a", "? ",
    "---\n", "...\n", "%YAML 1.1\n", "[", "]", "{", "}", "'", '"', "|\n", ">\n", "#", ":", ": ",
    "- ", ",", "\t", "\n", "\r", "\0", "\x07", "\x85", "\u2028", "\ufeff", "\ud800", "~", "null",
    "1e999", "9" * 400, "0x" + "f" * 400, ".nan", "-.inf", "${env:HOME}", "$${env:X}",
    "${env:NOT_SET_AT_ALL}",
    "extends: digits.yaml\n", "extends: fuzzed.yaml\n", "extends: [a, 1]\n", "***", "a" * 2000,
    "[" * 200, "{a: " * 200, "seed: 1\n", "seed: 2\n", "type: import\n", "type: ", "name: ", "{}",
    "[]", "true", "!!binary ", "*", "&", "!", "%", "@", "`",
]  # fmt: skip
ANY_TEXT = st.text(alphabet=string.printable, max_size=8)


@st.composite
def mutated(draw):
    """Draw a shipped config in which lines, words and letters were changed."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 5))):
        text = draw(edited_letters(text) | edited_lines(text))
    return text


@st.composite
def edited_letters(draw, text):
    """Draw the text with something put in, perhaps in place of a few letters."""
    place = draw(st.integers(0, len(text)))
    end = place + draw(st.integers(0, 12))
    return text[:place] + draw(st.sampled_from(PIECES) | ANY_TEXT) + text[end:]


@st.composite
def edited_lines(draw, text):
    """Draw the text with one line dropped, doubled, moved in or out, emptied, or one more."""
    lines = text.splitlines(keepends=True) or [""]
    place = draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    head, colon, _ = line.partition(":")
    others = draw(st.sampled_from(TEXTS)).splitlines(keepends=True)
    forms = [
        [],
        [line, line],
        [draw(st.sampled_from(["", "  ", "    ", "- ", "\t"])) + line.lstrip()],
        [line, draw(st.sampled_from(others))],
        [f"{head}{colon} {draw(st.sampled_from(PIECES))}\n"],
    ]
    return "".join([*lines[:place], *draw(st.sampled_from(forms)), *lines[place + 1 :]])


@st.composite
def mangled(draw):
    """Draw a shipped config in which values were swapped, dropped, renamed or replaced."""
    document = yaml.safe_load(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 4))):
        here, step = draw(a_place(document))
        match draw(st.integers(0, 3)):
            case 0:
                here[step] = draw(JUNK)
            case 1:
                other, there = draw(a_place(yaml.safe_load(draw(st.sampled_from(TEXTS)))))
                here[step] = other[there]
            case 2:
                del here[step]
            case 3 if isinstance(here, list):
                here.insert(step, draw(JUNK))
            case 3:
                here[draw(WORDS)] = here.pop(step)
        if not document:
            break
    return yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)


@st.composite
def a_place(draw, document):
    """Draw a mapping or list of a document, and one of its keys or positions."""
    here = document
    while True:
        steps = sorted(here, key=str) if isinstance(here, dict) else range(len(here))
        step = draw(st.sampled_from(steps))
        below = here[step]
        if not isinstance(below, dict | list) or not below or draw(st.booleans()):
            return here, step
        here = below


@st.composite
def flipped(draw):
    """Draw the bytes of a shipped config, some of them changed."""
    raw = bytearray(draw(st.sampled_from(TEXTS)).encode())
    for _ in range(draw(st.integers(1, 4))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


MUTATED = mutated() | mangled() | flipped()


def try_text(folder, text):
    path = folder / "fuzzed.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return loads_or_tells(path)


@FEW
@given(text=MUTATED)
def test_a_mutated_config_loads_or_is_told_to_be_wrong(folder, text):
    try_text(folder, text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(text=MUTATED)
def test_many_mutated_configs(folder, text):
    try_text(folder, text)


# by overrides

KEYS = st.lists(
    st.sampled_from(
        [*ROOT["properties"], "0", "1", "-1", "01", "x", "type", "name", "layers", "args", "epochs"]
    ),
    min_size=1,
    max_size=4,
).map(".".join)
VALUES = st.sampled_from(PIECES) | ANY_TEXT | WORDS
OVERRIDES = st.lists(
    st.builds("{}={}".format, KEYS | ANY_TEXT, VALUES) | ANY_TEXT, min_size=1, max_size=3
)


@FEW
@given(path=st.sampled_from(SHIPPED), overrides=OVERRIDES)
def test_any_override_is_taken_or_told_to_be_wrong(folder, path, overrides):
    loads_or_tells(folder / path.name, overrides)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@SOME
@given(path=st.sampled_from(SHIPPED), overrides=OVERRIDES)
def test_many_overrides(folder, path, overrides):
    loads_or_tells(folder / path.name, overrides)


def test_the_drawn_configs_are_not_all_wrong(folder):
    """Otherwise little more than the first complaint would be tried."""
    outcomes = []

    @settings(COMMON, max_examples=200)
    @given(document=documents(), text=MUTATED)
    def collect(document, text):
        outcomes.append((try_document(folder, document), try_text(folder, text)))

    collect()
    drawn, changed = (sum(one is not None for one in some) for some in zip(*outcomes, strict=True))
    assert drawn > 2
    assert changed > 5
