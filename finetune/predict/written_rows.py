"""Write predictions as JSON lines or CSV, with texts that no spreadsheet computes."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from finetune.errors import DataError
from finetune.outfile import OutputForm, output_file, output_form
from finetune.visible import json_text, one_line


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    file: TextIO,
    *,
    as_csv: bool,
    numbers: Sequence[str] = (),
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
    example: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> int:
    """Write rows as JSON lines, or as CSV with a column for each class or number; return how many.

    Texts in CSV go through `spreadsheet_text`; `note` receives a line if that changed any.

    Args:
        rows: Rows of plain values by name.
        file: Where to write.
        as_csv: Whether to write CSV.
        numbers: Names of the numbers in `values`, for columns of CSV; they are counted if their
            number is another one.
        raw: Whether to write texts in CSV as they are.
        note: Receives a line for the user.
        example: Returns a row that is not written, for the header of CSV without rows.
    """
    cells = _Cells(is_raw=raw)
    count = 0
    writer: csv.DictWriter[str] | None = None
    for count, row in enumerate(rows, 1):
        if not as_csv:
            file.write(json_text(row, file) + "\n")
            continue
        flat = _flat_row(row, numbers)
        if writer is None:
            writer = csv.DictWriter(file, list(flat))
            # Not `writeheader`: names of classes are texts that a spreadsheet would compute, too.
            writer.writer.writerow(map(cells.shown, flat))
        if strange := sorted(flat.keys() - set(writer.fieldnames)):
            raise DataError(
                f"prediction {count} has {strange[0]!r} and the first one has not, so they fit no "
                "table",
                hint="JSON lines take any: --out predictions.jsonl",
            )
        writer.writerow({name: cells.shown(value) for name, value in flat.items()})
    if as_csv and writer is None and (row_of_none := example()) is not None:
        csv.writer(file).writerow(map(cells.shown, _flat_row(row_of_none, numbers)))
    if cells.num_changed:
        note(f"{cells.num_changed} {_CHANGED}")
    return count


def write_file(
    rows: Iterable[Mapping[str, Any]],
    out: Path,
    form: OutputForm | None = None,
    *,
    numbers: Sequence[str] = (),
    raw: bool = False,
    note: Callable[[str], None] = lambda _: None,
    example: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> int:
    """Write rows to a file, as CSV, Parquet or JSON lines; return how many.

    The form is that of its ending if left out. For the other arguments see `write_rows`. A regular
    file is written completely or not changed, see `output_file` for others.

    Raises:
        FinetuneError: the file cannot be written, or has another ending.
    """
    form = form or output_form(out)
    with output_file(out) as file:
        if form == "parquet":
            return write_parquet(rows, file, numbers=numbers, where=str(out))
        return write_rows(
            rows,
            file,
            as_csv=form == "csv",
            numbers=numbers,
            raw=raw,
            note=note,
            example=example,
        )


def write_parquet(
    rows: Iterable[Mapping[str, Any]], file: TextIO, *, numbers: Sequence[str], where: str
) -> int:
    """Write rows as Parquet, with a column for each class or number; return how many.

    Types of columns are those of all rows: they are looked through once before they are written,
    so `rows` must give them a second time.

    Raises:
        DataError: a column holds values of several types.
    """
    import pyarrow  # takes a third of a second, which other forms need not spend
    from pyarrow import parquet

    def tables() -> Iterator[Any]:
        flat = (_flat_row(row, numbers, as_text=False) for row in rows)
        while some := list(islice(flat, _ROWS_OF_A_GROUP)):
            names = dict.fromkeys(name for row in some for name in row)
            columns = {name: [row.get(name) for row in some] for name in names}
            yield pyarrow.table(columns)

    count = 0
    try:
        schemas = [table.schema for table in tables()]
        schema = pyarrow.unify_schemas(
            schemas or [pyarrow.schema([])], promote_options="permissive"
        )
        with parquet.ParquetWriter(file.buffer, schema) as writer:
            for table in tables():
                rest = [name for name in schema.names if name not in table.column_names]
                empty = {name: pyarrow.nulls(table.num_rows) for name in rest}
                columns = dict(zip(table.column_names, table.columns, strict=True)) | empty
                full = pyarrow.table({name: columns[name] for name in schema.names})
                writer.write_table(full.cast(schema))
                count += full.num_rows
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(
            f"a column holds values of several types, which Parquet has not: {reason}",
            where=where,
            hint="JSON lines take any: --out predictions.jsonl",
        ) from error
    return count


def spreadsheet_text(text: str) -> str:
    r"""Return a text as a CSV cell that a spreadsheet shows and does not compute.

    The rule of OWASP ("CSV Injection"): a cell that begins with `=`, `+`, `-`, `@`, a tab, a
    carriage return or a line feed gets an apostrophe before it. Then hidden characters are written
    as escapes: `\x1b`, `\n`.
    """
    begins_a_formula = text.startswith(_BEGINNINGS_OF_FORMULAS)
    return f"'{one_line(text)}" if begins_a_formula else one_line(text)


_BEGINNINGS_OF_FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""The last four are the full-width forms, which spreadsheets treat like the others."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""A text that is a plain number, such as a cell of the input: no spreadsheet computes it."""
_ROWS_OF_A_GROUP = 4096

_CHANGED = (
    "texts were changed for spreadsheets: an apostrophe before = + - @, escapes for hidden "
    "characters; --raw writes them as they are"
)


@dataclass(slots=True)
class _Cells:
    """Turns texts into CSV cells, and counts those that it changed."""

    is_raw: bool
    num_changed: int = 0

    def shown(self, value: Any) -> Any:
        """Return the cell for a value; numbers stay as they are."""
        # Numbers are computed here: with a minus in front they are still no formula.
        if self.is_raw or not isinstance(value, str) or _NUMBER.fullmatch(value):
            return value
        shown = spreadsheet_text(value)
        self.num_changed += shown != value
        return shown


def _flat_row(
    row: Mapping[str, Any], numbers: Sequence[str], *, as_text: bool = True
) -> dict[str, Any]:
    """Return a row with a cell for each class or output, and a text for each list if asked."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        singular = SINGULAR.get(name, name)
        if isinstance(value, dict):
            # The record of a list of tasks is a row for each of them.
            flat |= {
                f"{singular}/{key}": cell
                for key, cell in _flat_row(value, (), as_text=as_text).items()
            }
        elif isinstance(value, list) and name in SINGULAR and (as_text or name != "embedding"):
            is_named = name != "embedding" and len(numbers) == len(value)
            names = numbers if is_named else [*map(str, range(len(value)))]
            pairs = zip(names, value, strict=True)
            flat |= {f"{singular}/{one}": _cell_of(number) for one, number in pairs}
        else:
            flat[name] = _cell_of(value) if as_text else value
    return flat


SINGULAR = {
    "probabilities": "probability",
    "values": "value",
    "shares": "share",
    "embedding": "embedding",
}
"""Name of the cells of one number each, by the name of all of them in a row."""


def _cell_of(value: Any) -> Any:
    """Return a value as one CSV cell: labels between `|`, other lists and dicts as JSON."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "|".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
