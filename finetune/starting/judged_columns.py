"""What each column of the data is: a number, a category, text, an id, or of no use."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from finetune.data.audio import Audio
from finetune.data.images import Images
from finetune.data.media.file_endings import AUDIO_ENDINGS, IMAGE_ENDINGS
from finetune.data.table import Column, Listed, Numbers
from finetune.data.targets.label_lists import listed_labels
from finetune.errors import named
from finetune.starting.cells_of_gaps import is_plain_number, marked_number, marks_among
from finetune.starting.wishes import is_named_target

Role = Literal[
    "number", "category", "text", "image", "recording", "list", "array", "id", "date",
    "constant", "empty", "words", "marked", "object", "other",
]  # fmt: skip
"""Kinds of columns. `list`: labels or words of a list; `words`: too many different ones;
`marked`: numbers with a decimal comma, a currency or per cent; `object`: keys with values."""
_ID_NAME = re.compile(
    r"(^|[_\W])(id|ids|uuid|guid|idx|index|rowid|rownames|key|hash|filename|file|url)$"
    r"|^unnamed|[a-z]I[Dd]$|^$",
    re.IGNORECASE,
)
_CAMEL_ID = re.compile(r"[a-z](Id|ID)$")
_DATE = re.compile(
    r"\d{4}[-/]\d\d?[-/]\d\d?([ T]\d\d?:\d\d.*)?|\d\d?[./]\d\d?[./]\d{2,4}( \d\d?:\d\d.*)?"
)
_TEXT_NAMES = frozenset(
    {
        *("text", "message", "review", "comment", "sentence", "tweet", "body", "content"),
        *("question", "abstract", "summary", "headline", "description", "document", "utterance"),
        *("premise", "hypothesis", "query", "passage", "title", "post", "email", "note"),
    }
)
MOST_CATEGORIES = 100
"""Most different words that are categories: each becomes an input of its own."""
MOST_CLASSES = 20
"""Most different whole numbers that are classes; more of them are a quantity."""
_WORDS_OF_TEXT = 5.0
"""Mean number of words in a cell from which on a column is text and not names."""
_LOOKED_AT = 1000
"""Cells whose words are counted."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one column is.

    Args:
        name: Its name.
        role: What it is.
        distinct: Number of different values, without gaps.
        gaps: Number of rows without a value.
        marks: Cells that mean no value.
        is_whole: Whether it holds whole numbers alone.
        words: Mean number of words of a text.
        values: Its different values, if it has few; without gaps.
        counts: How often each of them occurs.
        rarest: How often the rarest value occurs, also if it has many.
        why: Why it cannot be used; empty if it can.
        lacks: Words on the files that it names and that are not there, where others are.
    """

    name: str
    role: Role
    distinct: int
    gaps: int = 0
    marks: tuple[str, ...] = ()
    is_whole: bool = False
    words: float = 0.0
    values: tuple[Any, ...] = ()
    counts: tuple[int, ...] = ()
    rarest: int = 0
    why: str = ""
    lacks: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether a network can take it."""
        return not self.why


def judged(
    columns: Mapping[str, Column], folder: Path | None, *, is_table: bool
) -> dict[str, Judged]:
    """Return what each column is, by name, in the order of the data.

    Args:
        columns: The columns.
        folder: Folder that names of files are relative to.
        is_table: Whether the cells are those of a table; a folder called `null` is a class.
    """
    found = {name: _distinct(column) for name, column in columns.items()}
    # Over all columns: a mark that is sure in one ("NA" among numbers) is one in the others, too.
    marks = set[str]()
    for one in found.values():
        marks |= marks_among(one[0]) if is_table and one is not None else set()
    return {
        name: _judged(name, column, found[name], marks, folder) for name, column in columns.items()
    }


_Distinct = tuple[list[Any], np.ndarray[Any, Any]]


