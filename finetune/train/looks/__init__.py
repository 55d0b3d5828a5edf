"""Pictures of evaluations: what the network gets wrong, from outputs that are computed anyway.

`looking.py` decides when, `new_seen.py` chooses what collects the outputs, and the `seen_*.py`
collect them, one file for each kind of target. `head_inputs.py` alone evaluates once more: it
writes what enters the head, for TensorBoard's projector. `looking_of_run.py` makes all of it from
the config and the parts of a run.
"""
