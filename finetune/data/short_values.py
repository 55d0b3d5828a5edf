"""Show a value of the data in a message: never a whole sample."""

from typing import Any

from finetune.redaction import redacted


def in_short(value: Any) -> str:
    """Return a value of the data as a short text for messages, never a whole sample or bytes."""
    match value:
        case bytes() | bytearray():
            return f"{len(value):,} bytes"
        case type():
            return value.__name__
        case dict():
            return f"a mapping of {', '.join(repr(str(key)[:20]) for key in list(value)[:5])}"
        case str() | int() | float() | None:
            # Cut before `repr`: a text may be a whole book.
            text = redacted(repr(value[:1000] if isinstance(value, str) else value))
        case list() | tuple() if len(value) <= 4 and all(type(v) in (int, float) for v in value):
            text = repr(value)
        case list() | tuple():
            return f"a list of {len(value):,}"
        case _:
            shape = getattr(value, "shape", None)
            name = type(value).__name__
            return name if shape is None else f"{name} of shape {tuple(shape)}"
    return text if len(text) <= 40 else f"{text[:37]}..."
