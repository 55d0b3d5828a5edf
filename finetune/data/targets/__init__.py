"""Targets: from cells as people write them to what a loss takes.

`encode.py` chooses by the form of the target: class numbers, sets of labels, numbers, words with
tags, answers, masks or boxes. Each form has a file of its own.
"""
