"""Hashes of contents: whether a file or value is the one that was seen before.

`contents.py` makes them, `known_files.py` keeps those of files from run to run, and
`item_contents.py` has those of a column, made when a file is first read.
"""
