"""Pictures of evaluations: what the network gets wrong, from outputs that are computed anyway.

`looking.py` decides when, `new_seen.py` chooses what collects the outputs, and the `seen_*.py`
collect them, one file for each kind of target.
"""
