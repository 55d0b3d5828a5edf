"""Readers of tables: recognise a file by its content, and yield its rows as chunks of columns.

`forms` looks at the first bytes; `separated`, `documents` and `parquet` each read one format;
`any_form` is the only entry. Nothing here imports torch: a chunk holds plain Python values.
"""
