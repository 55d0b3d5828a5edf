"""The base class of all config nodes, and how a validator reports a fault of a single key."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.config.catalogue import Complaint
from finetune.config.messages import Fault, explain, is_echo, is_meant, shown

PUBLIC = "public"
"""Mark for a field, by `Annotated`: its value becomes a name, as of a layer, column, phase or metric.

Run files, checkpoints and curves contain such names, so they must not be secrets; see `secrets.py`.
"""

PLACE = "place"
"""Mark for a field, by `Annotated`: its value is the path of a file or folder, see `places.py`."""

AS_WRITTEN = "as written"
"""Mark for a field, by `Annotated`: its value is text, and a number there stays as it is written."""


class Node(BaseModel):
    """A config node: immutable, closed to unknown keys, documented field by field.

    The string under a field is its description, read by `descriptions.py` and printed by
    `finetune schema`; a test fails for a field without one.
    """

    # `defer_build`: most nodes are only validated as parts of `RunConfig`, and to build a validator
    # for each of them as well would slow every start.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # JSON, and so every file of a run, has neither infinity nor NaN.
        allow_inf_nan=False,
        defer_build=True,
    )

    @classmethod
    def complaints(cls, value: Mapping[str, Any]) -> Sequence[Complaint]:
        """Return what is wrong with `value` beyond single keys; none by default.

        A node overrides this for rules that pydantic does not know, so that their faults are
        reported together with all others. `value` is as written: none of its keys is checked yet.
        """
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _tell_all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate a node; raise the faults that pydantic and `complaints` find, all at once."""
        faults = []
        if isinstance(value, Mapping):
            # Asked before pydantic, whose first fault would otherwise hide those that concern
            # several keys.
            faults = [Fault(*complaint, absent=True) for complaint in cls.complaints(value)]
        try:
            node = handler(value)
        except ValidationError as error:
            # what a node says about a key replaces what pydantic says about it
            told = {fault.key for fault in faults if fault.key}
            # A key that `complaints` calls unknown may be a required one, misspelt: not missing as
            # well.
            strange = [str(key[0]) for key in told if len(key) == 1]
            others = [one for one in faults_of(error, cls) if one.key not in told]
            faults = [*(one for one in others if not _is_misnamed(one, strange)), *faults]
        if faults:
            raise _error(cls.__name__, faults)
        return node


class OpenNode(Node):
    """A node whose further keys are arguments of a library's class, chosen by name.

    Its subclass checks these keys against `catalogue.py`, so unknown ones are refused as well.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def known_types(cls) -> Collection[str]:
        """Return the types that a config may name here."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _is_no_word(cls, value: Any) -> Any:
        """Refuse a class that is only named, and tell how it is written."""
        if isinstance(value, str) and (name := _spelt(value, cls.known_types())) is not None:
            needed = (key for key, info in cls.model_fields.items() if info.is_required())
            hint = f"{{type: {name}{''.join(f', {key}: ...' for key in needed if key != 'type')}}}"
            refuse(cls.__name__, ((), f"needs a mapping, got {shown(value)}", hint))
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not fields of the node: keyword arguments of the class it names."""
        return dict(self.__pydantic_extra__ or {})

    def with_arguments(self, **changes: Any) -> Self:
        """Return a copy with some arguments set."""
        return self.model_copy(update=changes)

    @classmethod
    def arguments_in(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of `value` that are not fields of the node."""
        fields = {info.alias or name for name, info in cls.model_fields.items()}
        return {key: item for key, item in value.items() if key not in fields}


def _spelt(given: str, known: Collection[str]) -> str | None:
    """Return the name among `known` that differs from the given one in capitals alone, or None."""
    return next((name for name in known if name.casefold() == given.casefold()), None)


def refuse(title: str, *problems: Complaint) -> NoReturn:
    """Raise a pydantic error about keys below the node that is being validated.

    Args:
        title: Class name of the node.
        problems: For each fault the key below the node, message and hint.
    """
    # Of the node itself no key is absent: the end of its place is a tag of pydantic, not a key.
    raise _error(title, [Fault(*problem, absent=bool(problem[0])) for problem in problems])


def tags_of(union: Any) -> set[str]:
    """Return the tags of the members of an annotated union, `Annotated[A | B, Discriminator]`."""
    members = get_args(get_args(union)[0])
    return {mark.tag for member in members for mark in get_args(member) if isinstance(mark, Tag)}


def faults_of(error: ValidationError, node: type[Node]) -> list[Fault]:
    """Return all faults that a validation of `node` found, in plain words."""
    details = error.errors(include_url=False)
    unknown = [str(one["loc"][-1]) for one in details if one["type"] == "extra_forbidden"]
    # An unknown key makes pydantic report the one that was meant as missing, too: one mistake, one
    # line.
    fields = _own_first(node)
    return [explain(one, fields) for one in details if not is_echo(one, unknown)]


def _own_first(node: type[Node]) -> dict[str, FieldInfo]:
    """Return the fields of a node for a list of them: required ones, its own, then inherited ones.

    What a class inherits suits many nodes, and is seldom what a person looks for in this one.
    """
    owners = [vars(base).get("__annotations__", {}) for base in node.__mro__]

    def rank(field: tuple[str, FieldInfo]) -> tuple[bool, int]:
        depth = next((n for n, own in enumerate(owners) if field[0] in own), len(owners))
        return not field[1].is_required(), depth

    return dict(sorted(node.model_fields.items(), key=rank))


def _is_misnamed(fault: Fault, strange: Sequence[str]) -> bool:
    """Tell whether a key is reported missing only because it is misspelt as a `strange` one."""
    is_missing = fault.absent and len(fault.key) == 1 and fault.message.startswith("missing")
    return is_missing and is_meant(str(fault.key[0]), strange)


def _error(title: str, faults: Sequence[Fault]) -> ValidationError:
    """Return a pydantic error that `explain` turns back into the same faults."""
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
