"""Sources read into the columns in use, before targets are numbered and rows are parted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from finetune.config.data import DataConfig, TokenizeTransform
from finetune.config.task import ImportTask, Task
from finetune.data.cells import read_cells
from finetune.data.columns import (
    Kind,
    as_kind,
    choose_columns,
    columns_in_use,
    image_columns,
    kind_of,
    settle_columns,
)
from finetune.data.contents import KnownFiles
from finetune.data.identity import DataIdentity, RowHashes, hash_rows, identified
from finetune.data.image_headers import read_alike
from finetune.data.joined import join_targets
from finetune.data.labels import LabelRules
from finetune.data.sources import open_source, sources_of
from finetune.data.table import Column, Numbers, Table, refuse_gaps


@dataclass(frozen=True, slots=True)
class RawData:
    """The columns in use of every source.

    Args:
        config: `data:` of the config, with one target column.
        tables: By part; a single source, parted later, counts as that of training.
        hashes: Those of the rows of each.
        inputs: Names of the columns that the network is fed from.
        target: Name of the column that it learns to give; None without one.
        kinds: What each input holds.
        rules: How labels become classes.
        notes: What the user should know of how they were read, a line each.
    """

    config: DataConfig
    tables: Mapping[str, Table]
    hashes: Mapping[str, RowHashes]
    inputs: tuple[str, ...]
    target: str | None
    kinds: Mapping[str, Kind]
    rules: LabelRules
    notes: tuple[str, ...]

    @property
    def identity(self) -> DataIdentity:
        """The rows as they lie in the sources, and no classes: those are not known yet."""
        return DataIdentity.of(self.hashes, None)

    def of_kinds(self, kinds: Mapping[str, Kind]) -> "RawData":
        """Return the same with inputs of the kinds that training had.

        Raises:
            DataError: a value is of another kind.
        """
        kinds = {name: kinds.get(name, kind) for name, kind in self.kinds.items()}
        tables = {part: table_of_kinds(table, kinds) for part, table in self.tables.items()}
        return replace(self, tables=tables, kinds=kinds)


def read_data(
    config: DataConfig,
    task: Task,
    *,
    seed: int,
    trust: Collection[str],
    files: KnownFiles | None,
    head: Sequence[str],
) -> RawData:
    """Read the sources.

    Args:
        config: `data:` of the config.
        task: Says whether a target is needed.
        seed: Draws the images whose headers are read, where there are many.
        trust: Names of packages whose code may be imported.
        files: Knows what image files hold from earlier runs; None to read all of them.
        head: Names that the network's pretrained head gives its outputs, in their order.

    Raises:
        DataError: a source or a column is not what the config says.
    """
    config, tables, rules = join_targets(config, _read_tables(config, trust), tuple(head))
    inputs, target = choose_columns(
        config, tables["train"].columns, needs_target=not isinstance(task, ImportTask)
    )
    named = config.model_copy(update={"inputs": inputs, "target": target})
    sources, is_image = sources_of(config), image_columns(config, inputs)
    for part, (source, key) in sources.items():
        choose_columns(named, tables[part].columns, needs_target=target is not None)
        settled = settle_columns(tables[part], inputs, target, is_image, source, key)
        tables[part] = identified(settled, files)
    tables, on_images = read_alike(tables, seed)
    notes = (*(note for table in tables.values() for note in table.notes), *on_images)
    for table in tables.values():
        refuse_gaps_in(table, inputs)
    read = {part: _read_cells(table, inputs, config) for part, table in tables.items()}
    hashes = {part: hash_rows(t.columns, inputs, read[part]) for part, t in tables.items()}
    kinds = {name: kind_of(column, name, config) for name, column in read["train"].items()}
    return RawData(config, tables, hashes, inputs, target, kinds, rules, notes)


def table_of_kinds(table: Table, kinds: Mapping[str, Kind]) -> Table:
    """Return a table with its inputs of the kinds that training had.

    Raises:
        DataError: a value is of another kind.
    """
    inputs = {
        name: as_kind(name, table.columns[name], kind, table.told) for name, kind in kinds.items()
    }
    return replace(table, columns={**table.columns, **inputs})


def refuse_gaps_in(table: Table, inputs: Sequence[str]) -> None:
    """Raise a DataError that names the first NaN or infinite number of the inputs."""
    for name in inputs:
        if isinstance(column := table.columns[name], Numbers):
            refuse_gaps(name, column, table)


def _read_cells(table: Table, inputs: Sequence[str], config: DataConfig) -> dict[str, Column]:
    """Return the inputs as the numbers or texts that their cells stand for."""
    nodes = [node for node in config.transforms or () if isinstance(node, TokenizeTransform)]
    texts = {text for node in nodes for text in node.columns or (node.column,)}
    return {name: read_cells(table.columns[name], as_text=name in texts) for name in inputs}


def _read_tables(config: DataConfig, trust: Collection[str]) -> dict[str, Table]:
    wanted = columns_in_use(config)
    return {
        part: open_source(source, trust, key, wanted)
        for part, (source, key) in sources_of(config).items()
    }
