"""The activation cache: the frozen prefix of a network runs once per sample.

Read in this order. `find/` finds the *frozen prefix*: the module calls whose outputs depend on no
trained parameter, and the *boundary*, the outputs of these calls that the rest of the network
reads. `estimate.py` predicts whether caching saves time. `key.py` collects all that the outputs
depend on; its hash names a store on disk (`finetune/store/`). `replay.py` replaces the `forward`
of frozen modules: it *records* their outputs or *answers* with stored rows. `exact.py` tries each
batch shape before its rows are used, so that training keeps its bits. `cached_forward.py` is what
the loop calls for one phase: it fetches batches and runs them, one *row* per sample; `forward.py`
is its interface, and the version without a cache. `cache.py` opens and closes all of this as
phases begin and end; `standalone.py` does it around a loop of one's own.
"""
