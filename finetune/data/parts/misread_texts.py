"""Note on texts of a run's data that were read in another encoding than theirs."""

from collections.abc import Iterator, Mapping
from itertools import islice

from finetune.config.data import DataConfig
from finetune.data.readers.encodings import really_utf8
from finetune.data.sources.open_source import sources_of
from finetune.data.table import Listed, Table

_LOOKED_AT = 10_000
"""Number of texts of a column that are looked at."""


def notes_on_encoding(config: DataConfig, tables: Mapping[str, Table]) -> Iterator[str]:
    """Yield a note for each column with texts that are UTF-8 and were read in another encoding."""
    for part, (source, _) in sources_of(config).items():
        encoding = getattr(source, "encoding", "utf-8")
        columns = {
            name: column.values if isinstance(column, Listed) else ()
            for name, column in tables[part].columns.items()
        }
        looked_at = {name: islice(cells, _LOOKED_AT) for name, cells in columns.items()}
        found, others = really_utf8(looked_at, encoding)
        for name, rows in found.items():
            of = min(len(columns[name]), _LOOKED_AT)
            first = tables[part].place(rows[0])
            yield (
                f"{len(rows):,} of {of:,} texts of {name!r} are valid UTF-8 and read as "
                f"{encoding}, such as {first}; encoding: utf-8, beside the path, reads them as "
                f"they are{f'; texts that are no UTF-8: {others:,}' if others else ''}"
            )
