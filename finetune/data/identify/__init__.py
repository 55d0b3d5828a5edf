"""What a run knows of its data: hashes of rows, columns and classes, and what differs later.

Begin with `identity.py`, which a run keeps. `differences.py` tells what other data lacks, and
`membership.py` gives each row that a run knows its part again.
"""
