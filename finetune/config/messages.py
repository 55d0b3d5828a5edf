"""Turn pydantic's errors about a config into plain messages with hints."""

import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from finetune.config.hints import (
    EXAMPLES,
    MISSING_KEYS,
    other_value,
    remark_on,
    value_here,
    word_here,
)
from finetune.config.other_words import NEW_HEAD, REMARKS
from finetune.errors import Key, did_you_mean
from finetune.redaction import redacted

UNKNOWN_KEY = "unknown key"
KNOWN_HERE = "known here: "
"""Begins the hint for an unknown key that resembles no known one."""


class Fault(NamedTuple):
    """One fault of a node.

    Args:
        key: Position below the node; may contain tags that pydantic adds for unions.
        message: What is wrong.
        hint: The remedy.
        absent: Whether the last part of `key` is missing in the file.
    """

    key: Key
    message: str
    hint: str | None = None
    absent: bool = False


# pydantic speaks of "valid integers" and "instances"; these are words for those who write YAML.
_NEEDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_SHARES = (("validation",), ("test",), ("fraction",))
"""Last keys of numbers below 1 that are a share of all. Others, such as a decay, are none."""
_BOUNDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs at least {min_length} of them",
    "too_long": "takes at most {max_length} of them",
    "string_too_short": "needs at least {min_length} character(s)",
    "string_too_long": "takes at most {max_length} character(s)",
    "string_pattern_mismatch": "does not fit the pattern {pattern}",
}


def explain(details: ErrorDetails, fields: Mapping[str, FieldInfo]) -> Fault:
    """Return the fault that an error of pydantic reports.

    Args:
        details: One of `ValidationError.errors()`.
        fields: The fields of the node that was validated.
    """
    kind, key, given = details["type"], details["loc"], details["input"]
    context = details.get("ctx", {})
    match kind:
        case "finetune":
            return Fault(key, context["message"], context["hint"], context["absent"])
        case "missing":
            hint = MISSING_KEYS.get(str(key[-1]))
            return Fault(key, "missing, and it has no default", hint, absent=True)
        case "extra_forbidden":
            return Fault(key, UNKNOWN_KEY, _nearest_field(str(key[-1]), fields))
        case "union_tag_invalid" | "union_tag_not_found":
            return _wrong_type(key, given, fields, context["discriminator"].strip("'"))
        case "literal_error":
            return _wrong_word(key, given, context["expected"])
        # Raised by a validator of ours, in words that need no change.
        case "value_error":
            return Fault(key, str(context["error"]))
    hint = _quoting(kind, given) or _of_share(key, details) or _form(kind, key, given, fields)
    return Fault(key, f"{_wish(details)}, got {shown(given)}", hint)


def is_echo(details: ErrorDetails, unknown: Collection[str]) -> bool:
    """Tell whether an error only follows from another one.

    A list is too short because its entries are invalid, or a key is missing because it is
    misspelt, as one of the `unknown` ones.
    """
    given = details["input"]
    if details["type"] == "missing":
        return is_meant(str(details["loc"][-1]), unknown)
    is_short = details["type"] == "too_short" and isinstance(given, tuple | list)
    return is_short and len(given) >= details["ctx"]["min_length"]


