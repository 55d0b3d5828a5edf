"""What a run shows: on the terminal, to trackers, and in the documents of its folder.

All figures go through `reporting.py`; `telling.py` is the terminal, `start_lines.py` what it says
first and `summary.py` what stands there at the end.
"""
