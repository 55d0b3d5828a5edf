"""A trained run: loaded from its folder, evaluated, and handed to prediction and export.

`trained.py` is the entry; `eval_data.py` chooses the samples of an evaluation.
"""
