"""What a config may hold, found in the JSON Schema: kinds of entries, their keys, single keys."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import FinetuneError, did_you_mean

Schema = Mapping[str, Any]
_PLACES = {
    "layers": "model.layers",
    "sources": "data.source",
    "transforms": "data.transforms",
    "tasks": "task",
    "losses": "task.losses",
    "metrics": "task.metrics",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "methods": "freeze",
    "selectors": "freeze.phases.train",
    "triggers": "freeze.phases.until",
}
"""Keys at which the entries of each kind stand."""
_TAGS = ("type", "method")
_NEEDS = {
    "transformers": "transformers", "timm": "timm", "torchvision": "torchvision",
    "huggingface": "datasets", "sklearn": "sklearn", "audiofolder": "soundfile",
    "VisionTransform": "torchvision",
}  # fmt: skip
"""Packages that some entries need."""
_MOST_DEEP = 12


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """One key: what it takes and means.

    Args:
        name: Its name.
        takes: What it takes, in words.
        default: Its default as the schema has it; None where there is none.
        is_required: Whether it must be given.
        text: Its description.
    """

    name: str
    takes: str
    default: Any
    is_required: bool
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One layer, transform, metric, method, ...

    Args:
        kind: Its kind, such as `layers`.
        name: Its name.
        text: What it is.
        keys: Its keys.
        yaml: A line of YAML with all that it needs.
        place: Key at which it stands.
        lacks: Package that it needs and that is not installed; None if all is there.
    """

    kind: str
    name: str
    text: str
    keys: tuple[KeyFacts, ...]
    yaml: str
    place: str
    lacks: str | None


def kinds() -> list[str]:
    """Return all kinds of entries."""
    return [*_PLACES]


def entries(root: Schema) -> list[Explained]:
    """Return all entries of all kinds, each once."""
    found: dict[tuple[str, str], Explained] = {}
    for kind, place in _PLACES.items():
        for one in schemas_at(root, place):
            for entry in _entries_of(kind, place, one, root):
                found.setdefault((kind, entry.name), entry)
    return [*found.values()]


def _entries_of(kind: str, place: str, one: Schema, root: Schema) -> Iterator[Explained]:
    """Yield the entries that one variant of a value stands for."""
    for choice in [one["const"]] if "const" in one else one.get("enum", ()):
        if kind == "metrics":
            text = f"Built in; given by its name alone: metrics: [{choice}]."
            yield Explained(kind, str(choice), text, (), f"[{choice}]", place, None)
    properties = one.get("properties")
    if properties is None:
        return
    tag = next((tag for tag in _TAGS if tag in properties), None)
    names = _constants(properties[tag]) if tag else [next(iter(properties))]
    if kind == "selectors":  # `{type: LayerNorm}` takes the name of any class
        names, tag = [next(iter(properties))], None
    if tag is None and kind not in ("selectors", "triggers"):
        return
    required = one.get("required", ())
    keys = tuple(
        _key_facts(name, value, root, is_required=name in required)
        for name, value in properties.items()
        if name != tag
    )
    owner = one.get("title", "")
    for name in names:
        pairs = [f"{tag}: {name}"] if tag else []
        pairs += [f"{key.name}: {_example(key)}" for key in keys if key.is_required]
        pairs = pairs or [f"{keys[0].name}: {_example(keys[0])}"]
        text = one.get("description", "") or _text_of_class(kind)
        needs = _NEEDS.get(name) or ("torchvision" if _is_class(kind, owner, name) else None)
        # Looked for, not imported: that would take seconds.
        lacks = needs if needs and importlib.util.find_spec(needs) is None else None
        yield Explained(kind, name, text, keys, f"{{{', '.join(pairs)}}}", place, lacks)


def _is_class(kind: str, owner: str, name: str) -> bool:
    """Tell whether a transform is a class of torchvision, whose schema bears its name."""
    return kind == "transforms" and owner == name


def _text_of_class(kind: str) -> str:
    """Return what a class of a library is, which the schema lists without a text."""
    library = {
        "layers": "torch.nn", "transforms": "torchvision.transforms.v2",
        "optimizers": "torch.optim", "metrics": "torchmetrics",
    }.get(kind)  # fmt: skip
    return f"A class of {library}, with its own arguments." if library else ""


