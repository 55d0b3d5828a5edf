"""Classes of torch, torchvision and torchmetrics that a config may name, known without them.

`catalogue.json` is made by `scripts/make_catalogue.py` and read at the first use.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune.config.bounds import Bounds, beyond, bounds_of
from finetune.config.hints import remark_on, value_here, word_here
from finetune.config.messages import is_meant, shown
from finetune.errors import Key, did_you_mean

Complaint = tuple[Key, str, str | None]
"""A fault: key below a node, what is wrong there, and a hint."""

INFERRED = frozenset(
    {
        *("in_features", "in_channels", "num_features", "num_channels", "input_size"),
        *("normalized_shape", "embed_dim", "d_model", "in1_features", "in2_features"),
        *("mean", "std"),
    }
)
"""Required arguments that may be left out: input sizes are taken from a layer's input, mean and std of `Normalize` from what the model was pretrained with."""

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
    """One argument of a class's constructor.

    Args:
        kinds: Kinds of YAML value it takes: `bool`, `int`, `float`, `str`, `list`, `null`.
        choices: The only texts it takes; any text if empty.
        required: Whether it has no default.
        bounds: Bounds for a number given to it, also inside a list.
    """

    kinds: frozenset[str]
    choices: tuple[str, ...]
    required: bool
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class KnownClass:
    """One class that a config may name by `type:`.

    Args:
        arguments: Arguments of its constructor by name.
        random: Whether two calls on one sample may differ.
        drawn: An argument that is a range to draw from; given one number, nothing is random.
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
    """The classes of one kind, by name; a read-only mapping.

    Args:
        section: Their section in `catalogue.json`.
        words: Texts that may be given to them in place of a whole number.
    """

    section: str
    words: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> KnownClass:
        return _read()[self.section][name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read()[self.section])

    def __len__(self) -> int:
        return len(_read()[self.section])


LAYERS = KnownClasses("layers", words=("classes", "categories"))
"""Classes of `torch.nn` that map tensors to tensors."""
TRANSFORMS = KnownClasses("transforms")
"""Classes of `torchvision.transforms.v2` that map one image to one image."""
OPTIMIZERS = KnownClasses("optimizers")
"""Optimizers of `torch.optim` for dense gradients."""
METRICS_OF_CLASSES = KnownClasses("metrics_of_classes")
"""Metrics of torchmetrics for one class per sample, without `Multiclass`; those for two classes."""
METRICS_OF_LABELS = KnownClasses("metrics_of_labels")
"""Metrics of torchmetrics for several labels per sample, without `Multilabel`."""
METRICS_OF_NUMBERS = KnownClasses("metrics_of_numbers")
"""Metrics of torchmetrics for numbers."""


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
    """Return what is wrong with a class name and the arguments given to it; nothing if all fits.

    Args:
        table: The known classes.
        noun: What they are called in the message, such as `layer`.
        type_name: Name of the class.
        arguments: The arguments given; finetune fills in some later (`INFERRED`).
        also: Types known in addition to the table; suggested as well.
        own: Keys of the node that are not arguments; suggested as well.
        otherwise: The hint for a name that resembles no known class.
    """
    if type_name not in table:
        known = [*table, *also]
        hint = value_here(type_name, known) or did_you_mean(type_name, known) or otherwise
        return [(("type",), f"no {noun} {type_name!r}", hint)]
    known_arguments = table[type_name].arguments
    complaints: list[Complaint] = []
    for name, value in arguments.items():
        if name not in known_arguments:
            word = word_here(name, [*known_arguments, *own])
            near = remark_on(name) if word is None else f"did you mean {word!r}?"
            near = near or did_you_mean(name, known_arguments)
            # A list of all is the last resort: some constructors take twenty.
            hint = near or _listing(type_name, known_arguments)
            complaints.append(((name,), f"{type_name} has no argument {name!r}", hint))
        elif not _fits(value, known_arguments[name], table.words):
            complaints.append(((name,), *_misfit(value, known_arguments[name], table.words)))
        elif (fault := beyond(value, known_arguments[name].bounds)) is not None:
            complaints.append(((name,), f"{fault}, got {shown(value)}", None))
    unknown = arguments.keys() - known_arguments.keys()
    for name, argument in known_arguments.items():
        # A misspelt argument is told as unknown; that the right one is missing is the same mistake.
        is_missing = argument.required and name not in arguments and name not in INFERRED
        if is_missing and not is_meant(name, unknown):
            complaints.append(((name,), f"missing, and {type_name} needs it", None))
    return complaints


def _fits(value: Any, argument: Argument, words: Sequence[str]) -> bool:
    """Tell whether an argument takes a value of this kind."""
    kind, kinds = _kind(value), argument.kinds
    if kind == "str":
        is_word = value in words and "int" in kinds
        return is_word or ("str" in kinds and (not argument.choices or value in argument.choices))
    # YAML has `1` for 1.0; the other way round a number with a fraction would be cut.
    return kind in kinds or (kind == "int" and "float" in kinds)


def _misfit(value: Any, argument: Argument, known: Sequence[str]) -> tuple[str, str | None]:
    """Return what an argument takes instead of `value`, and a hint if a word is misspelt."""
    # "a number" says it all: no "a whole number or a number".
    kinds = argument.kinds - ({"int"} if "float" in argument.kinds else set())
    kinds -= {"str"} if argument.choices else set()
    wanted = [_WANTED[kind] for kind in _WANTED if kind in kinds]
    words = argument.choices or (known if "int" in kinds else ())
    if argument.choices:
        wanted.append(f"one of {', '.join(map(repr, words))}")
    hint = did_you_mean(value, words) if isinstance(value, str) else None
    return f"needs {' or '.join(wanted)}, got {shown(value)}", hint


def _kind(value: Any) -> str:
    """Return the kind of a value as the catalogue names it."""
    if value is None:
        return "null"
    # Not `isinstance`: True is no number here.
    return "list" if isinstance(value, tuple) else type(value).__name__


def _listing(type_name: str, arguments: Collection[str]) -> str:
    """Return a hint that lists all arguments of a class."""
    names = ", ".join(sorted(arguments))
    return f"{type_name} takes {names}" if names else f"{type_name} takes no arguments"


@cache
def _read() -> dict[str, dict[str, KnownClass]]:
    """Return the classes of `catalogue.json` by section and name."""
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    sections = json.loads(text)
    # The versions that the file was made from are for its test, not for configs.
    del sections["versions"]
    return {
        section: {name: _entry(section, entry) for name, entry in entries.items()}
        for section, entries in sections.items()
    }


def _entry(section: str, entry: dict[str, Any]) -> KnownClass:
    """Return the class that an entry of the file describes."""
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
