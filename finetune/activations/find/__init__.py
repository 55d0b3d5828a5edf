"""Find the frozen prefix of a network by running it: which calls are frozen, and what is read.

`checks.py` runs it, each module call watched (`finetune/module_calls.py`), under several conditions
and disqualifies calls that cannot be cached. `operations.py` records what is done between calls;
`flow.py` follows values through it to see which outputs of the frozen calls the rest of the network
reads. `boundary.py` puts it together.
"""
