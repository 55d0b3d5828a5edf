"""Find the columns of a table that are recordings, and read names of files as such."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config.audio_keys import PLAIN_RATE, AudioKeys
from finetune.config.source_keys import Source
from finetune.data.audio import Audio, audio_of, names_recordings
from finetune.data.media.waveforms import SoundRules
from finetune.data.sources.file_names import files_of_table
from finetune.data.table import Column, Listed, Table
from finetune.errors import DataError, Key


def as_audio(
    name: str, column: Column, table: Table, source: Source
) -> tuple[Audio, list[str]] | None:
    """Return an input column as recordings, and notes; None if it holds none.

    Texts are names of recordings if the column is called `audio`, or if all of them end so and the
    first one is there.

    Args:
        name: Name of the column.
        column: The column.
        table: All columns of the source.
        source: Its config node, whose keys say how recordings are read.

    Raises:
        DataError: a name leads out of the folder.
    """
    notes: list[str] = []
    if isinstance(column, Listed) and column.kind != "things":
        if name != "audio" and not _are_there(column.values, table):
            return None
        if name != "audio":
            notes.append(f"column {name!r}: its texts name recordings, which are decoded")
        column = audio_of(files_of_table(name, column.values, table, "recording"), SoundRules())
    if not isinstance(column, Audio):
        return None
    return replace(column, rules=SoundRules.of(source)), notes


def refuse_idle_audio_keys(inputs: Sequence[Column], source: Source, key: Key) -> None:
    """Raise if a key for recordings applies to no input column.

    Raises:
        DataError: there is such a key.
    """
    if not isinstance(source, AudioKeys) or any(isinstance(one, Audio) for one in inputs):
        return
    # `sample_rate` has a default, so only a value that differs was written.
    idle = {"sample_rate": source.sample_rate != PLAIN_RATE, "seconds": source.seconds is not None}
    for name in filter(idle.get, idle):
        raise DataError("no input column holds recordings", key=(*key, name))


def _are_there(values: Sequence[Any], table: Table) -> bool:
    """Tell whether all texts end like recordings, and the first one names one."""
    # The first alone is looked up: to look up a million names takes longer than to train.
    is_named = table.folder is not None and names_recordings(values)
    return is_named and Path(table.folder or "", values[0]).is_file()
