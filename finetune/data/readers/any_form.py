"""The only entry to tables: the format is recognised by content, rows are yielded as chunks."""

from collections.abc import Generator
from dataclasses import replace
from typing import BinaryIO, Literal

from finetune.data.readers.chunks import Chunk, Reading, shown_names
from finetune.data.readers.documents import document_chunks, looks_like_json
from finetune.data.readers.forms import Content, content_of_bytes, head_of, text_of
from finetune.data.readers.parquet import cannot_read, parquet_chunks
from finetune.data.readers.separated import (
    SEPARATORS,
    found_separator,
    header_of,
    in_words,
    separated_chunks,
    separator_hint,
)
from finetune.errors import DataError, did_you_mean

Form = Literal["separated", "json", "parquet"]
KNOWN_FORMS = (
    "read are csv, tsv, JSON lines, a JSON array of objects and Parquet, also packed by gzip"
)
_IN_WORDS = {"separated": "separated values", "json": "JSON", "parquet": "Parquet"}
_BEGINNING = 4096


def form_of(file: BinaryIO, reading: Reading, declared: Form | None) -> Form:
    """Return the format of a table by its content; add a note if it is not the declared one.

    Args:
        file: The file, at its beginning; its position is restored.
        reading: What is known about the file; receives the note.
        declared: Format that the config or the file's name says; None if neither does.

    Raises:
        DataError: the file is no table.
    """
    content = _content(file, reading)
    found: Form = "parquet" if content.is_parquet else _form_of_text(file, reading, declared)
    if declared is not None and found != declared:
        reading.notes.append(f"{reading.name} is read as {_IN_WORDS[found]}, which it holds")
    return found


def chunks_of(file: BinaryIO, reading: Reading, form: Form) -> Generator[Chunk, None, None]:
    """Yield the rows of a table as chunks of columns.

    Args:
        file: The file, at its beginning.
        reading: What is known about the file and wanted of it; receives notes.
        form: Format that `form_of` returned.

    Raises:
        DataError: a row, or the file, does not have the form of its format.
    """
    if form == "parquet":
        yield from parquet_chunks(file, reading)
        return
    content = _content(file, reading)
    encoding = content.encoding or reading.dialect.encoding
    # A mark of UTF-8 is removed, and changes nothing else.
    if content.is_told and encoding != "utf-8-sig":
        reading.notes.append(f"{reading.name} is read as {encoding}, which its first bytes tell")
    # Wrong bytes become surrogates, by which their row alone is told; `strict` would end it all.
    errors = "surrogateescape" if reading.passes else "strict"
    with text_of(file, encoding, reading.name, errors) as text:
        read = separated_chunks if form == "separated" else document_chunks
        yield from read(text, reading)


def beginning_of(file: BinaryIO, reading: Reading) -> str:
    """Return the first characters of a text file; its position is restored.

    Raises:
        DataError: the file is not text.
    """
    encoding = _content(file, reading).encoding or reading.dialect.encoding
    # The format alone is looked for here: rows with wrong bytes are told when they are read.
    errors = "replace" if reading.passes else "strict"
    with text_of(file, encoding, reading.name, errors) as text:
        beginning = text.read(_BEGINNING)
    file.seek(0)
    return beginning


def names_columns(file: BinaryIO, reading: Reading) -> bool:
    """Tell whether a file is a table by its content: its first line names all wanted columns.

    Args:
        file: The file, at its beginning; its position is restored.
        reading: What is known about the file and wanted of it.
    """
    return _columns_told(file, reading)[0]


def names_in_first_line(file: BinaryIO, reading: Reading) -> list[str]:
    """Return the columns that the first line of separated text names; none if it is no such text.

    Args:
        file: The file, at its beginning; its position is restored.
        reading: What is known about the file and wanted of it.
    """
    return _columns_told(file, reading)[1]