def shown(value: Any) -> str:
    """Return a value as the config would write it, cut to 80 characters and redacted."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case tuple() | list():
            # Cut here already: the text of a list of a million entries would be built to be thrown
            # away.
            text = f"[{', '.join(shown(item) for item in value[:20])}]"
        case Mapping():
            entries = (f"{key}: {shown(item)}" for key, item in list(value.items())[:20])
            text = f"{{{', '.join(entries)}}}"
        case _:
            # redacted before it is cut: half of a secret would not be recognised
            text = redacted(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_path(path: Path) -> str:
    """Return a path as the config would write it, redacted; a long one is cut at its beginning."""
    text = redacted(repr(str(path)))
    return text if len(text) <= 80 else f"{text[0]}...{text[-76:]}"


def is_meant(missing: str, unknown: Collection[str]) -> bool:
    """Tell whether one of the `unknown` keys is the `missing` one, misspelt or in other words."""
    return any(word_here(key, [missing]) or did_you_mean(key, [missing]) for key in unknown)


def _wish(details: ErrorDetails) -> str:
    """Return what the value should have been, as a part of the message."""
    kind, message = details["type"], details["msg"]
    if kind in _NEEDS:
        return f"needs {_NEEDS[kind]}"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**details["ctx"])
    return f"{message[:1].lower()}{message[1:]}"


def _nearest_field(given: str, fields: Mapping[str, FieldInfo]) -> str | None:
    """Return a hint for an unknown key: the nearest known one, or a list of all."""
    known = [field.alias or name for name, field in fields.items()]
    word = word_here(given, known)
    # In a split: people of other tools give all shares.
    if given in ("train", "training") and "folds" in known:
        return "leave it out: what no other part takes is trained on"
    # Of a whole network, whose own head has as many outputs as `output: logits` gives it.
    if {"output", "pretrained"} <= fields.keys() and (
        given == "out_features" or remark_on(given) == REMARKS["num_classes"]
    ):
        return NEW_HEAD
    near = f"did you mean {word!r}?" if word is not None else remark_on(given)
    near = near or did_you_mean(given, known)
    return near or f"{KNOWN_HERE}{', '.join(known)}"


def _wrong_type(key: Key, given: Any, fields: Mapping[str, FieldInfo], sort: str) -> Fault:
    """Return the fault of a node whose `type`, or other key `sort`, is missing or unknown."""
    if not isinstance(given, Mapping):
        hint = _form("model_type", key, given, fields)
        return Fault(key, f"needs a mapping, got {shown(given)}", hint)
    known = list(_types(fields[str(key[0])].annotation, sort))
    listing = ", ".join(map(repr, known))
    if sort not in given:
        return Fault((*key, sort), "missing, and it has no default", f"one of {listing}", True)
    word = given[sort]
    hint = did_you_mean(word, known) if isinstance(word, str) else None
    hint = value_here(word, known) or hint
    return Fault((*key, sort), f"no {sort} {shown(word)}; known: {listing}", hint)


def _types(annotation: Any, sort: str) -> Iterator[str]:
    """Yield the words that the key `sort` may have in the nodes of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if sort in annotation.model_fields:
            yield from typing.get_args(annotation.model_fields[sort].annotation)
        return
    for part in typing.get_args(annotation):
        yield from _types(part, sort)


def _wrong_word(key: Key, given: Any, expected: str) -> Fault:
    """Return the fault of a value that is none of the words pydantic lists in `expected`."""
    words = expected.replace(" or ", ", ").split(", ")
    known = [word.strip("'") for word in words]
    meant = _word_in(given)
    hint = did_you_mean(meant, known) if meant is not None else None
    hint = value_here(meant, known) or hint
    if meant in known:
        hint = f"the word alone: {meant}"
    if hint is None and "metrics" in key:
        examples = (f"{{type: {example}}}" for word, example in _METRICS.items() if word in known)
        hint = next((f"any class of torchmetrics by its name: {one}" for one in examples), None)
    wish = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return Fault(key, f"needs {wish}, got {shown(given)}", hint)


def _word_in(given: Any) -> str | None:
    """Return a word, also one that a mapping gives as `type`, `name` or its only key; or None."""
    if not isinstance(given, Mapping):
        return given if isinstance(given, str) else None
    word = given.get("type", given.get("name", next(iter(given)) if len(given) == 1 else None))
    return word if isinstance(word, str) else None


_METRICS = {"auroc": "MatthewsCorrCoef", "mae": "SpearmanCorrCoef"}
"""Classes of torchmetrics, each by a word of the tasks that take such classes; others take none."""


