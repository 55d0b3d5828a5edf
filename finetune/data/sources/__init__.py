"""Sources: each kind of file, folder, array or data set is read as one table of columns.

`open_source.py` chooses by the type of the source. `tabular.py` reads tables of any format by way
of `readers`, `large_tables.py` keeps large ones in the cache, and `folders.py` finds samples in
folders. `file_names.py` holds names that data gives inside a folder.
"""
