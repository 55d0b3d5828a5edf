"""Every row of a store compared with its seal, for people who want to know."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.store.layout import StoreError
from finetune.store.shelf import Entry, claim_as_it_is
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
    if meta.key != entry.key:
        return Audit(0, 0, (f"meta.json is that of store {meta.key}",))
    if meta.torch != torch.__version__:
        return Audit(0, 0, (f"made by torch {meta.torch}, this is {torch.__version__}",))
    try:
        claim = claim_as_it_is(root, meta)
        store = Store.of(meta, claim, memory_bytes=0, disk_bytes=np.inf)
    except StoreError as error:
        return Audit(0, 0, (error.in_one_line,))
    with closing(store):
        whole = int(store.has(store.sealed()).sum())
        return Audit(whole, store.num_damaged, tuple(store.take_notes()))