def _columns_told(file: BinaryIO, reading: Reading) -> tuple[bool, list[str]]:
    """Return whether a file is a table by its content, and the names in its first line, if any."""
    content = content_of_bytes(head_of(file), reading.dialect.encoding)
    if content.encoding is None:
        return content.is_parquet, []
    beginning = beginning_of(file, reading)
    if looks_like_json(beginning):
        return True, []
    separator = _separator_for(beginning, reading)
    if separator is None:
        return False, []
    return True, header_of(beginning, separator, reading.dialect.quote)


def refuse_other_names(file: BinaryIO, reading: Reading) -> None:
    """Raise `DataError` if the first line of a text names columns, but not those that are wanted.

    That is so if one name differs from a wanted one in case and blanks alone, or if several columns
    are wanted and the line has several cells.

    Args:
        file: The file, at its beginning; its position is restored.
        reading: What is known about the file and wanted of it.
    """
    beginning = beginning_of(file, reading)
    first, _, rest = beginning.partition("\n")
    if first.lstrip().startswith("{"):
        return
    names = header_of(first, found_separator(first), reading.dialect.quote)
    wanted = list(reading.wanted or ())
    plain = {name.strip().casefold() for name in wanted}
    # A single line is taken for a text, even one that reads like the name of the column.
    is_header = rest.strip() and any(name.strip().casefold() in plain for name in names)
    if is_header or min(len(wanted), len(names)) > 1:
        absent = next((name for name in wanted if name not in names), None)
        if absent is not None:
            raise DataError(
                f"no column {absent!r}; there are: {shown_names(names, quoted=True)}",
                where=reading.name,
                hint=separator_hint(names) or did_you_mean(absent, names),
            )


def with_separator_of(file: BinaryIO, reading: Reading, first: str | None = None) -> Reading:
    """Return the reading with the separator by which the first line names all wanted columns.

    If the file is not separated text, or no separator gives all columns, the reading is unchanged.

    Args:
        file: The file, at its beginning; its position is restored.
        reading: What is known about the file; receives a note if the separator is another one.
        first: Separator to try before the known one.
    """
    content = content_of_bytes(head_of(file), reading.dialect.encoding)
    if content.encoding is None:
        return reading
    found = _separator_for(beginning_of(file, reading), reading, first)
    known = reading.dialect.separator
    if found is None or found == known:
        return reading
    if known is not None:
        reading.notes.append(f"{reading.name} is read with {in_words(found)} as its separator")
    return replace(reading, dialect=replace(reading.dialect, separator=found))


def _separator_for(beginning: str, reading: Reading, first: str | None = None) -> str | None:
    """Return the separator by which the first line names all wanted columns, or None."""
    # Those that are known come first: any separator finds the name of a single column.
    own = [each for each in (first, reading.dialect.separator) if each is not None]
    for separator in dict.fromkeys((*own, *SEPARATORS)):
        names = header_of(beginning, separator, reading.dialect.quote)
        # With no column to look for, any separator would do.
        if reading.wanted and all(name in names for name in reading.wanted):
            return str(separator)
    return None


def _content(file: BinaryIO, reading: Reading) -> Content:
    """Return what a file contains; raise if it cannot be a table."""
    content = content_of_bytes(head_of(file), reading.dialect.encoding)
    if content.other is not None:
        raise DataError(f"is {content.other}, no table", where=reading.name, hint=KNOWN_FORMS)
    return content


def _form_of_text(file: BinaryIO, reading: Reading, declared: Form | None) -> Form:
    """Return the format of a text file, JSON or separated values."""
    beginning = beginning_of(file, reading)
    # Content first: a file that is called .csv and holds JSON objects is read as what it is.
    if looks_like_json(beginning):
        return "json"
    if declared == "parquet" and _separator_for(beginning, reading) is None:
        raise cannot_read(reading.name, ValueError("it is no Parquet file"))
    if declared != "json":
        return "separated"
    # a file that is declared as JSON is separated values only if its first line names a column
    separator = reading.dialect.separator or found_separator(beginning.partition("\n")[0])
    names = header_of(beginning, separator, reading.dialect.quote)
    is_header = any(reading.wanted is not None and name in reading.wanted for name in names)
    return "separated" if is_header else "json"
