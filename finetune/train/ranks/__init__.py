"""Several processes that train one run: what `Sharing` beside this folder is made of.

`rank_settings.py` and `shard_settings.py` say what is possible, `shards.py` holds weights that are
divided (FSDP2), `gradient_sum.py` adds up gradients, `shared_passes.py` divides evaluations, and
`alike.py` checks that all ranks hold the same bits.
"""