def _form(kind: str, key: Key, given: Any, fields: Mapping[str, FieldInfo]) -> str | None:
    """Return a hint that shows how one value is written as a list, or as a mapping with a type."""
    # pydantic names a list among several possible types as `tuple[str, ...]`
    step = next((part for part in reversed(key) if "[" not in str(part)), "")
    if kind in ("tuple_type", "list_type") and not isinstance(given, Mapping) and given is not None:
        return f"a list, also of one: {step}: [{shown(given)}]"
    if kind == "string_pattern_mismatch" and step == "device":
        return "auto, cpu, cuda (a GPU of NVIDIA or AMD), cuda:1, ..., or mps (one of Apple)"
    if kind not in ("model_type", "model_attributes_type"):
        return None
    is_entry = len(key) == 2 and isinstance(key[1], int)
    field = fields.get(str(key[0])) if len(key) == 1 or is_entry else None
    known = list(_types(field.annotation, "type")) if field is not None else []
    if not key and "type" in fields:
        known = list(typing.get_args(fields["type"].annotation))
    if known and isinstance(given, str):
        needed = (
            [] if key else [info.alias or n for n, info in fields.items() if info.is_required()]
        )
        more = [f", {name}: ..." for name in needed if name != "type"]
        return _as_typed(f"{step}: " if key and not is_entry else "", given, known, "".join(more))
    if not key and "type" in fields and isinstance(given, str):
        # Classes of torch.nn begin with a capital letter, names of whole networks do not.
        is_network = "weights" in fields and given[:1].islower()
        beside = f"torchvision, architecture: {given}" if is_network else given
        other = f", or {{type: transformers, path: {given}}}" if is_network else ""
        return f"{{type: {beside}}}{other}"
    if key:
        return None
    example = EXAMPLES.get(next(iter(fields), ""))
    return example or f"with the keys {', '.join(fields)}"


def _as_typed(before: str, given: str, known: Sequence[str], more: str = "") -> str:
    """Return a hint that shows one word, or a path, as a mapping with a type.

    Args:
        before: What stands before the mapping.
        given: The word.
        known: The types that there are.
        more: Further keys that the mapping needs.
    """
    word = next((each for each in known if each.casefold() == given.casefold()), None)
    word = word or other_value(given, known)
    if word is not None:
        return f"{before}{{type: {word}{more}}}"
    ending = PurePath(given).suffix.removeprefix(".").lower()
    # A name with an ending is a file. A csv source recognises the format by its content.
    if ending and "csv" in known:
        return f"{before}{{type: {ending if ending in known else 'csv'}, path: {given}}}"
    return f"{before}{{type: ...}}, with one of {', '.join(known)}"


def _of_share(key: Key, details: ErrorDetails) -> str | None:
    """Return a hint if a percentage or a number of samples is given where a share is needed."""
    given = details["input"]
    if details["type"] != "less_than" or key[-1:] not in _SHARES:
        return None
    if isinstance(given, int | float) and 1 < given < 100:
        return f"a share of all: {given / 100:g} is {given:g} %"
    return "a share of all: 0.2 is a fifth"


def _quoting(kind: str, given: Any) -> str | None:
    """Return a hint if a value has the wrong type only for want of quotes, or by YAML 1.1."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "put it in quotes to make it text"
    if kind in _NUMBERS and isinstance(given, str):
        return _no_number(given.strip(), _NUMBERS[kind])
    # People write `yes` and `no` as in YAML 1.1, where these are booleans.
    if kind == "bool_type" and isinstance(given, str) and given.lower() in _YAML_1_1:
        return f"by the rules of YAML 1.2, {given} is text: write {_YAML_1_1[given.lower()]}"
    return None


def _no_number(text: str, wanted: re.Pattern[str]) -> str | None:
    """Return a hint on a text in the place of a number, or None."""
    if text.lower() in ("none", "null", "nil", ""):
        return "leave the key out, if it has a default"
    if wanted.fullmatch(text):
        return "take the quotes away to make it a number"
    plain = text.replace("_", "")
    is_text = plain != text and wanted.fullmatch(plain)
    return f"by the rules of YAML 1.2, {text} is text: write {plain}" if is_text else None


_WHOLE = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NUMBERS = {
    **dict.fromkeys(("int_type", "int_parsing"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _DECIMAL),
}
"""How numbers are written, by the kind of error of pydantic that wants one."""
_YAML_1_1 = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
