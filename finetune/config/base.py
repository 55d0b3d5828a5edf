"""The base class of every config node, and how a validator refuses a single key."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.config.catalogue import Complaint
from finetune.config.messages import Fault, explain, is_echo, is_meant

PUBLIC = "public"
"""Marks a field, by `Annotated`, whose value becomes a name: of a layer, a column, a phase, a metric.

Files of the run, checkpoints and curves hold it, so it cannot be a secret, see `secrets.py`.
"""

PLACE = "place"
"""Marks a field, by `Annotated`, whose value names a file or a folder, see `places.py`."""


class Node(BaseModel):
    """A config node: immutable, closed to unknown keys, documented field by field.

    The string under a field is its description, read by `descriptions.py`. `finetune schema`
    prints it, so a field without one fails a test.
    """

    # Most nodes are only ever validated as a part of `RunConfig`: none is built before it is asked.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,
    )

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> Sequence[Complaint]:
        """Return what is wrong with `value` beyond its single keys, whether or not those are right.

        A node overrides this for what pydantic cannot know, so that such faults are told together
        with all others. `value` is as written: nothing about it has been checked.
        """
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _tell_all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        faults = []
        if isinstance(value, Mapping):
            faults = [Fault(*complaint, absent=True) for complaint in cls.complaints(value)]
        try:
            node = handler(value)
        except ValidationError as error:
            # what a node says of a key replaces what pydantic says of it
            told = {fault.key for fault in faults if fault.key}
            strange = [str(key[0]) for key in told if len(key) == 1]
            others = [one for one in faults_of(error, cls) if one.key not in told]
            faults = [*(one for one in others if not _is_misnamed(one, strange)), *faults]
        if faults:
            raise _error(cls.__name__, faults)
        return node


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

    @classmethod
    def arguments_in(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of `value` that are not the node's own."""
        return {key: item for key, item in value.items() if key not in cls.model_fields}


def refuse(title: str, *problems: Complaint) -> NoReturn:
    """Raise a pydantic error that stands at the given keys below the node being validated.

    Args:
        title: Name of the node.
        problems: Key below the node, message and hint of each fault.
    """
    raise _error(title, [Fault(*problem, absent=True) for problem in problems])


def faults_of(error: ValidationError, node: type[Node]) -> list[Fault]:
    """Return all that a validation of `node` found, in the words of the house."""
    details = error.errors(include_url=False)
    unknown = [str(one["loc"][-1]) for one in details if one["type"] == "extra_forbidden"]
    return [explain(one, node.model_fields) for one in details if not is_echo(one, unknown)]


def _is_misnamed(fault: Fault, strange: Sequence[str]) -> bool:
    """Tell whether a key is missing since it is among the `strange` ones, under another name."""
    is_missing = fault.absent and len(fault.key) == 1 and fault.message.startswith("missing")
    return is_missing and is_meant(str(fault.key[0]), strange)


def _error(title: str, faults: Sequence[Fault]) -> ValidationError:
    """Return an error of pydantic that `explain` turns into the same faults again."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(
                "finetune",
                "{message}",
                {"message": fault.message, "hint": fault.hint, "absent": fault.absent},
            ),
            loc=fault.key,
            input=None,
        )
        for fault in faults
    ]
    return ValidationError.from_exception_data(title, details)
