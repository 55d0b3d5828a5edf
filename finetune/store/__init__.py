"""Rows on disk under a key: one row per sample, checked, within a budget, shared by processes.

Nothing here knows of networks. Five words: a *store* is a folder of rows, named by its *key*, a
hash of all that the rows depend on; a *unit* is a fixed-size element of a file, a sample or a
token; a *row checksum* says that a row is written and verifies its bytes; a *claim* is the lock of
a process on a store, which keeps it from being removed.

Read in this order. `layout.py` describes files and `meta.json`. `store.py` opens a store, reads and
writes rows; `audit.py` verifies all of them. `row_index.py` knows which rows are written and where,
and computes their checksums. `units.py` reads and writes the files. `store_folder.py` creates,
checks and removes the folder of one store; `directory.py` manages the folder of all of them: locks,
sizes, removal of the least recently used.
"""
