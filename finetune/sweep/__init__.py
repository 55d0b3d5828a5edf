"""Sweeps: many runs of one config with other values of some keys, chosen by Optuna.

A study on disk or in a database holds the trials (`studies.py`). Under its lock a process takes the
next trial (`claims.py`), whose values come from the search space (`search_space.py`,
`proposals.py`); it trains in a process and a run folder of its own (`trial_process.py`).
`sweeping.py` is the loop, `outcome.py` what is shown and written at the end.
"""
