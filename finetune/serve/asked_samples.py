"""From the body of a request to columns of samples: every value checked, no path ever opened."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from finetune.data.column_kinds import Kind, may_be_nothing
from finetune.data.short_values import in_short
from finetune.errors import did_you_mean, named
from finetune.predict import Predictor
from finetune.reading import TwiceError, keys_once
from finetune.serve.refusal import Refusal, ServiceLimits

_LARGEST = {"number": 3.4028234663852886e38, "whole": 2**63 - 1}
"""Largest number of float32, and of int64."""
_OFF_LINE = 'send the content: {"base64": "..."}, or POST the file to /predict/files'


@dataclass(frozen=True, slots=True)
class AskedSamples:
    """What a request asks: samples, and the runs that predict them."""

    names: tuple[str, ...]
    columns: Mapping[str, list[Any]]
    count: int


def read_json_request(
    body: bytes, runs: Mapping[str, Predictor], limits: ServiceLimits
) -> AskedSamples:
    """Read a request in JSON: `{"inputs": [...], "runs": [...]}`.

    Raises:
        Refusal: it is not JSON, has other keys, or a value is not of the kind that the runs take.
    """
    document = _parsed(body)
    if not isinstance(document, dict):
        raise Refusal(422, 'needs an object {"inputs": [...]}', 'with "runs": [...] for some runs')
    if strange := sorted(document.keys() - {"inputs", "runs"}):
        hint = did_you_mean(strange[0], ("inputs", "runs"))
        raise Refusal(422, f"unknown key {in_short(strange[0])}", hint)
    if not isinstance(document.get("inputs"), list):
        raise Refusal(422, "inputs is no list of samples", '{"inputs": [...]}, also for one sample')
    names = names_asked(document.get("runs"), runs)
    kinds = kinds_of(names, runs)
    items = document["inputs"]
    check_count(len(items), limits)
    columns: dict[str, list[Any]] = {name: [] for name in kinds}
    for number, item in enumerate(items, 1):
        row = _row(item, kinds, number)
        for name, kind in kinds.items():
            where = f"sample {number}, {name!r}"
            columns[name].append(_value(row[name], kind, where))
    return AskedSamples(names, columns, len(items))


def check_count(count: int, limits: ServiceLimits) -> None:
    """Raise unless a request may have so many samples.

    Raises:
        Refusal: there are too many, or none.
    """
    if count == 0:
        raise Refusal(422, "no samples", "inputs holds at least one")
    if count > limits.items:
        raise Refusal(413, f"{count} samples, at most {limits.items} in one request", "send parts")


def names_asked(given: Any, runs: Mapping[str, Predictor]) -> tuple[str, ...]:
    """Return the names of the runs that a request names; all without a name.

    Raises:
        Refusal: there is no such run, or no run at all.
    """
    if not len(runs):
        raise Refusal(503, "no run is loaded")
    if given is None:
        return tuple(runs)
    if not isinstance(given, list) or not given:
        raise Refusal(422, "runs is not a list of names", "leave it out for all runs")
    for name in given:
        if not isinstance(name, str) or name not in runs:
            near = did_you_mean(name, runs) if isinstance(name, str) else None
            raise Refusal(404, f"no run {in_short(name)}", near or "GET /runs lists them")
    # A name that is sent twice must not run its network twice.
    return tuple(dict.fromkeys(given))


def kinds_of(names: Sequence[str], runs: Mapping[str, Predictor]) -> dict[str, Kind]:
    """Return the kind of each column that some runs take together.

    Raises:
        Refusal: two runs take a column as different kinds.
    """
    found: dict[str, Kind] = {}
    for name in names:
        facts = runs[name].run.facts
        for column in facts.inputs:
            kind = facts.kinds[column]
            if found.setdefault(column, kind) != kind:
                raise Refusal(
                    422,
                    f"the runs take {column!r} as {found[column]} and as {kind}",
                    "ask them one by one",
                )
    return found


def _parsed(body: bytes) -> Any:
    """Return what a body in JSON says.

    Raises:
        Refusal: it is not JSON of this world: NaN, numbers too long, nested too deep, not UTF-8.
    """
    try:
        # Python's reader takes NaN and Infinity, which JSON has not: a network would answer them
        # with NaN.
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=keys_once
        )
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except RecursionError:
        # Python's reader calls itself for each level: a body of brackets would else count as a bug
        # of ours.
        raise Refusal(400, "the JSON is nested too deep") from None
    except TwiceError as error:
        raise Refusal(400, f"an object has the key {named([str(error)])} twice") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise Refusal(
        400, f"JSON has no {name}", "leave the value out, or send null where one may miss"
    )


def _row(item: Any, kinds: Mapping[str, Kind], number: int) -> Mapping[str, Any]:
    """Return a sample as values by column."""
    # `{"base64": ...}` is a file and no sample, unless a run has a column of that name.
    is_content = isinstance(item, dict) and item.keys() == {"base64"} and "base64" not in kinds
    if not isinstance(item, dict) or is_content:
        if len(kinds) == 1:
            return dict.fromkeys(kinds, item)
        raise Refusal(422, f"sample {number} is no object with {named(kinds)}")
    strange = sorted(item.keys() - kinds.keys())
    if lacking := [name for name in kinds if name not in item]:
        beside = f"; it has {', '.join(map(in_short, strange[:3]))}" if strange else ""
        raise Refusal(
            422, f"sample {number} has no {lacking[0]!r}{beside}", f"needs {named(kinds)}"
        )
    if strange:
        raise Refusal(422, f"sample {number} has {in_short(strange[0])}, which no run takes")
    return item


def _value(value: Any, kind: Kind, where: str) -> Any:
    """Return a value as the predictor takes it.

    Raises:
        Refusal: it is not of the kind.
    """
    if value is None and may_be_nothing(kind):
        return None
    match kind:
        case "text" | "text or nothing" | "context":
            return _fit(value, where, "a text", is_fit=isinstance(value, str))
        case "words":
            return _fit(value, where, "a list of words", is_fit=_are_texts(value))
        case "image" | "grey image" | "audio":
            return _content(value, kind, where)
        case "number" | "number or nothing" | "whole number":
            return _numbers(value, where, "whole" if kind == "whole number" else "number")
        case "thing":
            return value
        case _:
            assert_never(kind)


def _fit(value: Any, where: str, wanted: str, *, is_fit: bool) -> Any:
    if not is_fit:
        raise Refusal(422, f"{where}: not {wanted}, got {in_short(value)}")
    return value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _content(value: Any, kind: str, where: str) -> Any:
    """Return the bytes of a file, or an array; a text is no path here, so that none is read."""
    if isinstance(value, list):
        return _numbers(value, where, "number")
    if not isinstance(value, dict) or value.keys() != {"base64"}:
        raise Refusal(422, f"{where}: no {kind}, got {in_short(value)}", _OFF_LINE)
    try:
        # Without `validate` Python skips strange letters, and other bytes than those meant are
        # decoded.
        return base64.b64decode(value["base64"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Refusal(422, f"{where}: base64 that cannot be decoded") from None


def _numbers(value: Any, where: str, largest: str) -> Any:
    """Return a number or nested lists of numbers.

    Raises:
        Refusal: something else is among them, or a number that the network's type cannot hold.
    """
    if isinstance(value, list):
        for one in value:
            _numbers(one, where, largest)
        return value
    # `True` is an integer to Python.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (largest == "whole" and value != math.floor(_bounded(value, where))):
        word = "whole number" if largest == "whole" else "number"
        raise Refusal(422, f"{where}: no {word}, got {in_short(value)}")
    if abs(value) > _LARGEST[largest]:
        raise Refusal(422, f"{where}: a number too large, got {in_short(value)}")
    return value


def _bounded(value: float, where: str) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refusal(422, f"{where}: a number too large")
    return value


def from_file(content: bytes, kind: Kind, where: str) -> Any:
    """Return the content of an uploaded file as a sample.

    Raises:
        Refusal: runs that take such a column read no file.
    """
    match kind:
        case "image" | "grey image" | "audio":
            return content
        case "text" | "text or nothing" | "context":
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                raise Refusal(422, f"{where}: the file is not UTF-8") from None
        case _:
            raise Refusal(422, f"a {kind} is no file", "POST it as JSON to /predict")
