"""The base class of every config node, and how a validator refuses a single key."""

from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.errors import Key


class Node(BaseModel):
    """A config node: immutable, closed to unknown keys, documented field by field.

    The string under a field is its description. `finetune schema` prints it, so a field without
    one fails a test.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class OpenNode(Node):
    """A node whose further keys are the arguments of a class that a library offers by name.

    Its subclass checks those keys against `catalogue.py`, so they are closed as well.
    """

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not the node's own, as keyword arguments of the class it names."""
        return dict(self.__pydantic_extra__ or {})

    def with_arguments(self, **changes: Any) -> Self:
        """Return a copy with some arguments set."""
        return self.model_copy(update=changes)


def refuse(title: str, *problems: tuple[Key, str, str | None]) -> NoReturn:
    """Raise a pydantic error that stands at the given keys below the node being validated.

    Args:
        title: Name of the node.
        problems: Key below the node, message and hint of each fault.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("finetune", "{message}", {"message": message, "hint": hint}),
            loc=key,
            input=None,
        )
        for key, message, hint in problems
    ]
    raise ValidationError.from_exception_data(title, details)
