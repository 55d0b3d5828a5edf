"""The input's own columns beside the predictions, under names that no prediction has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.data.incoming.incoming_part import Incoming
from finetune.predict.written_rows import SINGULAR

_PLAIN = (str, int, float, bool, type(None))
_PLAIN_TYPES = set(_PLAIN)
_PREFIX = "input/"
_OF_PREDICTIONS = tuple(f"{name}/" for name in (*SINGULAR.values(), "label", "score"))


class Beside:
    """Names the input's columns beside predictions.

    Args:
        told: Receives a line for each column that is left out or gets another name.
        names: Names given already, by name in the input.
    """

    def __init__(self, told: Callable[[str], None], names: Mapping[str, str] | None = None) -> None:
        self._told = told
        self.names = dict(names or {})
        """Name beside the predictions, by name in the input."""
        self._left_out: set[str] = set()

    def rows(self, part: Incoming, said: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the columns of each sample of a piece as plain values by name.

        Args:
            part: The piece.
            said: The prediction of one of its samples, whose names are taken.
        """
        columns: dict[str, Sequence[Any]] = {}
        for name, cells in part.beside.items():
            is_plain = set(map(type, cells)) <= _PLAIN_TYPES  # by far quicker than cell by cell
            if is_plain or self._is_written(name, cells):
                columns[self._name(name, said)] = cells if is_plain else [*map(_plain, cells)]
        if not columns:
            return [{} for _ in part.names]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _is_written(self, name: str, cells: Sequence[Any]) -> bool:
        """Tell whether a column is written; one of bytes, such as images, is not, which is told."""
        is_binary = any(map(_is_binary, cells))
        if is_binary and name not in self._left_out:
            self._left_out.add(name)
            self._told(f"column {name!r} holds bytes, and is not written beside the predictions")
        return not is_binary

    def _name(self, name: str, said: Mapping[str, Any]) -> str:
        """Return the name of a column beside predictions: its own, or `input/NAME` if they have it.

        The names of predictions are the same for every input, so that programs may rely on them.
        """
        if name in self.names:
            return self.names[name]
        given = name
        taken = {"input", *SINGULAR, *said, *self.names.values()}
        # More than once if need be: the input may have a column `input/label` of its own.
        while given in taken or given.startswith(_OF_PREDICTIONS):
            given = f"{_PREFIX}{given}"
        if given != name:
            self._told(f"column {name!r} of the input is {given!r} beside the predictions")
        self.names[name] = given
        return given


def _is_binary(value: Any) -> bool:
    """Tell whether a value holds bytes."""
    if isinstance(value, _PLAIN):
        return False
    if isinstance(value, dict):
        return any(map(_is_binary, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_binary, value))
    return isinstance(value, bytes | bytearray)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; dates and the like as text."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(cell) for key, cell in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(cell) for cell in value]
    return str(value)
