"""Read standard input for prediction: the rows of a table, or one sample a line."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from finetune.config.data import DataConfig
from finetune.data.column_kinds import Kind
from finetune.data.incoming.incoming_part import Incoming, the_column, trained_on
from finetune.data.incoming.incoming_rows import as_files, rows_of
from finetune.data.readers.any_form import (
    KNOWN_FORMS,
    names_columns,
    names_in_first_line,
    refuse_other_names,
)
from finetune.data.readers.chunks import Reading, shown_names, wrong_bytes
from finetune.data.readers.documents import json_object
from finetune.data.readers.encodings import is_called_utf8
from finetune.data.readers.forms import content_of_bytes, decodes, head_of, text_of, unpacked
from finetune.data.readers.kept_stream import kept
from finetune.data.readers.row_places import Places
from finetune.data.sources.tabular import dialect_of
from finetune.errors import DataError
from finetune.reading import limited_lines


def read_stream(
    stdin: TextIO, config: DataConfig, kinds: Mapping[str, Kind], target: str | None
) -> Incoming:
    """Return the samples of standard input: rows of a table, or one sample per line.

    Args:
        stdin: The stream.
        config: `data:` of the config that the network was trained with.
        kinds: Kind of each input column.
        target: Column that the network predicts; read too if a table has it.

    Raises:
        DataError: it cannot be read.
    """
    file, reading = opened_stream(stdin, config, kinds, target)
    if names_columns(file, reading):
        part = rows_of(file, reading, None, Path())
        lines = part.places.lines
        # Rows of a csv begin in line 2, behind the names; JSON has no such line.
        is_json = any(lines) and lines[0] != 2
        numbers = lines if is_json else range(1, len(part.names) + 1)
        part = replace(part, names=[f"-:{number}" for number in numbers])
    else:
        part = _read_lines(file, reading, kinds)
    columns = {
        name: as_files(values, Path(), part.names, kinds.get(name))
        for name, values in part.columns.items()
    }
    return replace(part, columns=columns)


def opened_stream(
    stdin: TextIO,
    config: DataConfig,
    kinds: Mapping[str, Kind],
    target: str | None,
    *,
    passes: bool = False,
) -> tuple[BinaryIO, Reading]:
    """Return the bytes of a stream, which can be read twice, and what is known about them.

    Args:
        stdin: The stream.
        config: `data:` of the config that the network was trained with.
        kinds: Kind of each input column.
        target: Column that the network predicts; read too if a table has it.
        passes: Whether samples that cannot be read are reported, not raised.
    """
    name = "standard input"
    raw = getattr(stdin, "buffer", None)
    whole = (
        BytesIO(stdin.read().encode("utf-8", "surrogatepass")) if raw is None else kept(raw, name)
    )
    file = unpacked(whole, name)
    dialect = dialect_of(trained_on(config))
    # who types or pipes text means UTF-8, whatever encoding the training files have; only if that
    # is another one must the text be read to know which of the two it is
    if not is_called_utf8(dialect.encoding) and decodes(file, "utf-8"):
        dialect = replace(dialect, encoding="utf-8")
    reading = Reading(name, dialect, kinds.keys(), also=target, passes=passes)
    reading.notes.extend(_notes_on_first_line(file, reading, kinds))
    return file, reading


def _notes_on_first_line(
    file: BinaryIO, reading: Reading, kinds: Mapping[str, Kind]
) -> Iterator[str]:
    """Yield a note if the first line names the only column, a text, but may be a text itself."""
    if len(kinds) > 1 or not {*kinds.values()} <= {"text", "text or nothing"}:
        return
    names = names_in_first_line(file, reading)
    # Next to the target's name it is no text that somebody has typed.
    if names and reading.also not in names:
        example = json.dumps({next(iter(kinds)): "a text"}, ensure_ascii=False)
        shown = shown_names([name.strip() for name in names], quoted=True)
        yield (
            f"{reading.name} is read as a table, whose first line names {shown}; "
            f"texts that begin so are given as JSON objects, one a line: {example}"
        )


def _read_lines(file: BinaryIO, reading: Reading, kinds: Mapping[str, Kind]) -> Incoming:
    """Return one sample per line: a text, or a JSON object, the only form for several columns."""
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, row in line_rows(file, reading, kinds):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
        numbers.append(number)
    columns = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    places = Places((reading.name,), (0,), numbers)
    return Incoming(reading.name, [f"-:{number}" for number in numbers], columns, places)


def line_rows(
    file: BinaryIO, reading: Reading, kinds: Mapping[str, Kind]
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Yield one sample per line, with its number: a text, a JSON object, or why it is none."""
    content = content_of_bytes(head_of(file), reading.dialect.encoding)
    if content.encoding is None:
        raise DataError(f"is {content.other}, no text", where=reading.name, hint=KNOWN_FORMS)
    refuse_other_names(file, reading)
    errors = "surrogateescape" if reading.passes else "strict"
    with text_of(file, content.encoding, reading.name, errors) as text:
        for number, line in limited_lines(text, reading.name):
            if line.strip():
                yield number, _row_of(line, f"{reading.name}:{number}", reading, kinds)


def _row_of(
    line: str, where: str, reading: Reading, kinds: Mapping[str, Kind]
) -> dict[str, Any] | DataError:
    """Return the sample in a line, or why it is none."""
    if reading.passes and (wrong := wrong_bytes([line], reading, where)) is not None:
        return wrong
    # A text may begin with a brace as well, but then it is no JSON, and the error says so.
    if not line.lstrip().startswith("{"):
        return {the_column(kinds, where): line.rstrip("\r\n")}
    try:
        return json_object(line, where)
    except DataError as error:
        return error
