"""Selectors: how a config says which parameters it means."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from finetune.config.base import Node
from finetune.config.messages import shown
from finetune.patterns import MAX_CHARACTERS, faults_of_expression


class ByName(Node):
    """Parameters by full name: a glob in which `*` also crosses dots, or a module's whole subtree."""

    name: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    """A name without wildcards is that parameter, or everything below that module."""


class ByRegex(Node):
    """Parameters whose full name matches a regular expression from end to end."""

    regex: str
    """The expression, by the rules of Python's `re`, at most 1000 characters. The expressions of one list may take one second on all names together. What the package `regex`, which runs it, reads differently is refused: comments, braces that are no repetition, operations of sets."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        for fault in faults_of_expression(value):
            raise ValueError(f"{fault}, got {shown(value)}")
        return value


class ByType(Node):
    """Parameters of modules of a class or one of its subclasses, and of all modules below them."""

    type: str = Field(min_length=1)
    """Name of the class, such as `LayerNorm`."""


class ByKind(Node):
    """Parameters by what they are for. A norm's bias is both `norm` and `bias`."""

    kind: Literal["bias", "weight", "norm", "embedding"]
    """`weight` is everything that is not a bias."""


class ByDepth(Node):
    """Parameters of the blocks in a range of depths, 0 being the block nearest the input."""

    depth: str = Field(pattern=r"^-?\d{1,9}$|^(-?\d{1,9})?:(-?\d{1,9})?$")
    """`0:6`, `-2:` or `3`, by Python's slice rules; negatives count from the output."""

    @field_validator("depth", mode="before")
    @classmethod
    def _a_number_is_one_block(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def depths(self, num_blocks: int) -> range:
        """Return the depths taken in a model of `num_blocks` blocks."""
        if ":" not in self.depth:
            depth = int(self.depth)
            return range(num_blocks)[depth : depth + 1 or None]
        start, stop = (int(part) if part else None for part in self.depth.split(":"))
        return range(num_blocks)[start:stop]


class ByRows(Node):
    """Some rows of one parameter: a slice along its first axis."""

    rows: str = Field(
        pattern=r"^[^\[\]]+\[-?\d{0,18}(:-?\d{0,18}){1,2}\]$|^[^\[\]]+\[-?\d{1,18}\]$",
        max_length=MAX_CHARACTERS,
    )
    """`embed.weight[:32000]`: the parameter's full name and a slice, by Python's rules with a positive stride."""

    @property
    def name(self) -> str:
        """Full name of the parameter."""
        return self.rows.partition("[")[0]

    def indices(self, num_rows: int) -> range:
        """Return the rows taken of a parameter that has `num_rows`.

        Raises:
            ValueError: the stride is 0 or negative.
        """
        text = self.rows.partition("[")[2].removesuffix("]")
        if ":" not in text:
            place = int(text)
            return range(num_rows)[place : place + 1 or None]
        parts = [int(part) if part else None for part in text.split(":")]
        cut = slice(*parts)
        if cut.step is not None and cut.step < 1:
            raise ValueError(f"needs a positive stride, got {self.rows!r}")
        return range(num_rows)[cut]


class All(Node):
    """Every parameter."""

    all: Literal[True]
    """Discriminator."""


class Not(Node):
    """Takes names out again that entries before it took."""

    not_: "Selector" = Field(alias="not")
    """What to take out."""


def _kind_of_selector(value: Any) -> str | None:
    if isinstance(value, dict):
        return next(
            (key for key in _NODES if key in value),
            None,
        )
    return next((tag for tag, node in _NODES.items() if isinstance(value, node)), None)


Selector = Annotated[
    Annotated[ByName, Tag("name")]
    | Annotated[ByRegex, Tag("regex")]
    | Annotated[ByType, Tag("type")]
    | Annotated[ByKind, Tag("kind")]
    | Annotated[ByDepth, Tag("depth")]
    | Annotated[ByRows, Tag("rows")]
    | Annotated[All, Tag("all")]
    | Annotated[Not, Tag("not")],
    Discriminator(
        _kind_of_selector,
        custom_error_type="selector",
        custom_error_message="needs a name, or one of regex, type, kind, depth, rows, all, not",
    ),
]

_NODES: dict[str, type[Node]] = {
    "name": ByName,
    "regex": ByRegex,
    "type": ByType,
    "kind": ByKind,
    "depth": ByDepth,
    "rows": ByRows,
    "all": All,
    "not": Not,
}


def normalise_selector(value: Any) -> Any:
    """Turn the short form of a selector into its long form; leave anything else alone.

    `"encoder"` becomes `{name: encoder}`, and `"!encoder"` becomes `{not: {name: encoder}}`.
    """
    if isinstance(value, str):
        bare = value.removeprefix("!")
        return {"name": bare} if bare == value else {"not": {"name": bare}}
    if isinstance(value, dict) and set(value) == {"not"}:
        return {"not": normalise_selector(value["not"])}
    return value


def normalise_selectors(value: Any) -> Any:
    """Turn the short forms in a list of selectors into long ones; leave anything else alone."""
    is_list = isinstance(value, list | tuple)
    return tuple(normalise_selector(item) for item in value) if is_list else value


Selectors = Annotated[tuple[Selector, ...], BeforeValidator(normalise_selectors)]
"""A list of selectors, short forms allowed."""
