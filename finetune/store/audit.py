"""Every row of a store compared with its seal, for people who want to know."""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.store.layout import StoreError
from finetune.store.shelf import Entry
from finetune.store.store import Store


@dataclass(frozen=True, slots=True)
class Audit:
    """What a look at every row has found."""

    whole: int
    """Rows that are as they were written."""
    damaged: int
    """Rows that are not. They were given up, and are recomputed when next needed."""
    notes: tuple[str, ...]
    """What else is wrong, a line each."""


def audit(root: Path, entry: Entry) -> Audit:
    """Compare every row of a store with its seal, and give up those that are damaged."""
    meta = entry.meta
    if meta is None:
        return Audit(0, 0, ("meta.json cannot be read",))
    if meta.torch != torch.__version__:
        return Audit(0, 0, (f"made by torch {meta.torch}, this is {torch.__version__}",))
    try:
        store = Store.claimed(meta, root, memory_bytes=0, disk_bytes=np.inf)
    except StoreError as error:
        return Audit(0, 0, (error.message,))
    with closing(store):
        whole = int(store.has(store.sealed()).sum())
        found = Audit(whole, store.num_damaged, store.notes)
    # to look is not to use: the order in which stores make room stays
    os.utime(entry.folder / "lock", (entry.last_used, entry.last_used))
    return found
