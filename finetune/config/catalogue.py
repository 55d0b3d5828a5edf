"""What torch and torchvision offer by name, known without importing either.

`catalogue.json` is made by `scripts/make_catalogue.py` and read when first asked for.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune.config.bounds import Bounds, beyond, bounds_of
from finetune.config.hints import word_here
from finetune.config.messages import is_meant, shown
from finetune.errors import Key, did_you_mean

Complaint = tuple[Key, str, str | None]
"""Key below a node, what is wrong there, and a hint."""

INFERRED = frozenset(
    {
        *("in_features", "in_channels", "num_features", "num_channels", "input_size"),
        *("normalized_shape", "embed_dim", "d_model", "in1_features", "in2_features"),
        *("mean", "std"),
    }
)
"""Required arguments that may be left out: input sizes are read off what comes into a layer, mean and std of `Normalize` off what the model was pretrained with."""

_WANTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a constructor.

    Args:
        kinds: What YAML may give it: `bool`, `int`, `float`, `str`, `list`, `null`.
        choices: The words that a text is confined to; any text if empty.
        required: Whether it has no default.
        bounds: The smallest and the largest number that it, or an entry of its list, may be.
    """

    kinds: frozenset[str]
    choices: tuple[str, ...]
    required: bool
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class KnownClass:
    """One class that may be named as `type:`.

    Args:
        arguments: Arguments of its constructor by name.
        random: Whether two calls on one sample may differ.
        drawn: The argument whose range is drawn from, where a single number leaves nothing random.
    """

    arguments: Mapping[str, Argument]
    random: bool = False
    drawn: str | None = None

    def is_random_with(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether two calls may differ, given the `arguments` of the constructor."""
        fixed = self.drawn is not None and isinstance(arguments.get(self.drawn), int | float)
        return self.random and not fixed


@dataclass(frozen=True, slots=True)
class KnownClasses(Mapping[str, KnownClass]):
    """The classes of one kind by name.

    Args:
        section: Where they stand in the file.
        word: A text that may stand for any whole number among their arguments.
    """

    section: str
    word: str | None = None

    def __getitem__(self, name: str) -> KnownClass:
        return _read()[self.section][name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read()[self.section])

    def __len__(self) -> int:
        return len(_read()[self.section])


LAYERS = KnownClasses("layers", word="classes")
"""Classes of `torch.nn` that take and give tensors."""
TRANSFORMS = KnownClasses("transforms")
"""Classes of `torchvision.transforms.v2` that take and give one image."""
OPTIMIZERS = KnownClasses("optimizers")
"""Dense optimizers of `torch.optim`."""


def check_arguments(
    table: KnownClasses,
    noun: str,
    type_name: str,
    arguments: Mapping[str, Any],
    *,
    also: Collection[str] = (),
    own: Collection[str] = (),
    otherwise: str | None = None,
) -> list[Complaint]:
    """Return what is wrong with naming the class `type_name` and giving it `arguments`.

    Args:
        table: The classes known.
        noun: What they are, for the message.
        type_name: The class named.
        arguments: Its arguments, some of which finetune fills in later (`INFERRED`).
        also: Types that are known beside the table, to be suggested as well.
        own: Keys of the node beside the arguments, to be suggested as well.
        otherwise: The hint on a class that resembles none of the table.
    """
    if type_name not in table:
        known = [*table, *also]
        return [
            (("type",), f"no {noun} {type_name!r}", did_you_mean(type_name, known) or otherwise)
        ]
    known_arguments = table[type_name].arguments
    complaints: list[Complaint] = []
    for name, value in arguments.items():
        if name not in known_arguments:
            word = word_here(name, [*known_arguments, *own])
            near = (
                did_you_mean(name, known_arguments) if word is None else f"did you mean {word!r}?"
            )
            hint = near or _listing(type_name, known_arguments)
            complaints.append(((name,), f"{type_name} has no argument {name!r}", hint))
        elif not _fits(value, known_arguments[name], table.word):
            complaints.append(((name,), *_misfit(value, known_arguments[name], table.word)))
        elif (fault := beyond(value, known_arguments[name].bounds)) is not None:
            complaints.append(((name,), f"{fault}, got {shown(value)}", None))
    unknown = arguments.keys() - known_arguments.keys()
    for name, argument in known_arguments.items():
        is_missing = argument.required and name not in arguments and name not in INFERRED
        if is_missing and not is_meant(name, unknown):
            complaints.append(((name,), f"missing, and {type_name} needs it", None))
    return complaints


def _fits(value: Any, argument: Argument, word: str | None) -> bool:
    kind, kinds = _kind(value), argument.kinds
    if kind == "str":
        is_word = value == word and "int" in kinds
        return is_word or ("str" in kinds and (not argument.choices or value in argument.choices))
    return kind in kinds or (kind == "int" and "float" in kinds)


def _misfit(value: Any, argument: Argument, word: str | None) -> tuple[str, str | None]:
    """Say what the argument needs instead of `value`, and which word may have been meant."""
    kinds = argument.kinds - ({"int"} if "float" in argument.kinds else set())
    wanted = [_WANTED[kind] for kind in _WANTED if kind in kinds]
    words = argument.choices or ((word,) if word and "int" in kinds else ())
    if argument.choices:
        wanted = [f"one of {', '.join(map(repr, words))}"]
    hint = did_you_mean(value, words) if isinstance(value, str) else None
    return f"needs {' or '.join(wanted)}, got {shown(value)}", hint


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "list" if isinstance(value, tuple) else type(value).__name__


def _listing(type_name: str, arguments: Collection[str]) -> str:
    names = ", ".join(sorted(arguments))
    return f"{type_name} takes {names}" if names else f"{type_name} takes no arguments"


@cache
def _read() -> dict[str, dict[str, KnownClass]]:
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    sections = json.loads(text)
    del sections["versions"]
    return {
        section: {name: _entry(section, entry) for name, entry in entries.items()}
        for section, entries in sections.items()
    }


def _entry(section: str, entry: dict[str, Any]) -> KnownClass:
    arguments = {
        name: Argument(
            frozenset(argument["kinds"]),
            tuple(argument.get("choices", ())),
            argument.get("required", False),
            bounds_of(section, name, "float" if "float" in argument["kinds"] else "int"),
        )
        for name, argument in entry["arguments"].items()
    }
    return KnownClass(arguments, entry.get("random", False), entry.get("drawn"))
