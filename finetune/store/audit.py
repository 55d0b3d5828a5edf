"""Verify all rows of a store, as `finetune cache verify` does."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.store.directory import Entry, claim_as_it_is
from finetune.store.layout import StoreError
from finetune.store.store import Store


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of verifying a store."""

    whole: int
    """Number of undamaged rows."""
    damaged: int
    """Number of damaged rows. They are marked as not written, and recomputed when needed."""
    notes: tuple[str, ...]
    """Other problems, one line each."""


def audit(root: Path, entry: Entry) -> Audit:
    """Verify every row of a store, and mark damaged ones as not written."""
    meta = entry.meta
    if meta is None:
        return Audit(0, 0, ("meta.json cannot be read",))
    if meta.key != entry.key:
        return Audit(0, 0, (f"meta.json is that of store {meta.key}",))
    if meta.torch != torch.__version__:
        return Audit(0, 0, (f"made by torch {meta.torch}, this is {torch.__version__}",))
    try:
        claim = claim_as_it_is(root, meta)
        store = Store.of(meta, claim, limit_bytes=np.inf)
    except StoreError as error:
        return Audit(0, 0, (error.in_one_line,))
    with closing(store):
        whole = int(store.has(store.written()).sum())
        return Audit(whole, store.num_damaged, tuple(store.take_notes()))
