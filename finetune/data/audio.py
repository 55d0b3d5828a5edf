"""A column of recordings: files or encoded bytes, each decoded when it is read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from random import Random
from typing import Any

from torch import Tensor

from finetune.data.hashes.item_contents import ItemContents, contents_of
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.media.decoding import hash_bytes
from finetune.data.media.file_endings import AUDIO_ENDINGS
from finetune.data.media.waveforms import (
    SoundHeader,
    SoundRules,
    encoded_digest,
    read_sound_header,
    read_waveform,
    sound_name,
)
from finetune.errors import DataError

_VERSION = 1
"""Version of how recordings are decoded; bump it so that rows stored by older code are not used."""
_MOST_LOOKED_AT = 2000
"""Most headers read per column: to open a file takes some 0.1 ms, and more over a network."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A column of recordings, each of which is decoded only when it is read.

    Args:
        items: For each recording the path of a file, encoded bytes, or the `{"bytes", "path"}` of
            `datasets` with bytes. Names in the data become paths only through `named_files`.
        order: Positions in `items` of this column's samples.
        rules: Rate and length of every waveform.
        contents: What is known of the contents of the items, once they were identified.
    """

    items: Sequence[Any]
    order: Sequence[int]
    rules: SoundRules
    contents: ItemContents | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Tensor:
        """Return one recording as a waveform `(L,)`.

        Raises:
            DataError: it is missing, damaged, or differs from the one that was identified.
        """
        position = self.order[index]
        # Without hashes, as for prediction, a recording is read as it is now.
        known = None if self.contents is None else partial(self.contents.of_file, position)
        return read_waveform(self.items[position], self.rules, known)

    def raw(self, index: int) -> Any:
        """Return one recording as it was handed in: one of the `items`."""
        return self.items[self.order[index]]

    def header(self, index: int) -> SoundHeader:
        """Return the header of one recording.

        Raises:
            DataError: it is missing, or no recording.
        """
        return read_sound_header(self.items[self.order[index]])

    def name(self, index: int) -> str:
        """Return the name of one recording, for messages."""
        return sound_name(self.items[self.order[index]])

    def take(self, rows: Tensor) -> "Audio":
        """Return the samples at `rows`, not decoded."""
        return replace(self, order=[self.order[row] for row in rows.tolist()])

    def identified(self, files: KnownFiles | None) -> "Audio":
        """Return the column with the content hashes of all its items.

        From then on, a recording that has changed is refused when it is read.

        Args:
            files: Hashes of files from earlier runs; None to read every file.

        Raises:
            DataError: an item is missing or cannot be read. The message names it.
        """
        return replace(self, contents=self._read(files))

    def digests(self) -> list[bytes]:
        """Return a digest of each sample, which identifies it.

        It is a hash of its contents, or of name and size where contents are read later.
        """
        contents = self.contents or self._read(None)
        return self._with_rules(contents.identities(self.order))

    def fingerprint(self) -> bytes:
        """Return a hash of the contents and of how they are read; all files are read for it."""
        contents = self.contents or self._read(None)
        contents.complete(lambda _: None)
        hashes = self._with_rules(contents.hashes(self.order))
        # A newer library may decode or resample to other numbers.
        read_by = f"{_VERSION} {version('soundfile')} {version('scipy')}".encode()
        return blake2b(read_by + b"".join(hashes), digest_size=16).digest()

    def _read(self, files: KnownFiles | None) -> ItemContents:
        """Return the contents of all items, read now."""
        return contents_of(self.items, files, "recording", encoded_digest)

    def _with_rules(self, hashes: list[bytes]) -> list[bytes]:
        """Return hashes that differ if other reading rules make other waveforms."""
        # Two rates make two waveforms of one file.
        rules = repr(self.rules).encode()
        return [hash_bytes(rules + hashed) for hashed in hashes]


def audio_of(items: Sequence[Any], rules: SoundRules) -> Audio:
    """Return a column of recordings that were not identified yet."""
    return Audio(items, range(len(items)), rules)


def names_recordings(values: Sequence[Any]) -> bool:
    """Tell whether all of some values are texts that end like recordings."""
    endings = tuple(AUDIO_ENDINGS)
    return len(values) > 0 and all(
        isinstance(text, str) and text.lower().endswith(endings) for text in values
    )


def notes_on_audio(columns: Mapping[str, Sequence[object]], seed: int) -> list[str]:
    """Return notes on how the recordings of some columns are converted.

    Args:
        columns: For each name the columns of all parts.
        seed: Seed for drawing those whose headers are read, if there are many.

    Raises:
        DataError: a recording is missing or damaged, or lengths differ and no length is given.
    """
    found = {
        name: [part for part in parts if isinstance(part, Audio)] for name, parts in columns.items()
    }
    return [line for name, parts in found.items() if parts for line in _notes(name, parts, seed)]


def _notes(column: str, parts: Sequence[Audio], seed: int) -> list[str]:
    """Return the notes on one column."""
    every = [(part, index) for part in parts for index in range(len(part))]
    chosen = every
    if len(every) > _MOST_LOOKED_AT:
        # At random: the first recordings of a folder are often all of one class or one source.
        chosen = sorted(Random(seed).sample(every, _MOST_LOOKED_AT), key=lambda one: one[1])
    headers = [(part.header(index), part.name(index)) for part, index in chosen]
    rules = parts[0].rules
    among = f"{len(every):,}" if chosen is every else f"{len(chosen):,} looked at of {len(every):,}"
    if rules.length is None:
        _refuse_lengths(column, headers, rules)
    return [
        f"column {column!r}: {len(names):,} of {among} recordings {said}, such as {names[0]!r}"
        for said, names in _kinds(headers, rules)
        if names
    ]


def _kinds(
    headers: Sequence[tuple[SoundHeader, str]], rules: SoundRules
) -> list[tuple[str, list[str]]]:
    """Return what is done to recordings, with the names of those to which it is done."""
    rates = Counter(header.rate for header, _ in headers if header.rate != rules.rate)
    named = ", ".join(f"{rate} Hz" for rate, _ in rates.most_common(3))
    kinds = [
        (
            f"are resampled to {rules.rate} Hz (key: sample_rate) from {named}",
            [name for header, name in headers if header.rate != rules.rate],
        ),
        (
            "have several channels, their mean is read",
            [name for header, name in headers if header.channels > 1],
        ),
    ]
    if rules.seconds is None or (length := rules.length) is None:
        return kinds
    lengths = [(header.length(rules.rate), name) for header, name in headers]
    longest = max(header.seconds for header, _ in headers)
    shortest = min(header.seconds for header, _ in headers)
    return [
        *kinds,
        (
            f"are cut to {rules.seconds:g} seconds, the longest has {longest:.2f}",
            [name for one, name in lengths if one > length],
        ),
        (
            f"end in silence up to {rules.seconds:g} seconds, the shortest has {shortest:.2f}",
            [name for one, name in lengths if one < length],
        ),
    ]


def _refuse_lengths(
    column: str, headers: Sequence[tuple[SoundHeader, str]], rules: SoundRules
) -> None:
    """Raise if recordings differ in length: no batch can hold them."""
    lengths = [header.length(rules.rate) for header, _ in headers]
    if not lengths or min(lengths) == max(lengths):
        return
    short, long = (headers[lengths.index(end)] for end in (min(lengths), max(lengths)))
    raise DataError(
        f"recordings of column {column!r} differ in length: {short[0].seconds:.2f} seconds of "
        f"{short[1]!r}, {long[0].seconds:.2f} of {long[1]!r}",
        hint=f"seconds: {long[0].seconds:.3g}, beside the path of the source, cuts longer ones and "
        "puts silence behind shorter ones",
    )