def _distinct(column: Column) -> _Distinct | None:
    """Return the different values of a column and their counts; None for lists and files."""
    if isinstance(column, Numbers):
        if column.values.ndim != 1:
            return None
        values, counts = torch.unique(column.values, return_counts=True)
        return values.tolist(), counts.numpy()
    if not isinstance(column, Listed):
        return None
    try:
        values, numbers = column.distinct()
    except TypeError:  # lists cannot be hashed
        return None
    return list(values), np.bincount(numbers, minlength=len(values))


def _judged(
    name: str,
    column: Column,
    found: _Distinct | None,
    marks: Collection[str],
    folder: Path | None,
) -> Judged:
    """Return what one column is."""
    if found is None:
        return _of_no_cells(name, column)
    values, counts = found
    # `value != value` finds NaN, which equals nothing.
    is_gap = [value in ("", None) or value != value or value in marks for value in values]
    gaps = int(sum(count for count, gap in zip(counts, is_gap, strict=True) if gap))
    kept = [(v, int(c)) for v, c, gap in zip(values, counts, is_gap, strict=True) if not gap]
    own = tuple(sorted({v for v in values if isinstance(v, str) and v in marks}))
    # Of an id or a text there may be millions, which nobody asks for.
    few = kept if len(kept) <= MOST_CATEGORIES else []
    facts: dict[str, Any] = {"distinct": len(kept), "gaps": gaps, "marks": own}
    facts |= {"values": tuple(v for v, _ in few), "counts": tuple(c for _, c in few)}
    facts["rarest"] = min((count for _, count in kept), default=0)
    return _of_cells(name, [value for value, _ in kept], len(column), facts, folder)


def _of_no_cells(name: str, column: Column) -> Judged:
    """Return what a column of files, arrays or lists is."""
    if isinstance(column, Images):
        return Judged(name, "image", len(column))
    if isinstance(column, Audio):
        return Judged(name, "recording", len(column))
    if isinstance(column, Numbers):
        return Judged(name, "array", len(column), is_whole=not column.values.is_floating_point())
    first = next((value for value in column.values if value is not None), None)
    if isinstance(first, Mapping):
        return Judged(name, "object", len(column), why=_of_objects(first))
    if _entries(first) is not None:
        lists = [_entries(value) or () for value in column.values]
        # Lists of several lengths fit no batch; an empty one alone tells nothing of the others.
        is_array = len({*map(len, lists)}) == 1 and all(map(is_plain_number, lists[0]))
        return Judged(name, "array" if is_array and lists[0] else "list", len(column))
    return Judged(name, "other", len(column), why="its values are of no kind that is read")


def _entries(cell: Any) -> Sequence[Any] | None:
    """Return the entries of a cell that holds a list or an array; None for any other one."""
    entries = cell.tolist() if hasattr(cell, "tolist") else cell
    return entries if isinstance(entries, list | tuple) else None


def _of_objects(first: Mapping[str, Any]) -> str:
    """Return why a column whose cells are objects with keys cannot be used."""
    if "bytes" in first:
        return (
            "its cells hold whole files, which are read from a folder that save_to_disk of "
            "datasets made, or from files that a table names"
        )
    keys = named([*first][:3])
    return f"its cells are objects; columns of their own for keys such as {keys} are read"


def _of_cells(
    name: str, values: Sequence[Any], num_rows: int, facts: dict[str, Any], folder: Path | None
) -> Judged:
    """Return what a column of single values is."""
    if not values:
        return Judged(name, "empty", **facts, why="it is empty")
    if len(values) == 1:
        return Judged(name, "constant", **facts, why="it is the same in every row")
    if all(map(is_plain_number, values)):
        return _of_numbers(name, values, num_rows, facts)
    texts = [str(value) for value in values]
    if (kind := _kind_of_files(texts)) is not None and folder is not None:
        return _of_files(name, texts, folder, facts, kind)
    if all(_DATE.fullmatch(text.strip()) for text in texts[:_LOOKED_AT]):
        return Judged(name, "date", **facts, why="dates are not read as numbers")
    if all(text.startswith("[") and listed_labels(text) is not None for text in texts):
        return Judged(name, "list", **facts)
    return _of_words(name, texts, num_rows, facts)


