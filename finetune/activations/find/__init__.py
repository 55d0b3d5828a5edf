"""Find the frozen prefix of a network by running it: which calls are frozen, and what is read.

`trace.py` records one forward pass: every module call and every operation between calls.
`checks.py` runs it again under other conditions and disqualifies calls that cannot be cached.
`flow.py` follows values outside the frozen calls to see which of their outputs the rest of the
network reads. `boundary.py` puts it together.
"""
