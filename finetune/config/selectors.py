"""Selectors: how a config says which parameters are meant."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from finetune.config.base import Node
from finetune.config.expressions import Expression
from finetune.patterns import MAX_CHARACTERS


class ByName(Node):
    """Parameters by full name: a glob in which `*` also matches dots, or a module's whole subtree."""

    name: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    """Without wildcards it is one parameter, or everything below one module."""


class ByRegex(Node):
    """Parameters whose full name matches a regular expression from end to end."""

    regex: Expression
    """The expression, by the rules of Python's `re`, at most 1000 characters. All expressions of one list may take one second together. What the package `regex`, which runs it, reads differently is refused: comments, braces that are no repetition, set operations."""


class ByType(Node):
    """Parameters of modules of a class or its subclasses, and of all modules below them."""

    type: str = Field(min_length=1)
    """Name of the class, such as `LayerNorm`."""


class ByKind(Node):
    """Parameters by role. The bias of a norm is both `norm` and `bias`."""

    kind: Literal["bias", "weight", "norm", "embedding"]
    """`weight` means every parameter that is not a bias."""


class ByDepth(Node):
    """Parameters of the blocks in a range of depths; 0 is the block nearest to the input."""

    depth: str = Field(pattern=r"^-?\d{1,9}$|^(-?\d{1,9})?:(-?\d{1,9})?$")
    """`0:6`, `-2:` or `3`, by Python's slice rules; negative numbers count from the output."""

    @field_validator("depth", mode="before")
    @classmethod
    def _a_number_is_one_block(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def depths(self, num_blocks: int) -> range:
        """Return the selected depths for a model with `num_blocks` blocks."""
        if ":" not in self.depth:
            depth = int(self.depth)
            # `or None`: for -1 the end would be 0, and the range empty.
            return range(num_blocks)[depth : depth + 1 or None]
        start, stop = (int(part) if part else None for part in self.depth.split(":"))
        return range(num_blocks)[start:stop]


class ByRows(Node):
    """Some rows of one parameter, as a slice along its first axis."""

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
        """Return the selected rows of a parameter that has `num_rows` rows.

        Raises:
            ValueError: the stride is 0 or negative.
        """
        text = self.rows.partition("[")[2].removesuffix("]")
        if ":" not in text:
            place = int(text)
            return range(num_rows)[place : place + 1 or None]
        parts = [int(part) if part else None for part in text.split(":")]
        cut = slice(*parts)
        # Rows are kept as increasing ranges: a negative stride would take the same rows in another
        # order.
        if cut.step is not None and cut.step < 1:
            raise ValueError(f"needs a positive stride, got {self.rows!r}")
        return range(num_rows)[cut]


class All(Node):
    """Every parameter."""

    all: Literal[True]
    """Discriminator."""


class Not(Node):
    """Removes parameters that earlier entries selected."""

    not_: "Selector" = Field(alias="not")
    """What to remove."""


def _kind_of_selector(value: Any) -> str | None:
    """Return the tag of a selector, written or built; None if it has no known key."""
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
    """Return the long form of a selector given in short form; anything else unchanged.

    `"encoder"` becomes `{name: encoder}`, and `"!encoder"` becomes `{not: {name: encoder}}`.
    """
    if isinstance(value, str):
        bare = value.removeprefix("!")
        return {"name": bare} if bare == value else {"not": {"name": bare}}
    if isinstance(value, dict) and set(value) == {"not"}:
        return {"not": normalise_selector(value["not"])}
    return value


def normalise_selectors(value: Any) -> Any:
    """Return selectors in long form, a single name as a list of one; anything else unchanged."""
    # A mapping stays as it is: two of them, one laid over the other, would make one of both keys.
    listed = (value,) if isinstance(value, str) else value
    is_list = isinstance(listed, list | tuple)
    return tuple(normalise_selector(item) for item in listed) if is_list else value


Selectors = Annotated[
    tuple[Selector, ...],
    BeforeValidator(normalise_selectors, json_schema_input_type=str | tuple[Selector, ...]),
]
"""A list of selectors, short forms allowed, or a single name."""
