"""Methods that decide masks while training goes on.

Read `policy.py` first: what a policy is told, what it answers, and where its memory is kept. Then
one file per method, and `choose.py`, which makes the policy that a config names.
"""
