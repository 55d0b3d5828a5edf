"""The activation cache: the frozen prefix of a network runs once per sample.

Five words: the *frozen prefix* is the module calls whose outputs depend on no trained parameter;
the *boundary*, their outputs that the rest of the network reads; a *row*, these outputs for one
sample; *facts*, all that rows depend on besides the data; an *exact* batch shape, one in which each
sample gets the same bits as in every other.

Read in this order. `find/` finds the boundary by running the network. `estimate.py` predicts
whether caching saves time. `key.py` collects the facts; their hash names a store on disk
(`finetune/store/`). `forward.py` is what the loop calls: it fetches batches, decides which are
answered, and runs them. `split_cache.py` reads and writes the rows of one split, `batch_shapes.py`
tells the shapes of its batches, and `exact.py` tries each shape; `verdicts.py` keeps the results
beside the rows. `rank_agreement.py` is asked where several processes hold parts of the weights.
`replay.py` replaces the `forward` of frozen modules: it *records* their outputs or *answers* with
rows. `cache.py` opens and closes all of this as phases begin and end; `standalone.py` does it
around a loop of one's own. A trained run that meets stored samples again answers them in
`finetune/train/after/known_rows.py`.
"""
