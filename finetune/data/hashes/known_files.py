"""Hashes of files, kept from run to run: a file is read again only if it may have changed.

Letters: N files.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from random import SystemRandom

import torch
from torch import Tensor

from finetune.data.hashes.contents import HASH_BYTES, Contents, cost_of, file_states, reader_of
from finetune.store.directory import cache_root, key_of
from finetune.store.layout import RowSpec, StoreError
from finetune.store.store import Store

_LEAST_BYTES = 32 << 20
"""Files that take less than this in all are read at every start, which takes some 50 ms."""
_LEAST_CHECKED, _SHARE_CHECKED = 8, 0.01
"""Number and share of the known files that are drawn at random and read again at each opening."""
_SPECS = {"state": RowSpec((4,), "int64"), "hash": RowSpec((HASH_BYTES,), "uint8")}


class KnownFiles:
    """Hashes of files, stored from run to run with the state that each file had.

    Args:
        disk_gb: GiB that all stores together may take; none is removed to make room for hashes.
        root: The folder of all stores; the user's if left out.
    """

    def __init__(self, disk_gb: float, root: Path | None = None) -> None:
        self.notes: list[str] = []
        """Lines to report to the user."""
        self._disk_gb, self._root = disk_gb, root

    @property
    def disk_bytes(self) -> float:
        """Bytes that all stores together may take."""
        return self._disk_gb * 2**30

    @property
    def root(self) -> Path:
        """The folder of all stores.

        Raises:
            StoreError: the system knows of no such folder.
        """
        return self._root or cache_root()

    def take_notes(self) -> list[str]:
        """Return the notes, and keep none of them."""
        notes, self.notes = self.notes, []
        return notes

    def contents(
        self, paths: Sequence[Path], what: str = "image", *, skips: bool = False
    ) -> Contents:
        """Return hash and state of each file. Of unchanged files only a few are read again.

        Args:
            paths: The files.
            what: What they are, for messages.
            skips: Whether a file that cannot be read gets a hash that no contents have.

        Raises:
            DataError: a file is missing, cannot be read, or is being written.
        """
        read = reader_of(what, skips=skips)
        states = file_states(paths, what, skips=skips)
        # A store costs more than to read so little, and what is read needs no trust in times.
        if cost_of(states) < _LEAST_BYTES:
            return read(paths)
        try:
            return self._stored(paths, states, read)
        except StoreError as error:
            self.notes.append(f"hashes of files are not kept: {error.in_one_line}")
            return read(paths)

    def _stored(
        self, paths: Sequence[Path], states: Tensor, read: Callable[[Sequence[Path]], Contents]
    ) -> Contents:
        """Return the hashes of files, from the store as far as it has them; complete the store."""
        names = b"\0".join(os.path.abspath(os.fsencode(path)) for path in paths)  # noqa: PTH100
        data = blake2b(names, digest_size=HASH_BYTES).hexdigest()
        key = key_of({"files": data})
        store = Store.open(
            self.root,
            key,
            _SPECS,
            len(paths),
            memory_gb=0,
            disk_gb=self._disk_gb,
            facts={"hashes": "of files", "data": data},
            # Hashes are quickly made again: no rows of the activation cache are removed for them.
            evicts=False,
        )
        with closing(store):
            # Times can be set back and hashes in a store forged: a random share is read to notice
            # either.
            known = _known(store, states)
            if not _are_right(store, known, paths, read):
                self.notes.append(f"the hashes of files in store {key} are wrong: all are read")
                known = torch.zeros_like(known)
            contents = _completed(store, known, paths, read)
            _write(store, known, contents)
            self.notes += store.take_notes()
            return contents


def _known(store: Store, states: Tensor) -> Tensor:
    """Return which files are in a store with the state they have now, (N,) bool."""
    rows = torch.arange(len(states))
    known = store.has(rows)
    known[known.clone()] = (store.read(rows[known])["state"] == states[known]).all(1)
    return known


def _are_right(
    store: Store,
    known: Tensor,
    paths: Sequence[Path],
    read: Callable[[Sequence[Path]], Contents],
) -> bool:
    """Tell whether a random share of the stored hashes is right, by reading those files."""
    rows = known.nonzero().squeeze(1).tolist()
    count = min(len(rows), max(_LEAST_CHECKED, round(_SHARE_CHECKED * len(rows))))
    # `SystemRandom`: with a seed, a forger would know which files are never looked at.
    checked = sorted(SystemRandom().sample(rows, count))
    if not checked:
        return True
    now = read([paths[row] for row in checked]).hashes
    return torch.equal(store.read(torch.tensor(checked))["hash"], now)


def _completed(
    store: Store,
    known: Tensor,
    paths: Sequence[Path],
    read: Callable[[Sequence[Path]], Contents],
) -> Contents:
    """Return the hashes of all files: stored ones, and the others by reading them now."""
    contents = Contents(
        torch.zeros(len(paths), HASH_BYTES, dtype=torch.uint8),
        torch.zeros(len(paths), 4, dtype=torch.int64),
    )
    rows, others = known.nonzero().squeeze(1), (~known).nonzero().squeeze(1)
    if len(rows):
        stored = store.read(rows)
        contents.hashes[rows], contents.states[rows] = stored["hash"], stored["state"]
    if len(others):
        found = read([paths[row] for row in others.tolist()])
        contents.hashes[others], contents.states[others] = found
    return contents


def _write(store: Store, known: Tensor, contents: Contents) -> None:
    """Store hashes of files whose state proves that they stay as they are."""
    # `UNKNOWN` is all zeros: a file that has just been written is hashed again next time.
    told = (contents.states != 0).any(1)
    if bool((store.has(torch.arange(len(known))) & ~known).any()):
        store.discard()  # rows are never overwritten, so those of changed files must go first
        known = torch.zeros_like(known)
    rows = (told & ~known).nonzero().squeeze(1)
    if len(rows):
        store.write(rows, {"state": contents.states[rows], "hash": contents.hashes[rows]})
