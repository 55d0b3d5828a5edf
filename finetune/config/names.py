"""Lists of names that a config may give as a single text: `inputs: text` for `inputs: [text]`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def one_or_more(value: Any) -> Any:
    """Turn a single text into a list of one; anything else stays, to be checked."""
    return (value,) if isinstance(value, str) else value


_Several = tuple[str, ...]
Names = Annotated[_Several, BeforeValidator(one_or_more, json_schema_input_type=str | _Several)]
"""Any number of names, or a single one."""

# The bounds stand inside: an editor would count the characters of a single text by those outside.
_Some = Annotated[_Several, Field(min_length=1, max_length=10_000)]
SomeNames = Annotated[_Some, BeforeValidator(one_or_more, json_schema_input_type=str | _Some)]
"""At least one name."""
