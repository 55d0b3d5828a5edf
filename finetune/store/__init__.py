"""Rows on disk under a key: one row per sample, checked, within a budget, shared by processes.

Nothing here knows of networks. A *store* is a folder that is named by its *key*, a hash of all
that the rows depend on. `store.py` opens one, reads and writes rows. `layout.py` describes its
files and `meta.json`; `units.py` reads and writes one such file; `ragged_rows.py` turns tensors
into file contents and back; `tier.py` joins the files of all outputs, on disk or in memory.
`row_index.py` knows which rows are written and where, `row_checksums.py` computes the eight bytes
that verify each. `directory.py` manages the folder of all stores: locks, sizes, removal of the
least recently used. `verdicts.py` keeps results of trials beside the rows, `audit.py` verifies a
whole store.
"""
