"""Readers of tables: what a file is, told by its content, and its rows as chunks of columns.

`forms` looks at the first bytes, `separated`, `documents` and `parquet` each read one form, `rows`
is the one way in. Nothing here knows torch: a chunk is plain Python values with their places.
"""