def _of_numbers(name: str, values: Sequence[Any], num_rows: int, facts: dict[str, Any]) -> Judged:
    """Return what a column of numbers is."""
    numbers = np.asarray([float(value) for value in values])
    whole = bool((numbers == np.round(numbers)).all())
    filled = num_rows - facts["gaps"]
    why = ""
    # Fewer rows may be 1, 2, 3 ... by chance.
    if whole and len(values) == filled and filled >= 10:
        in_turn = bool((np.diff(np.sort(numbers)) == 1).all())
        if in_turn and not is_named_target(name) and (is_id_name(name) or numbers.min() in (0, 1)):
            why = "it numbers the rows"
    if not why and whole and is_id_name(name):
        why = "it is an id by its name"
    return Judged(name, "id" if why else "number", **facts, is_whole=whole, why=why)


def is_id_name(name: str) -> bool:
    """Tell whether a column is called like an id."""
    return bool(_ID_NAME.search(name.strip()) or _CAMEL_ID.search(name.strip()))


def _of_words(name: str, texts: Sequence[str], num_rows: int, facts: dict[str, Any]) -> Judged:
    """Return what a column of words is: text, categories, ids, or numbers with marks."""
    if (cell := marked_number(texts)) is not None:
        why = f"numbers are read without marks and with a decimal point, unlike its {cell!r}"
        return Judged(name, "marked", **facts, why=why)
    some = texts[:_LOOKED_AT]
    words = sum(len(text.split()) for text in some) / len(some)
    filled = max(num_rows - facts["gaps"], 1)
    is_called = any(part in _TEXT_NAMES for part in re.split(r"[^a-z]+", name.lower()))
    # Categories repeat: a column whose values mostly differ names or describes its rows.
    is_varied = len(texts) > filled / 2
    if is_varied and words > 1.2 and (words >= _WORDS_OF_TEXT or is_called):
        return Judged(name, "text", **facts, words=words)
    if is_id_name(name) and (is_varied or len(texts) > MOST_CATEGORIES):
        return Judged(name, "id", **facts, why="it is an id by its name")
    if len(texts) <= MOST_CATEGORIES and len(texts) <= filled / 2:
        return Judged(name, "category", **facts, words=words)
    if words >= _WORDS_OF_TEXT:
        return Judged(name, "text", **facts, words=words)
    why = f"{len(texts):,} different words among {filled:,} are too many for categories"
    return Judged(name, "words", **facts, words=words, why=why)


def _kind_of_files(texts: Sequence[str]) -> Literal["image", "recording"] | None:
    """Return of which kind all texts name files, by their endings; None for other texts."""
    endings = {Path(text).suffix.lower() for text in texts}
    if endings <= IMAGE_ENDINGS:
        return "image"
    return "recording" if endings <= AUDIO_ENDINGS else None


def _is_there(file: Path) -> bool:
    """Tell whether a file is there."""
    try:
        return file.is_file()
    except OSError:  # a text that is too long for a name
        return False


def _of_files(
    name: str, names: Sequence[str], folder: Path, facts: dict[str, Any], kind: Role
) -> Judged:
    """Return what a column of names of files is."""
    # Each is looked for once, as reading it takes far longer: a run would end at the missing one.
    lacking = [one for one in names if not _is_there(folder / one)]
    if not lacking:
        return Judged(name, kind, **facts)
    if len(lacking) == len(names):
        why = (
            f"no {kind} that it names, such as {names[0]!r}, is in {str(folder)!r}; init on a "
            f"folder that holds table and {kind}s finds them"
        )
        return Judged(name, kind, **facts, why=why)
    several = "" if len(lacking) == 1 else f" and {len(lacking) - 1:,} more"
    return Judged(name, kind, **facts, lacks=f"no such {kind} file: {lacking[0]!r}{several}")