def _constants(value: Schema) -> list[str]:
    """Return the texts that a tag may be; none for one that is open."""
    return (
        [str(value["const"])] if "const" in value else [str(one) for one in value.get("enum", ())]
    )


def schemas_at(root: Schema, place: str) -> list[Schema]:
    """Return the variants of the value at a dotted key, references resolved; none if it is unknown.

    Lists and mappings of names add no part to a key.
    """
    found = [*_variants(root, root)]
    for part in place.split("."):
        found = [
            variant
            for one in found
            for inner in _held(one, part)
            for variant in _variants(inner, root)
        ]
    return found


def keys_at(root: Schema, place: str) -> list[KeyFacts]:
    """Return what is said of a dotted key, once for each place that describes it differently."""
    above, _, name = place.rpartition(".")
    nodes = schemas_at(root, above) if above else [*_variants(root, root)]
    facts: dict[str, KeyFacts] = {}
    for node in nodes:
        for value in _held(node, name):
            is_required = name in node.get("required", ())
            one = _key_facts(name, value, root, is_required=is_required)
            facts.setdefault(f"{one.text}{one.takes}", one)
    return [*facts.values()]


def _held(node: Schema, name: str) -> Iterator[Schema]:
    """Yield the schema of a key of a node, if it has that key."""
    if name in node.get("properties", {}):
        yield node["properties"][name]


def _variants(node: Schema, root: Schema, depth: int = 0) -> Iterator[Schema]:
    """Yield the plain schemas that a schema stands for: through references, unions and lists."""
    # References may go in circles: a layer `sequential` holds layers.
    if depth > _MOST_DEEP:
        return
    if "$ref" in node:
        target = root["$defs"][node["$ref"].rpartition("/")[2]]
        yield from _variants(target, root, depth + 1)
        return
    # An `anyOf` beside `properties` tells which keys are needed, and is no union.
    inner = [*node.get("oneOf", ()), *(node.get("anyOf", ()) if "properties" not in node else ())]
    for one in inner:
        yield from _variants(one, root, depth + 1)
    if node.get("type") == "array" and isinstance(node.get("items"), dict):
        yield from _variants(node["items"], root, depth + 1)
    elif not inner:
        yield node


def _key_facts(name: str, value: Schema, root: Schema, *, is_required: bool) -> KeyFacts:
    """Return what is said of one key."""
    words = dict.fromkeys(_words(one) for one in _variants(value, root))
    takes = " or ".join(words) or "anything"
    if value.get("type") == "array" or any(
        o.get("type") == "array" for o in value.get("anyOf", ())
    ):
        takes = f"a list of: {takes}"
    text = value.get("description", "")
    return KeyFacts(name, takes, value.get("default"), is_required, text)


def _words(one: Schema) -> str:
    """Return what a plain schema takes, in words."""
    if "properties" in one:
        tag = next((tag for tag in _TAGS if tag in one["properties"]), None)
        names = _constants(one["properties"][tag]) if tag else []
        return f"{{{tag}: {' | '.join(names)}}}" if names else f"{{{', '.join(one['properties'])}}}"
    if values := _constants(one):
        return " | ".join(values)
    kind = one.get("type", "anything")
    told = " or ".join(kind) if isinstance(kind, list) else str(kind)
    least = one.get("minimum", one.get("exclusiveMinimum"))
    most = one.get("maximum", one.get("exclusiveMaximum"))
    begins = "from" if "minimum" in one else "above"
    return told if least is None or most is None else f"{told} {begins} {least:g} to {most:g}"


def _example(key: KeyFacts) -> str:
    """Return a placeholder for the value of a key."""
    first = key.takes.partition(" or ")[0].partition(" | ")[0]
    for word, example in (
        ("integer", "8"),
        ("number", "0.1"),
        ("a list", "[...]"),
        ("boolean", "true"),
    ):
        if first.startswith(word):
            return example
    return "..." if first.startswith(("string", "{", "anything")) else first


def nearest(root: Schema, name: str, known: Sequence[Explained]) -> FinetuneError:
    """Return the error for a name that is nothing here, with the nearest ones."""
    names = [*kinds(), *(entry.name for entry in known), *root["properties"]]
    return FinetuneError(
        f"nothing is called {name!r}",
        hint=did_you_mean(name, names) or f"kinds are {', '.join(kinds())}; or a key such as train",
    )
